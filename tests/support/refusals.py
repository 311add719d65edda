"""Shared by tests: refusals."""

from __future__ import annotations

from tests.support.launch import REPOSITORY, start


def fails(command: list[str], *said: str) -> None:
    done = start(command)
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(ours) == 1, done.stderr[-3000:]
    for words in said:
        assert words in ours[0], ours[0]
    assert f'File "{REPOSITORY}/adatad_ds' not in done.stderr, "a traceback from inside"
