"""The commands of docs/guides/own_data.md, as they stand there, on fewer and shorter videos and for one epoch."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.launch import REPOSITORY, finish, launched
from tests.support.pool import forked

FEWER = ("--train 24 --test 6", "--train 10 --test 3 --seconds 5 7")
SHORT = {
    "train.repeats": 1,
    "train.stop_epoch": 1,
    "train.schedule_epochs": 1,
    "train.warmup_epochs": 0,
    "train.eval_from_epoch": 1,
    "train.eval_every": 1,
    "train.eval_pictures": "false",
    "train.log_every_steps": 1,
    "data.workers": 0,
}


def documented(folder: Path) -> list[list[str]]:
    """The words of each command of the page's first block, with its paths in a folder."""
    page = (REPOSITORY / "docs/guides/own_data.md").read_text(encoding="utf-8")
    block = page.split("```bash\n")[1].split("```")[0]
    assert FEWER[0] in block
    lines = block.replace(*FEWER).replace("\\\n", " ").splitlines()
    rooted = ("my_data", "runs/")
    return [
        [str(folder / word) if word.startswith(rooted) else word for word in shlex.split(line)]
        for line in lines
        if line
    ]


def runnable(words: list[str]) -> list[str]:
    """The same command in a process of the pool; a training in one short epoch."""
    if words[:2] == ["xargs", "-a"]:
        options = shlex.split(Path(words[2]).read_text(encoding="utf-8"))
        assert words[3] == "deepspeed"
        short = [word for name, value in SHORT.items() for word in ("--set", f"{name}={value}")]
        return launched("pool", 1, [*words[4:], *options, *short])
    assert words[0] == "adatad-ds"
    return forked(1, ["-m", "adatad_ds", *words[1:]])


def actions(video: Mapping[str, Any]) -> list[tuple[float, float, str]]:
    """Start, end and label of each action, to the microsecond."""
    segments = [(*action["segment"], action["label"]) for action in video["annotations"]]
    return sorted((round(start, 6), round(end, 6), label) for start, end, label in segments)


@pytest.mark.slow
def test_the_documented_commands_give_a_detector(tmp_path: Path):
    commands = documented(tmp_path)
    assert [words[1] for words in commands if words[0] == "adatad-ds"] == [
        *("generate", "prepare-data", "check-data", "evaluate", "report"),
    ]
    printed = [finish(runnable(words)) for words in commands]

    made = json.loads((tmp_path / "my_data/annotations.json").read_text(encoding="utf-8"))["database"]
    read = json.loads((tmp_path / "my_data/own.json").read_text(encoding="utf-8"))["database"]
    with (tmp_path / "my_data/labels.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == sum(len(video["annotations"]) for video in made.values())
    for name, video in made.items():  # through the table and back
        assert read[name]["duration"] == pytest.approx(video["duration"], abs=0.05)
        assert actions(read[name]) == actions(video)
    assert {video["subset"] for video in read.values()} == {"training", "validation"}
    assert "13 videos" in printed[1]

    assert (tmp_path / "runs/page/index.html").is_file()
    run = tmp_path / "runs/own_data"
    metrics = json.loads((run / "evaluate/metrics.json").read_text(encoding="utf-8"))
    page = (run / "report/report.html").read_text(encoding="utf-8")
    assert f"<b>{100 * metrics['average_mAP']:.2f} %</b>average mAP, evaluated" in page
    assert list((run / "report/videos").glob("*.html"))
