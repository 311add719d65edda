from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Test processes run side by side, as many as there are cores; threads of PyTorch would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def cache_of_their_own(tmp_path_factory) -> None:
    """The user's cache is none of the tests' business."""
    os.environ["ADATAD_DS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def small_videos(tmp_path_factory) -> Path:
    """A generated data set: 8 training and 3 test videos with their annotations."""
    return generated("videos", tmp_path_factory.mktemp("videos") / "data", "--seconds", "6", "10", train=8, test=3)


@pytest.fixture(scope="session")
def longer_videos(tmp_path_factory) -> Path:
    """As many generated videos of the usual length."""
    return generated("videos", tmp_path_factory.mktemp("videos") / "data", train=8, test=3)


@pytest.fixture(scope="session")
def small_clips(tmp_path_factory) -> Path:
    """Generated clips in a folder per class: 2 of each of 8 to learn from and 1 to test on."""
    return generated("clips", tmp_path_factory.mktemp("clips") / "data", train=2, test=1)


def generated(kind: str, folder: Path, *options: str, train: int, test: int) -> Path:
    command = [sys.executable, "-m", "adatad_ds", "generate", kind, "--out", str(folder)]
    command += ["--train", str(train), "--test", str(test), "--seed", "7", *options]
    subprocess.run(command, cwd=Path(__file__).resolve().parents[1], check=True, timeout=300)
    return folder
