from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def small_videos(tmp_path_factory) -> Path:
    """A generated data set: 8 training and 3 test videos with their annotations."""
    folder = tmp_path_factory.mktemp("videos") / "data"
    repository = Path(__file__).resolve().parents[1]
    subprocess.run(
        [sys.executable, "tools/make_videos.py", "--out", folder, "--train", "8", "--test", "3", "--seed", "7"],
        cwd=repository,
        check=True,
        timeout=300,
    )
    return folder


@pytest.fixture(scope="session")
def small_clips(tmp_path_factory) -> Path:
    """Generated clips in a folder per class: 2 of each of 8 to learn from and 1 to test on."""
    folder = tmp_path_factory.mktemp("clips") / "data"
    repository = Path(__file__).resolve().parents[1]
    subprocess.run(
        [sys.executable, "tools/make_clips.py", "--out", folder, "--train", "2", "--test", "1", "--seed", "7"],
        cwd=repository,
        check=True,
        timeout=300,
    )
    return folder
