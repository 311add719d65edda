"""Copies with annotations in the picture: sound and pictures stay together, whatever the file's own times are like."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from adatad_ds.data.decoding.video import probe
from adatad_ds.evaluation.video.overlay import write_annotated
from tests.support.videos import write_video

TONE_SEC = (1.0, 2.0)


def write_with_tone(path: Path, *, codec: str, rate: int, seconds: int = 6, fps: int = 25) -> Path:
    """Pictures, and stereo sound that is silent but within TONE_SEC."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream(codec, rate=rate, layout="stereo")
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 176, 96, "yuv420p"
        time_sec = np.arange(seconds * rate) / rate
        audible = (time_sec >= TONE_SEC[0]) & (time_sec < TONE_SEC[1])
        tone = np.tile(0.8 * audible * np.sin(2 * np.pi * 440 * time_sec), (2, 1)).astype(np.float32)
        resampler = av.AudioResampler(format=sound.codec_context.format, layout="stereo", rate=rate)
        packets = []
        for start in range(0, tone.shape[1], 1024):
            piece = np.ascontiguousarray(tone[:, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="stereo")
            frame.rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            packets += [packet for part in resampler.resample(frame) for packet in sound.encode(part)]
        packets += sound.encode(None)
        for index in range(seconds * fps):
            picture = av.VideoFrame.from_ndarray(np.full((96, 176, 3), index, np.uint8))
            packets += stream.encode(picture)
        packets += stream.encode(None)
        for packet in sorted(packets, key=lambda packet: float(packet.dts * packet.time_base)):
            container.mux(packet)
    return path


def audible_sec(path: Path) -> tuple[float, float]:
    """From when to when a file can be heard."""
    loud = []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            begin_sec = float(frame.pts * frame.time_base)
            loud += [begin_sec + at / frame.sample_rate for at in np.flatnonzero(abs(frame.to_ndarray()[0]) > 0.3)]
    return min(loud), max(loud)


@pytest.mark.parametrize(
    ("suffix", "codec", "rate"),
    [
        (".avi", "mp3", 44_100),  # AVI's unit of time is a packet, longer than the copy's
        (".avi", "ac3", 48_000),
        (".mpg", "ac3", 48_000),  # two packets of every 50 have the same time
        (".mkv", "flac", 44_100),
    ],
)
def test_sound_stays_where_it_was(tmp_path: Path, suffix: str, codec: str, rate: int):
    source = write_with_tone(tmp_path / f"source{suffix}", codec=codec, rate=rate)
    copy = tmp_path / "copy.mp4"
    write_annotated(source, copy, detections=[])
    assert audible_sec(copy) == pytest.approx(TONE_SEC, abs=0.06)


@pytest.mark.parametrize("codec", ["aac", "mp2"])  # copied, and coded anew
def test_a_clock_that_begins_anew_goes_on(tmp_path: Path, codec: str):
    part = write_with_tone(tmp_path / "part.ts", codec=codec, rate=44_100, seconds=3)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(2 * part.read_bytes())
    copy = tmp_path / "copy.mp4"
    write_annotated(joined, copy, detections=[])
    assert probe(copy).duration_sec == pytest.approx(6, abs=0.05)
    assert audible_sec(copy) == pytest.approx((TONE_SEC[0], 3 + TONE_SEC[1]), abs=0.1)


@pytest.mark.parametrize("fps", [2, 25])
def test_no_picture_is_left_out_where_times_are_not_those_of_pictures(tmp_path: Path, fps: int):
    """AVI numbers packets; of H.264 with B-frames these are not in the order of its pictures."""
    source = write_video(tmp_path / "source.avi", frames=30, fps=fps, b_frames=2)
    copy = tmp_path / "copy.mp4"
    write_annotated(source, copy, detections=[])
    assert probe(copy).num_frames == 30
    assert probe(copy).duration_sec == pytest.approx(30 / fps)
