"""A page as a browser has it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path


def loaded(page: Path, fragment: str = "", *, flags: Sequence[str] = ()) -> str:
    """The page as Chromium has it a second after it was opened."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *flags]
    command += ["--virtual-time-budget=1000", "--dump-dom", f"{page.resolve().as_uri()}{fragment}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "cannot be played" not in line]
    assert not errors, errors
    return done.stdout
