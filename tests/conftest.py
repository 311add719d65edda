from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from tests.support.generated import generated

# Test processes run side by side, as many as there are cores; threads of PyTorch would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
gc.disable()  # while test modules are imported


@pytest.fixture(scope="session", autouse=True)
def cache_of_their_own(tmp_path_factory) -> None:
    """The user's cache is none of the tests' business."""
    os.environ["ADATAD_DS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def small_videos(tmp_path_factory) -> Path:
    """A generated data set: 8 training and 3 test videos with their annotations."""
    return generated("videos", tmp_path_factory.mktemp("videos") / "data", "--seconds", "6", "10", train=8, test=3)


@pytest.fixture(scope="session")
def few_videos(tmp_path_factory) -> Path:
    """Half as many: 4 training and 2 test videos."""
    return generated("videos", tmp_path_factory.mktemp("videos") / "data", "--seconds", "6", "10", train=4, test=2)


@pytest.fixture(scope="session")
def longer_videos(tmp_path_factory) -> Path:
    """As many generated videos of the usual length."""
    return generated("videos", tmp_path_factory.mktemp("videos") / "data", train=8, test=3)


@pytest.fixture(scope="session")
def small_clips(tmp_path_factory) -> Path:
    """Generated clips in a folder per class: 2 of each of 8 to learn from and 1 to test on."""
    return generated("clips", tmp_path_factory.mktemp("clips") / "data", train=2, test=1)


def pytest_collection_finish() -> None:
    """What has been imported and collected stays: each search of it for garbage takes half a second."""
    gc.freeze()
    gc.enable()
