"""Libraries' messages are left out one by one; all others are shown."""

from __future__ import annotations

import logging
import warnings

import pytest

from adatad_ds.system.library_messages import hide_library_messages


class Kept(logging.Handler):
    """Keeps the messages that reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def deepspeeds():
    """DeepSpeed's logger, as it was before afterwards."""
    logger = logging.getLogger("DeepSpeed")
    filters, handlers = logger.filters[:], logger.handlers[:]
    yield logger
    logger.filters[:], logger.handlers[:] = filters, handlers


def test_messages_are_left_out_by_their_text(deepspeeds):
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        hide_library_messages()
        told = (
            ("`torch.distributed.all_gather_into_tensor` is deprecated. Please use another.", FutureWarning),
            ("`torch.distributed.reduce_scatter_tensor` is deprecated. Please use another.", FutureWarning),
            ("`torch.distributed.all_reduce` is deprecated. Please use another.", FutureWarning),
            ("`torch.distributed.all_gather_into_tensor` is deprecated. Please use another.", UserWarning),
        )
        for number, (message, kind) in enumerate(told):
            warnings.warn_explicit(message, kind, filename="library.py", lineno=number)
    assert [str(warning.message) for warning in shown] == [message for message, _ in told[2:]]
    kept = Kept()
    deepspeeds.addHandler(kept)
    deepspeeds.warning("**** You are using ZeRO with an untested optimizer, proceed with caution *****")
    deepspeeds.warning("something else")
    assert kept.messages == ["something else"]
