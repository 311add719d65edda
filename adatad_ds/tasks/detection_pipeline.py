"""From test windows to each video's detections: forward passes spread over ranks, merged, suppressed once a video."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial, reduce
from typing import Any

import torch
from torch import Tensor

from adatad_ds.config.schema import Config
from adatad_ds.data.annotations import ANY_ACTION, Video
from adatad_ds.data.batch import Batch
from adatad_ds.data.decoding.damage import Damage, merged
from adatad_ds.detection.decoding import Candidates, clip_to_video, decode_segments, merge_candidates, select_candidates
from adatad_ds.detection.suppression import suppress
from adatad_ds.distributed.mesh import Mesh
from adatad_ds.distributed.world import World
from adatad_ds.errors import DataError
from adatad_ds.evaluation.candidates_file import VideoCandidates
from adatad_ds.evaluation.detections_file import to_records
from adatad_ds.evaluation.external_classifier import VideoScores, fuse, read_video_scores
from adatad_ds.evaluation.metrics import Metrics, evaluate_detections
from adatad_ds.models.detector import detector_points
from adatad_ds.models.heads.interface import PointOutputs

Results = dict[str, list[dict[str, Any]]]  # video -> detections as the community's format has them


@torch.no_grad()
def find_candidates(
    *,
    forward: Callable[..., PointOutputs],
    batches: Iterable[Batch],
    config: Config,
    mesh: Mesh,
    report: Callable[[str], None],
) -> dict[str, VideoCandidates]:
    """Candidates of every video with readable windows, by name, on every rank.

    A collective; every rank must have the same number of batches. `finish` makes detections of them.

    Args:
        forward: frames (B, F, H, W, 3) uint8, or features (B, T, C), and valid steps (B, T) to predictions; of an
            ensemble also `more_frames`.
        batches: this rank's share of the test windows.
        config: the run's config.
        mesh: the ranks.
        report: told about videos that could not be read.
    """
    world, test = mesh.world, config.test
    points_of = cache(lambda steps: detector_points(config, device=world.device, steps=steps))  # one kind, as a rule
    own: dict[str, list[Candidates]] = {}
    durations: dict[str, float] = {}
    damage: dict[str, Damage | None] = {}
    failed: set[str] = set()
    for own_batch in world.together(batches):
        batch = own_batch.blank_unreadable(mesh.errors_over_time(own_batch.errors))
        predictions = forward(*batch.inputs(world.device))
        points = points_of(batch.valid.shape[1])
        scores = predictions.class_logits.sigmoid()
        for index, video in enumerate(batch.videos):
            damage[video] = merged(damage.get(video), batch.damage[index])
            if batch.padding[index] or mesh.temporal_rank:  # the first of each temporal group tells
                continue
            error = batch.errors[index]
            if error is not None:
                failed.add(error)
            # differs: the published code skips threshold and limit where there is one class; what scores less than
            # the threshold could only vote, by that score.
            candidates = select_candidates(
                scores=scores[index],
                valid=predictions.valid[index],
                segments_of=partial(_segments_of, predictions, points, index),
                grid=batch.grids[index],
                score_thresh=test.pre_nms_thresh,
                topk=test.pre_nms_topk,
                levels=points[:, 3].unique_consecutive(return_counts=True)[1].tolist() if test.topk_per_level else (),
                min_duration=test.min_duration_steps,
            )
            own.setdefault(video, []).append(candidates)
            durations[video] = batch.grids[index].duration_sec
    for error in sorted(set().union(*world.gather(failed))):
        report(f"no detections: {error}")

    by_video: dict[str, list[Candidates]] = {}
    gathered = world.gather((own, durations, damage))
    for part, part_durations, _ in gathered:
        durations |= part_durations
        for video, candidates in part.items():
            by_video.setdefault(video, []).extend(candidates)
    found = {}
    for video in sorted(by_video):
        missing = reduce(merged, (part_damage.get(video) for _, _, part_damage in gathered), None)
        found[video] = VideoCandidates(
            merge_candidates(by_video[video]), duration_sec=durations[video], damage=str(missing) if missing else ""
        )
    return found


def _segments_of(predictions: PointOutputs, points: Tensor, window: int, point: Tensor, label: Tensor) -> Tensor:
    """Segments (N, 2) in grid units of points (N,) and classes (N,) of a window."""
    point, label = point.to(points.device), label.to(points.device)
    return decode_segments(points[point], predictions.distances_of(torch.full_like(point, window), point, label))


def damaged_videos(candidates: Mapping[str, VideoCandidates]) -> dict[str, str]:
    """One line per damaged video, by name: what its file lacks."""
    return {video: found.damage for video, found in candidates.items() if found.damage}


def finish(
    candidates: Mapping[str, VideoCandidates],
    *,
    videos: Sequence[str],
    classes: Sequence[str],
    config: Config,
    world: World,
    external: VideoScores | None = None,
) -> Results:
    """From candidates to detections of all `videos`: clipped, suppressed, given external classes.

    A collective: each rank does its share of the videos. Candidates of other videos are left out; a video without any
    gets an empty list.
    """
    mine = {
        video: _finish(candidates[video], video=video, classes=classes, config=config, external=external)
        for video in sorted(candidates.keys() & set(videos))[world.rank :: world.size]
    }
    found = {video: records for part in world.gather(mine) for video, records in part.items()}
    return {video: found.get(video, []) for video in videos}


def external_scores(config: Config, *, videos: Sequence[Video], classes: Sequence[str]) -> VideoScores | None:
    """The video-level class scores that `test.external_scores` names, for these videos; None without.

    Args:
        config: the run's config.
        videos: those evaluated, with their annotated labels.
        classes: of the detector; there must be only one.

    Raises:
        DataError: the file does not fit, or the detector tells classes apart itself.
    """
    test = config.test
    if not test.external_scores:
        return None
    if len(classes) != 1:
        raise DataError(
            f"test.external_scores gives a class-agnostic detector its classes, but this one has {len(classes)} of its "
            "own; leave it empty"
        )
    return read_video_scores(
        test.external_scores,
        layout=test.external_layout,
        topk=test.external_topk,
        videos=[video.name for video in videos],
        labels=sorted({action.label for video in videos for action in video.actions}),
    )


def measure(results: Mapping[str, Sequence[Mapping[str, Any]]], *, videos: Sequence[Video], config: Config) -> Metrics:
    """Mean average precision and recall of results against the videos' annotations.

    Without an external classifier, a class-agnostic detector is measured on any action.
    """
    any_action = config.data.class_agnostic and not config.test.external_scores
    truth = {
        video.name: [
            (action.start_sec, action.end_sec, ANY_ACTION if any_action else action.label) for action in video.actions
        ]
        for video in videos
    }
    return evaluate_detections(results, truth, tiou=config.test.tiou, recall_topk=config.test.recall_topk)


def _finish(
    found: VideoCandidates, *, video: str, classes: Sequence[str], config: Config, external: VideoScores | None
) -> list[dict[str, Any]]:
    """One video's candidates to its detections."""
    test = config.test
    candidates = found.candidates
    if config.data.sampling == "random_trunc" and not config.data.test_whole_videos:
        # As published: windows' detections are clipped at once, those of whole videos after overlaps were judged.
        candidates = clip_to_video(candidates, duration_sec=found.duration_sec)
    # differs: the published code has by now rounded sliding windows' segments to 0.01 s and scores to 0.0001, as it
    # keeps each window's detections for JSON; here they are rounded once, when they are written.
    kept = suppress(
        candidates,
        method=test.suppression,
        sigma=test.sigma,
        tiou=test.tiou_suppression,
        min_score=test.min_score,
        max_per_video=test.max_per_video,
        per_class=test.per_class,
        voting_thresh=test.voting_thresh,
    )
    kept = clip_to_video(kept, duration_sec=found.duration_sec)
    if external is not None:
        return to_records(fuse(kept, video, external), external.classes)
    return to_records(kept, classes)
