"""One HTML page per video: a player, a synchronised timeline of detections, filters by score and class."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from adatad_ds.data.decoding.video import opened
from adatad_ds.evaluation.operating_point import ShownFrom
from adatad_ds.evaluation.plots.figures import OTHER_COLOR, Look, class_looks
from adatad_ds.evaluation.video.subtitles import by_time

# FFmpeg's name of the container: its media type, and the codecs that Chromium, Firefox and Safari all play in it.
_PLAYED = {
    "mov,mp4,m4a,3gp,3g2,mj2": ("video/mp4", ("h264",)),
    "matroska,webm": ("video/webm", ("vp8", "vp9")),
}
ANNOTATED = "(annotated)"  # behind the label of what is no detection
_PIXELS = ("yuv420p", "yuvj420p")


def plays_in_browsers(path: Path) -> bool:
    """Whether every browser plays a file: H.264 in MP4, VP8 or VP9 in WebM, 8 bits, 4:2:0.

    Raises:
        VideoError: not a video.
    """
    with opened(path, num_threads=1) as (container, stream):
        _, codecs = _PLAYED.get(container.format.name, ("", ()))
        webm = container.format.name != "matroska,webm" or path.suffix.lower() == ".webm"  # Firefox plays no MKV
        return webm and stream.codec_context.name in codecs and stream.codec_context.pix_fmt in _PIXELS


def video_address(path: Path, *, folder: Path, most_bytes: int) -> str:
    """The video's address for a page in `folder`: a base64 data URL if the file is small, else its relative path."""
    if path.stat().st_size <= most_bytes:
        kind = "video/webm" if path.suffix.lower() == ".webm" else "video/mp4"
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    return quote(os.fsencode(os.path.relpath(path.resolve(), folder.resolve())))  # a name may not be UTF-8


def write_page(
    path: Path,
    *,
    name: str,
    video: str,
    duration_sec: float,
    detections: Sequence[Mapping[str, Any]],
    shown: ShownFrom | None,
    truths: Sequence[Mapping[str, Any]] = (),
    about: str = "",
    links: Sequence[tuple[str, str]] = (),
    looks: Mapping[str, Look] | None = None,
) -> None:
    """Write the page, which needs no network access.

    Args:
        path: the `.html` file.
        name: displayed name of the video.
        video: its address, see `video_address`.
        duration_sec: its length.
        detections: all records with `segment` in seconds, `label`, `score`.
        shown: initial score of the filter; None: all are annotations, without scores.
        truths: annotated segments to show beside the detections, of the same form without `score`.
        about: a line below the name.
        links: texts and addresses of other pages.
        looks: of the classes, where other pages show them, too; None: by the best score.
    """
    annotated = [
        {"segment": truth["segment"], "label": f"{truth['label']} {ANNOTATED}", "score": 1.0, "annotated": True}
        for truth in truths
    ]
    best: dict[str, float] = {}
    for record in (*detections, *annotated):
        best[record["label"]] = max(best.get(record["label"], 0.0), record["score"])
    labels = sorted(best, key=lambda label: (-best[label], label))
    if annotated:  # an action's rows follow each other
        labels.sort(key=lambda label: (label.removesuffix(f" {ANNOTATED}"), label.endswith(ANNOTATED)))
    looks = looks or class_looks([label for label in labels if not label.endswith(ANNOTATED)])
    content = {
        "name": name,
        "video": video,
        "duration_sec": duration_sec,
        "about": about,
        "links": links,
        "scored": shown is not None,
        "min_score": 0.0 if shown is None else shown.score,
        "reason": "" if shown is None else shown.reason,
        "classes": [
            {"label": label, "color": look.color, "hatch": look.hatch, "ink": look.ink}
            for label in labels
            for look in [looks.get(label, Look(OTHER_COLOR, ""))]
        ],
        "detections": by_time([*detections, *annotated]),
    }
    write_template(path, "page.html", content)


def write_template(path: Path, template: str, content: Mapping[str, Any]) -> None:
    """Write a page of this folder with its data."""
    text = (files("adatad_ds.evaluation.video") / template).read_text(encoding="utf-8")
    data = json.dumps(content).replace("<", "\\u003c")  # a label must not end the script
    path.write_text(text.replace("@DATA@", data), encoding="utf-8")
