"""Survey of a dataset: statistics of annotated segments, and suitable settings of window and pyramid.

Lengths in frames are in frames of the video file, at its own rate; "steps" are feature steps.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adatad_ds.config.loading import override
from adatad_ds.config.parsing import CLIP_FRAMES, literal
from adatad_ds.config.schema import Config
from adatad_ds.data.annotations import Video
from adatad_ds.data.inspection.scan import Scan
from adatad_ds.errors import DataError

TOLERANCE = 0.05  # between a file and its annotation, as in training
EVEN_INTERVALS = 1.5  # mean intervals that a frame may deviate from a constant rate; more: the rate varies
SHORTEST_QUANTILE, LONGEST_QUANTILE = 0.05, 0.99  # definition of "short" and "long" segments
# Tried in this order: steps per short segment, and window length in long segments. With windows that overlap by half,
# a window of two lengths contains each segment completely.
WISHES = ((4.0, 2.0), (2.0, 2.0), (2.0, 1.0))
FEWEST_STEPS = 64  # a shorter window shows too little background
FIRST_RANGE_STEPS = 4  # where the first level's regression range ends
FEWEST_LEVELS, MOST_LEVELS = 4, 8
UNBOUNDED_STEPS = 10000  # end of the last level's range, as published
FRAME_GAP_SEC = 0.16  # maximum between two input frames of the backbone, which was pretrained with about 0.13
LEAST_MAX_FRAMES = 4 * CLIP_FRAMES


@dataclass(frozen=True, eq=False)
class Lengths:
    """Segments of one subset, all arrays (G,).

    Attributes:
        sec: lengths in seconds.
        frames: lengths in frames of their files.
        video_share: lengths as a share of their video's duration.
    """

    sec: NDArray[np.float64]
    frames: NDArray[np.float64]
    video_share: NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """Fit of segments to a recipe's window and pyramid, as shares of all segments.

    Attributes:
        outside: half their length is in no level's regression range.
        longer: longer than a window.
        under_step: shorter than one feature step, so that they may contain no grid point.
        per_level: half their length is in this level's range, first level first.
    """

    outside: float
    longer: float
    under_step: float
    per_level: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """Suggested window and pyramid for a dataset; fields as in the config, `levels` is head.arch[2] + 1."""

    window_size: int
    frames_per_feature: int
    feature_stride_frames: int
    levels: int
    regression_range: tuple[tuple[int, int], ...]
    reasons: tuple[str, ...]

    def assignments(self, config: Config) -> list[str]:
        """Assignments for `--set` that apply this to a recipe."""
        convolutions, blocks, _ = config.head.arch
        ranges = ",".join(f"[{least},{greatest}]" for least, greatest in self.regression_range)
        return [
            "data.sampling=random_trunc",
            f"data.window_size={self.window_size}",
            f"data.frames_per_feature={self.frames_per_feature}",
            f"data.feature_stride_frames={self.feature_stride_frames}",
            f"head.arch=[{convolutions},{blocks},{self.levels - 1}]",
            f"head.regression_range=[{ranges}]",
        ]


def choose_subsets(segments: Mapping[str, int], *, train: str | None, test: str | None) -> tuple[str, str]:
    """Choose the training and the test subset: as requested, else by their names and sizes.

    Args:
        segments: number of segments by subset, in the file's order.
        train: the requested training subset, or None.
        test: the requested test subset, or None.

    Raises:
        DataError: unknown subset, or a training subset without segments.
    """
    for option, asked in (("--train-subset", train), ("--test-subset", test)):
        if asked is not None and asked not in segments:
            raise DataError(f"{option} {asked}: there is no such subset; known: {', '.join(segments)}")
    filled = [name for name, count in segments.items() if count and name != test] or list(segments)
    if train is None:
        train = next(
            (name for name in filled if name.lower().startswith("train")), max(filled, key=segments.__getitem__)
        )
    if not segments[train]:
        raise DataError(f"no video of subset {train!r} has an action to train on; choose another with --train-subset")
    if test is None:
        others = [name for name in filled if name != train]
        known = [name for name in others if name.lower().startswith(("val", "test"))]
        test = (known or others or [train])[0]
    return train, test


def uneven_rate(scan: Scan) -> str | None:
    """Describe a variable frame rate, if it is one: such files are read by their frames' own times."""
    if not scan.fps or scan.drift_sec * scan.fps <= EVEN_INTERVALS:
        return None
    return (
        f"variable frame rate: {scan.shortest_sec:.3f} to {scan.longest_sec:.3f} s between frames, up to "
        f"{scan.drift_sec:.2f} s off a constant rate of {scan.fps:.3g} per second"
    )


