"""The clone that this package is run from, or the folder that it is installed in."""

from __future__ import annotations

from pathlib import Path

CLONE = Path(__file__).resolve().parents[2]
DS_CONFIGS = CLONE / "ds_configs"
