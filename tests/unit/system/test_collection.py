import gc

import pytest

from adatad_ds.system.collection import collection_paused


def test_nothing_is_collected_inside_and_what_is_there_stays_out_of_later_searches():
    found: list[str] = []
    gc.callbacks.append(lambda phase, info: found.append(phase))
    try:
        with collection_paused():
            kept = [[] for _ in range(20_000)]  # far beyond the thresholds
            assert not found
    finally:
        gc.callbacks.pop()
    assert gc.isenabled()
    assert gc.get_freeze_count() >= len(kept)
    gc.unfreeze()


def test_collection_goes_on_after_an_error():
    with pytest.raises(ImportError), collection_paused():
        raise ImportError
    assert gc.isenabled()
    gc.unfreeze()