def disagreements(video: Video, scan: Scan) -> list[str]:
    """Contradictions between an annotation and its file, one phrase each."""
    found = []
    compared = [
        ("duration", video.duration_sec, scan.duration_sec, "s"),
        ("frame", video.num_frames, scan.packets, "frames"),
        ("fps", video.fps, scan.fps, "frames per second"),
    ]
    for field, annotated, real, unit in compared:
        if annotated is not None and real and abs(annotated / real - 1) > TOLERANCE:
            found.append(f"{field}: annotated {annotated:.5g}, the file has {real:.5g} {unit}")
    beyond = sum(action.start_sec >= scan.duration_sec for action in video.actions)
    if beyond and scan.duration_sec:
        found.append(f"{beyond} of its {len(video.actions)} actions begin after the file's end")
    return found


def frame_rate(video: Video, scan: Scan | None) -> float | None:
    """Frame rate that training uses to turn a video's seconds into frames; None if unknown."""
    if video.num_frames is not None:
        return video.num_frames / video.duration_sec
    return video.fps or (scan.fps if scan is not None and scan.error is None else None)


def frames_of(videos: Iterable[Video], rates: Mapping[str, float]) -> list[float]:
    """File frames of each video; `rates`: frame rate by video name, replaced by the median if missing."""
    usual = _usual(rates)
    return [video.duration_sec * rates.get(video.name, usual) for video in videos]


def measure(videos: Iterable[Video], rates: Mapping[str, float]) -> Lengths:
    """Lengths of all segments; `rates` as in `frames_of`."""
    usual = _usual(rates)
    rows = [
        (length, length * rates.get(video.name, usual), length / video.duration_sec)
        for video in videos
        for length in (action.end_sec - action.start_sec for action in video.actions)
    ]
    columns = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return Lengths(sec=columns[0], frames=columns[1], video_share=columns[2])


