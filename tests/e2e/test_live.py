"""`predict --live`: the detections of the file, told once, in bounded memory; lines of JSON and a page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from adatad_ds import predict
from adatad_ds.data.live.source import LiveSource
from adatad_ds.inference.live import watch
from adatad_ds.predict import load_detector
from tests.support.browser import loaded
from tests.support.exports import make_export
from tests.support.launch import REPOSITORY, environment
from tests.support.videos import write_video

LEAST = 0.6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # one window at a time: what shares a batch changes the last bits
    return make_export(tmp_path_factory.mktemp("export") / "mine.safetensors", test__batch=1, test__max_per_video=2000)


def records_of(messages: list[dict]) -> list[dict]:
    found = [message for message in messages if message["type"] == "detection"]
    return sorted(
        ({key: message[key] for key in ("segment", "label", "score")} for message in found), key=lambda r: str(r)
    )


@pytest.mark.parametrize("changes", [(), ("test.min_score=0.65",), ("test.pre_nms_thresh=0.65",)], ids=str)
def test_the_detections_are_those_of_the_file(checkpoint: Path, tmp_path: Path, changes: tuple[str, ...]):
    """Each once, most of them long before the end, and what was called final has not changed."""
    path = write_video(tmp_path / "match.ts", frames=300)
    detector = load_detector(checkpoint, overrides=changes)
    right = [found.record() for found in detector.detect(path) if found.score >= LEAST]
    source = LiveSource(address=str(path), idle_sec=0)
    messages = list(watch(detector, source, least_score=LEAST, reach_sec=4.0, max_delay_sec=1000))
    assert records_of(messages) == sorted(right, key=lambda r: str(r))
    assert len(right) > 20
    found = [message for message in messages if message["type"] == "detection"]
    assert all(message["final"] for message in found)
    last_window = max(place for place, message in enumerate(messages) if message["type"] == "window")
    early = sum(message["type"] == "detection" for message in messages[:last_window])
    assert early > len(right) / 3
    (start,) = [message for message in messages if message["type"] == "start"]
    assert start["final_after_sec"] == [10.4, 13.6]
    assert all(message["delay_sec"] >= 10.4 - 0.2 - 0.02 for message in messages[:last_window] if "final" in message)


def test_lines_and_a_page_from_standard_input(checkpoint: Path, tmp_path: Path):
    content = write_video(tmp_path / "match.ts", frames=150).read_bytes()
    command = [sys.executable, "adatad_ds/predict.py", "-", "--live", "--checkpoint", str(checkpoint)]
    command += ["--score", str(LEAST), "--html", "-o", str(tmp_path / "out"), "--device", "cpu"]
    done = subprocess.run(command, input=content, cwd=REPOSITORY, env=environment(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = [message["type"] for message in messages]
    assert (kinds[0], kinds[-1]) == ("start", "end")
    assert kinds.count("detection") > 5
    assert b"detections are final 7.2 to 10.4 s after their end" in done.stderr
    page = loaded(tmp_path / "out" / "live.html")
    told = re.search(r"(\d+) detections; ended", page)
    assert told
    assert int(told[1]) == kinds.count("detection")
    (final,) = re.findall(r'<tbody id="final">(.*?)</tbody>', page)
    assert final.count("<tr>") == min(200, kinds.count("detection"))
    assert "standard input" in page
    # it asks for its data again as long as the stream goes on
    data = tmp_path / "out" / "live.js"
    data.write_text(data.read_text().replace('"ended": true', '"ended": false'))
    updates = re.search(r'data-updates="(\d+)"', loaded(tmp_path / "out" / "live.html"))
    assert updates
    assert int(updates[1]) >= 2


def test_memory_stays_flat(checkpoint: Path):
    """Ten minutes of a generated stream: the second half takes no more than the first."""
    code = f"""
import psutil
from adatad_ds.data.live.source import LiveSource
from adatad_ds.inference.live import watch
from adatad_ds.predict import load_detector

video = "testsrc2=size=64x48:rate=5:duration=600,format=yuv420p"
source = LiveSource(address=video, format="lavfi", reconnect_sec=0)
sizes, held = [], 0
for message in watch(load_detector({str(checkpoint)!r}, device="cpu"), source, least_score={LEAST}, max_delay_sec=30):
    if message["type"] == "window":
        sizes.append(psutil.Process().memory_info().rss / 1e6)
        held = max(held, message["held"])
print(len(sizes), max(sizes[20:len(sizes) // 2]), max(sizes[len(sizes) // 2:]), held)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    count, first, second, held = map(float, done.stdout.split()[-4:])
    assert count > 80
    assert second < first + 8, (first, second)
    assert held < 2000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.ts", "b.ts"], "--live accepts one stream, not 2"),
        (["a.ts", "--annotated"], "--annotated copies a whole video"),
        (["a.ts", "--input-option", "tcp"], "--input-option tcp: expected NAME=VALUE"),
        (["none.ts"], "none.ts: No such file or directory"),
        (["none.ts", "--set", "data.sampling=resize", "--set", "data.feature_stride_frames=none"], "no end"),
    ],
)
def test_what_cannot_be_meant(checkpoint: Path, capsys, arguments: list[str], said: str):
    assert predict.main([*arguments, "--live", "--checkpoint", str(checkpoint)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said in line
