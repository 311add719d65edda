"""Files are complete, or not there at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from adatad_ds.system.atomic import replacing, write_text


def test_a_file_is_replaced(tmp_path: Path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    write_text(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_as_long_as_they_may_be(tmp_path: Path):
    path = tmp_path / f"{'あ' * 83}.json"
    write_text(path, "{}")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
def test_an_unfinished_file_changes_nothing(tmp_path: Path, kind: type[BaseException]):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise kind

    with pytest.raises(kind):
        write_half()
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_written_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a.txt"):
        pass
    assert not list(tmp_path.iterdir())
