"""Data sets that `adatad-ds generate` writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.launch import REPOSITORY


def generated(kind: str, folder: Path, *options: str, train: int, test: int) -> Path:
    """`kind`: videos or clips; so many to learn from and to test on, of clips in each class."""
    command = [sys.executable, "-m", "adatad_ds", "generate", kind, "--out", str(folder)]
    command += ["--train", str(train), "--test", str(test), "--seed", "7", *options]
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=300)
    return folder
