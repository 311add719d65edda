from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch.profiler import record_function

from adatad_ds.errors import ConfigError
from adatad_ds.training.profiling import Profiler, parse_profile

PARTS = ("data", "forward", "backward", "step")

CPU = torch.device("cpu")


def loop(profiler: Profiler, steps: range) -> None:
    """A toy training whose parts are named as the trainer's are."""
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in steps:
        with profiler.step(step):
            with record_function("data"):
                inputs = torch.randn(4, 8)
            with record_function("forward"):
                loss = model(inputs).square().mean()
            with record_function("backward"):
                loss.backward()
            with record_function("step"):
                optimizer.step()
                optimizer.zero_grad()


def read(path: Path) -> list[dict]:
    with gzip.open(path, "rt") as file:
        return json.load(file)["traceEvents"]


@pytest.mark.parametrize(
    ("profiled", "run", "recorded"),
    [
        ("2:4", range(6), [2, 3]),
        ("0:1", range(3), [0]),  # no step before it to warm up in
        ("3:9", range(5), [3, 4]),  # the run ends before
        ("2:6", range(4, 8), [4, 5]),  # resumed in between
    ],
)
def test_the_trace_has_the_steps_and_their_parts(profiled, run, recorded, tmp_path):
    said: list[str] = []
    profiler = Profiler(
        steps=parse_profile(profiled), folder=tmp_path / "profile", rank=0, device=CPU, active=True, report=said.append
    )
    loop(profiler, run)
    profiler.close()
    events = read(tmp_path / "profile" / "rank0.pt.trace.json.gz")
    spans = [event for event in events if event.get("cat") == "user_annotation"]
    steps = [span for span in spans if span["name"].startswith("ProfilerStep#")]
    assert [span["name"] for span in steps] == [f"ProfilerStep#{step}" for step in recorded]
    for step in steps:
        inside = [
            span["name"]
            for span in sorted(spans, key=lambda span: span["ts"])
            if span["name"] in PARTS and step["ts"] <= span["ts"] <= step["ts"] + step["dur"]
        ]
        assert inside == list(PARTS)
    operators = {event["name"] for event in events if event.get("cat") == "cpu_op"}
    assert "aten::addmm" in operators
    table, where = said  # once, though closed twice
    assert table.startswith(f"steps {recorded[0]} to {recorded[-1]}, most time first")
    assert "aten::addmm" in table
    assert "rank0.pt.trace.json.gz" in where


def test_nothing_is_recorded_unless_asked(tmp_path):
    said: list[str] = []
    for steps, active in ((None, True), (range(1, 3), False)):
        profiler = Profiler(steps=steps, folder=tmp_path, rank=1, device=CPU, active=active, report=said.append)
        loop(profiler, range(4))
        profiler.close()
    assert list(tmp_path.iterdir()) == said == []


@pytest.mark.parametrize("run", [range(2), range(9, 12), range(4)])
def test_a_run_that_misses_the_steps_says_so(run, tmp_path):
    said: list[str] = []
    profiler = Profiler(steps=range(4, 6), folder=tmp_path, rank=0, device=CPU, active=True, report=said.append)
    loop(profiler, run)
    profiler.close()
    assert said == ["nothing was profiled: no step of 4:6 was run"]
    assert list(tmp_path.iterdir()) == []


def test_an_error_inside_a_step_is_not_hidden(tmp_path):
    profiler = Profiler(steps=range(2), folder=tmp_path, rank=0, device=CPU, active=True, report=lambda message: None)
    with pytest.raises(ValueError, match="of the step"), profiler.step(0):
        raise ValueError("of the step")
    profiler.close()
    assert len(read(tmp_path / "rank0.pt.trace.json.gz")) > 0


def test_start_and_stop():
    assert parse_profile("10:13") == range(10, 13)
    assert parse_profile("0:1") == range(1)
    for wrong in ("", "5", "a:b", ":3", "3:", "-1:2", "1:2:3", "1.5:2", "²:3"):
        with pytest.raises(ConfigError, match="must be START:STOP"):
            parse_profile(wrong)
    for empty in ("3:3", "4:2"):
        with pytest.raises(ConfigError, match="names no step"):
            parse_profile(empty)