def count_classes(videos: Mapping[str, Sequence[Video]], classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Number of instances: subset -> class -> number."""
    counts = {}
    for subset, members in videos.items():
        found = Counter(action.label for video in members for action in video.actions)
        counts[subset] = {label: found[label] for label in classes}
    return counts


def fit(lengths: Lengths, config: Config) -> Fit:
    """Measure how segments fit a recipe's window and pyramid."""
    data = config.data
    if data.sampling == "resize":
        steps = lengths.video_share * data.window_size
    else:
        assert data.feature_stride_frames is not None
        steps = lengths.frames / data.feature_stride_frames
    half = steps / 2
    inside = [(half >= least) & (half < greatest) for least, greatest in config.head.regression_range]
    return Fit(
        outside=_share(~np.any(inside, axis=0)),
        longer=_share(steps > data.window_size),
        under_step=_share(steps < 1),
        per_level=tuple(_share(level) for level in inside),
    )


def suggest(lengths: Lengths, *, longest_video_frames: float, max_frames: int) -> Suggestion:
    """Suggest window and pyramid for the segments of a training subset.

    Args:
        lengths: lengths of the segments, at least one.
        longest_video_frames: upper limit of a useful window.
        max_frames: maximum frames per window, which determine memory and time; at least 64.

    Raises:
        DataError: no segment, or `max_frames` is too small.
    """
    if len(lengths.frames) == 0:
        raise DataError("the training subset has no segment to choose a window by")
    if max_frames < LEAST_MAX_FRAMES:
        raise DataError(f"a window of at most {max_frames} frames is too short; {LEAST_MAX_FRAMES} is the least")
    short = float(np.quantile(lengths.frames, SHORTEST_QUANTILE))
    long = float(np.quantile(lengths.frames, LONGEST_QUANTILE))
    for steps_of_short, held in WISHES:
        stride = _nice(short / steps_of_short)
        window = max(long, min(held * long, longest_video_frames))
        size, levels = _window_size(window, stride, long)
        if size <= max_frames:
            break
    else:
        # Long segments have priority: a window that cuts them loses them, a coarse stride only blurs short ones.
        stride = math.ceil(long / max_frames)
        unit = 2 ** max(0, stride.bit_length() - 3)  # its multiples have divisors for sampling frames
        stride = -(-stride // unit) * unit
        size, levels = _window_size(long, stride, long)
        while size > max_frames:
            stride += unit
            size, levels = _window_size(long, stride, long)
    rate = float(np.median(lengths.frames / lengths.sec))
    per_feature = _frames_per_feature(stride, size, rate=rate, max_frames=max_frames)
    ends = [FIRST_RANGE_STEPS * 2**level for level in range(levels - 1)]
    return Suggestion(
        window_size=size,
        frames_per_feature=per_feature,
        feature_stride_frames=stride,
        levels=levels,
        regression_range=tuple(zip([0, *ends], [*ends, UNBOUNDED_STEPS], strict=True)),
        reasons=_reasons(lengths, stride=stride, size=size, per_feature=per_feature, levels=levels, rate=rate),
    )


def section(config: Config, settings: Mapping[str, str], suggestion: Suggestion) -> list[str]:
    """Assignments for `--set` with a user's data and the suggested window, checked against the recipe.

    Args:
        config: the recipe's config.
        settings: values by key, e.g. `data.videos`, used unchanged.
        suggestion: suggested window and pyramid.

    Raises:
        ConfigError: the recipe cannot be run with them.
    """
    written = [
        f"{key}={value}" if literal(value) == value and value == value.strip() else f"{key}={value!r}"
        for key, value in settings.items()
    ]
    assignments = written + suggestion.assignments(config)
    override(config, assignments)
    return assignments


def _usual(rates: Mapping[str, float]) -> float:
    return float(np.median(list(rates.values()))) if rates else 25.0


def _nice(stride: float) -> int:
    """The largest of 1, 2, 3, 4, 6, 8, 12, 16, ... that is not above; these have divisors for sampling frames."""
    power = 2 ** max(0, math.floor(math.log2(max(stride, 1))))
    return power * 3 // 2 if power > 1 and power * 3 // 2 <= stride else power


def _window_size(window: float, stride: int, long: float) -> tuple[int, int]:
    """Feature steps that hold `window` frames, and pyramid levels for segments up to `long` frames."""
    # the last range begins at FIRST_RANGE_STEPS * 2**(levels - 2) steps; half of a long segment is at most twice that
    halvings = math.ceil(math.log2(max(long / stride / 2 / FIRST_RANGE_STEPS, 1)))
    levels = min(MOST_LEVELS, max(FEWEST_LEVELS, halvings + 1))
    # steps * frames_per_feature must be whole clips, and steps whole strides of the last level
    multiple = math.lcm(CLIP_FRAMES, 2 ** (levels - 1))
    steps = max(FEWEST_STEPS, math.ceil(window / stride))
    return -(-steps // multiple) * multiple, levels


def _frames_per_feature(stride: int, size: int, *, rate: float, max_frames: int) -> int:
    """The smallest number of frames per step that are close enough in time, within the window's limit."""
    allowed = [n for n in range(1, stride + 1) if stride % n == 0 and size * n <= max_frames]
    close = [n for n in allowed if stride / n / rate <= FRAME_GAP_SEC]
    return close[0] if close else allowed[-1]


def _reasons(
    lengths: Lengths, *, stride: int, size: int, per_feature: int, levels: int, rate: float
) -> tuple[str, ...]:
    """One line per setting; `rate` is the frame rate of a typical video."""
    short_sec, long_sec = np.quantile(lengths.sec, (SHORTEST_QUANTILE, LONGEST_QUANTILE))
    step_sec = stride / rate
    steps_of_short = np.quantile(lengths.frames, SHORTEST_QUANTILE) / stride
    advice = ""
    if steps_of_short < WISHES[-1][0]:
        advice = "; this is few, and boundaries will be blurred" + (
            "; --max-frames allows longer windows" if stride > 1 else ""
        )
    return (
        f"data.window_size={size}: {size * step_sec:.1f} s (at {rate:.4g} frames per second), where 99 % of the "
        f"segments are at most {long_sec:.1f} s; a multiple of {2 ** (levels - 1)}, the last pyramid level's stride, "
        f"and of {CLIP_FRAMES}",
        f"data.feature_stride_frames={stride}: a step is {step_sec:.3g} s, where 95 % of the segments have at least "
        f"{short_sec:.2f} s, {steps_of_short:.1f} steps{advice}",
        f"data.frames_per_feature={per_feature}: the backbone sees {size * per_feature} frames (whole clips of "
        f"{CLIP_FRAMES}), one every {step_sec / per_feature:.3g} s; memory and time grow with their number",
        f"head.arch, third number={levels - 1}: {levels} pyramid levels; each halves the rate and handles segments "
        "twice as long",
        f"head.regression_range: half-lengths in steps, doubling from {FIRST_RANGE_STEPS} on; the last level handles "
        f"segments above {2 * FIRST_RANGE_STEPS * 2 ** (levels - 2) * step_sec:.1f} s",
    )


def _share(chosen: Any) -> float:
    """Share of True values; 0 for an empty array."""
    return float(np.mean(chosen)) if np.size(chosen) else 0.0
