"""Annotated copy of a video: detections drawn over it, H.264 and AAC in MP4, which every browser plays.

Below the picture is a timeline of all shown detections with a line at the current time; in its corner are the current
detections.

H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from adatad_ds.data.decoding.frames import upright
from adatad_ds.data.decoding.video import (
    clock_zero_sec,
    decoded_frames,
    index_of,
    jumps_back,
    opened,
    packets_of,
    probe,
)
from adatad_ds.evaluation.plots.figures import class_looks
from adatad_ds.evaluation.plots.fonts import file_for

MOST_SHORT_SIDE = 720  # pixels; larger videos are scaled down
LEAST_WIDTH = 320  # smaller ones are scaled up, so that labels fit
MOST_LABELS = 4  # shown at a time, those with the highest scores
MOST_CLASSES = 7  # with their own colour and row; the next would be black like the background
QUALITY = "23"  # x264's constant rate factor
_COPIED_SOUND = ("aac", "mp3")
_DARK, _LIGHT = (24, 24, 24), (240, 240, 240)

Picture = NDArray[np.uint8]  # (H, W, 3)


def write_annotated(
    source: Path,
    target: Path,
    *,
    detections: Sequence[Mapping[str, Any]],
    scored: bool = True,
) -> None:
    """Write the annotated copy, with the source's clock in a player.

    Args:
        source: a video file.
        target: `.mp4`.
        detections: records with `segment` in seconds, `label`, `score`.
        scored: show the scores; False: they are annotations.

    Raises:
        VideoError: the source cannot be decoded.
    """
    info = probe(source)
    short = min(info.width, info.height)
    scale = max(min(1.0, MOST_SHORT_SIDE / short), LEAST_WIDTH / info.width)
    width, height = (2 * max(1, round(side * scale / 2)) for side in (info.width, info.height))
    overlay = Overlay(detections, width=width, height=height, duration_sec=info.duration_sec, scored=scored)
    with (
        opened(source, num_threads=2) as (container, stream),
        av.open(str(target), "w", options={"movflags": "faststart"}) as out,
    ):
        time_base = Fraction(stream.time_base or Fraction(1, 1000))
        encoder: Any = out.add_stream("libx264", rate=Fraction(info.fps).limit_denominator(1001))
        encoder.width, encoder.height, encoder.pix_fmt = width, height + overlay.strip, "yuv420p"
        encoder.codec_context.time_base = time_base
        encoder.options = {"crf": QUALITY, "preset": "veryfast"}
        zero_sec = clock_zero_sec(container)
        sound = Sound(container, out, zero_sec=zero_sec)
        zero = round(zero_sec / time_base)
        timed = index_of(source).times is not None  # else frames are counted, as where they are read
        count, latest = 0, None  # frames, and the time of the previous one
        for packet in chain(packets_of(container, [stream, *sound.streams]), (None,)):
            if packet is not None and packet.stream is not stream:
                sound.write(packet)
                continue
            for frame in decoded_frames(stream, packet):
                counted = round(count / info.fps / time_base)
                time = frame.pts - zero if timed and frame.pts is not None else counted
                count += 1
                if latest is not None and time <= latest:  # encoders need increasing times
                    continue
                latest = time
                picture = upright(frame, (width, height))
                annotated = av.VideoFrame.from_ndarray(overlay.over(picture, float(time * time_base)))
                annotated.pts, annotated.time_base = time, time_base
                out.mux(encoder.encode(annotated))
        out.mux(encoder.encode(None))
        sound.finish()


class Overlay:
    """Drawing over the pictures.

    Args:
        detections: records.
        width: width of the picture in pixels.
        height: height of the picture in pixels.
        duration_sec: length of the video.
        scored: as for `write_annotated`.
    """

    def __init__(
        self,
        detections: Sequence[Mapping[str, Any]],
        *,
        width: int,
        height: int,
        duration_sec: float,
        scored: bool,
    ) -> None:
        self._scored = scored
        self._detections = sorted(detections, key=lambda record: -record["score"])
        labels = list(dict.fromkeys(record["label"] for record in self._detections))
        self._looks = class_looks(labels, most=MOST_CLASSES)
        self._width, self._height = width, height
        self._per_sec = width / max(duration_sec, 1e-3)
        self._size = max(12, round(min(width, height) / 22))
        self._lane = max(4, self._size // 2)
        rows = {label: row for row, label in enumerate(labels[:MOST_CLASSES])}
        self.strip = 2 * ((self._lane * (len(rows) + 2)) // 2)
        self._timeline = self._draw_timeline(rows)
        self._shown: tuple[int, ...] | None = None
        self._box: Picture = np.zeros((0, 0, 3), np.uint8)

    def over(self, picture: Picture, seconds: float) -> Picture:
        """A picture (H, W, 3) with the detections at a time: (H + strip, W, 3)."""
        out = np.concatenate([picture, self._timeline])
        place = min(self._width - 2, max(0, int(seconds * self._per_sec)))
        out[self._height :, place : place + 2] = _LIGHT
        active = tuple(
            number
            for number, record in enumerate(self._detections)
            if record["segment"][0] <= seconds < record["segment"][1]
        )
        if active != self._shown:
            self._shown, self._box = active, self._draw_labels(active)
        height, width = min(self._box.shape[0], self._height), min(self._box.shape[1], self._width)
        out[:height, :width] = self._box[:height, :width]
        return out

    def _draw_timeline(self, rows: Mapping[str, int]) -> Picture:
        """All detections, one row per class; a higher score is brighter: (strip, W, 3)."""
        image = Image.new("RGB", (self._width, self.strip), _DARK)
        draw = ImageDraw.Draw(image)
        for record in reversed(self._detections):
            if record["label"] not in rows:
                continue
            start, end = (second * self._per_sec for second in record["segment"])
            top = self._lane * (rows[record["label"]] + 1)
            color = _mixed(self._looks[record["label"]].color, share=0.4 + 0.6 * min(record["score"], 1.0))
            draw.rectangle((start, top, max(end, start + 1), top + self._lane - 2), fill=color)
        return np.array(image)

    def _draw_labels(self, active: Sequence[int]) -> Picture:
        """The best of the active detections as lines of text: (h, w, 3), empty if none."""
        if not active:
            return np.zeros((0, 0, 3), np.uint8)
        shown = [self._detections[number] for number in active[:MOST_LABELS]]
        scores = [f" {record['score']:.2f}" if self._scored else "" for record in shown]
        lines = [f"{' '.join(record['label'].split())}{score}" for record, score in zip(shown, scores, strict=True)]
        fonts = [ImageFont.truetype(file_for(line), self._size) for line in lines]
        pad, step = self._size // 2, round(self._size * 1.35)
        width = round(max(font.getlength(line) for font, line in zip(fonts, lines, strict=True))) + self._size + 3 * pad
        image = Image.new("RGB", (width, step * len(lines) + pad), _DARK)
        draw = ImageDraw.Draw(image)
        for row, (record, line, font) in enumerate(zip(shown, lines, fonts, strict=True)):
            top = pad // 2 + row * step
            square = (pad, top + step // 6, pad + self._size - 2, top + step // 6 + self._size - 2)
            draw.rectangle(square, fill=self._looks[record["label"]].color)
            draw.text((2 * pad + self._size, top), line, font=font, fill=_LIGHT)
        return np.array(image)


class Sound:
    """A file's sound, if any: copied if MP4 players support its codec, else re-encoded.

    Args:
        container: the file.
        out: the copy.
        zero_sec: time in the file that becomes 0 in the copy.
    """

    def __init__(self, container: Any, out: Any, *, zero_sec: float) -> None:
        self._zero_sec = zero_sec
        self.streams = list(container.streams.audio[:1])
        self._out, self._stream, self._encoder, self._resampler = out, None, None, None
        self._latest: int | None = None  # time of the packet copied last
        self._next_sample: int | None = None  # after what has been encoded
        if self.streams and self.streams[0].codec_context.name in _COPIED_SOUND:
            self._stream = out.add_stream_from_template(self.streams[0])
        elif self.streams:
            rate = self.streams[0].rate or 48_000
            rate = rate if rate in (44_100, 48_000) else 48_000
            self._encoder = out.add_stream("aac", rate=rate, layout="stereo")
            self._resampler = av.AudioResampler(format="fltp", layout="stereo", rate=rate)

    def write(self, packet: Any) -> None:
        """Copy or re-encode a packet of the source."""
        if self._stream is not None and packet.dts is not None:
            self._copy(packet)
        elif self._resampler is not None and self._encoder is not None:
            for frame in decoded_frames(self.streams[0], packet):
                self._place(frame)
                for resampled in self._resampler.resample(frame):
                    self._out.mux(self._encoder.encode(resampled))

    def _copy(self, packet: Any) -> None:
        """Copy a packet; where the file's clock begins anew, it goes on after the packets before."""
        tick_sec = float(packet.time_base)
        time = packet.dts - round(self._zero_sec / tick_sec)
        if self._latest is not None and jumps_back(time, self._latest, tick_sec=tick_sec):
            coming = self._latest + max(packet.duration or 0, 1)
            self._zero_sec -= (coming - time) * tick_sec
            time = coming
        elif self._latest is not None:
            time = max(time, self._latest + 1)
        packet.pts = packet.dts = self._latest = time
        packet.stream = self._stream
        self._out.mux(packet)

    def _place(self, frame: Any) -> None:
        """Count a frame's time in samples, as the encoder cuts anew and ticks may be a packet long; never go back."""
        told = None if frame.pts is None else round((frame.pts * frame.time_base - self._zero_sec) * frame.sample_rate)
        begin = max((time for time in (told, self._next_sample) if time is not None), default=0)
        frame.pts, frame.time_base = begin, Fraction(1, frame.sample_rate)
        self._next_sample = begin + frame.samples

    def finish(self) -> None:
        """Flush the encoder."""
        if self._resampler is not None and self._encoder is not None:
            for resampled in self._resampler.resample(None):
                self._out.mux(self._encoder.encode(resampled))
            self._out.mux(self._encoder.encode(None))


def _mixed(color: str, *, share: float) -> tuple[int, ...]:
    """Blend a colour with the dark background."""
    return tuple(round(share * a + (1 - share) * b) for a, b in zip(ImageColor.getrgb(color), _DARK, strict=False))
