"""Names in any script, whatever the locale: programs start over in UTF-8 mode where they must."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
LEGACY = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
SCRIPT = """
import os, sys
from adatad_ds.system.utf8 import use_utf8
print("begun", os.getpid(), flush=True)
use_utf8()
print(sys.flags.utf8_mode, sys.argv[1:], flush=True)
"""


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("options", "environment", "starts", "mode"),
    [((), LEGACY, 2, 1), (("-X", "utf8=0"), LEGACY, 1, 0), ((), {"LC_ALL": "C.UTF-8"}, 1, 0)],
    ids=["legacy", "wanted so", "UTF-8"],
)
def test_started_over_where_the_locale_is_not_utf8(options, environment, starts, mode, tmp_path):
    script = tmp_path / "été.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n{SCRIPT}")
    lines = run(*options, script, "données 数据", "a b", **environment).splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["begun"] * starts
    assert len(set(lines[:-1])) == 1  # one process throughout: launchers know it by its number
    assert lines[-1].startswith(str(mode))
    if mode or "utf8" not in str(options):
        assert lines[-1] == f"{mode} ['données 数据', 'a b']"


def evaluated(folder: Path) -> Path:
    (folder / "evaluate").mkdir(parents=True)
    (folder / "evaluate/metrics.json").write_text(json.dumps({"average_mAP": 0.5, "mAP@0.5": 0.5}))
    return folder


def test_a_command_prints_names_in_any_script(tmp_path):
    assert "été 数据" in run("-m", "adatad_ds", "compare", evaluated(tmp_path / "été 数据"), **LEGACY)


def test_a_command_prints_names_that_are_not_utf8(tmp_path):
    folder = evaluated(tmp_path / os.fsdecode(b"caf\xe9"))
    strict = {"PYTHONIOENCODING": "utf-8:strict"}  # as under en_US.UTF-8
    assert "caf\\udce9" in run("-m", "adatad_ds", "compare", folder, **strict)
