"""Load a trained detector and run it on video files: the Python API behind predict.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from adatad_ds.config.schema import Config, ParallelConfig
from adatad_ds.data.annotations import ANY_ACTION
from adatad_ds.data.batch import Batch
from adatad_ds.data.window_stream import lone_video, stream_batches, windows_of_file
from adatad_ds.distributed.mesh import Mesh
from adatad_ds.distributed.world import World
from adatad_ds.errors import ConfigError
from adatad_ds.evaluation.candidates_file import VideoCandidates
from adatad_ds.evaluation.operating_point import OperatingPoint
from adatad_ds.inference import trained_model
from adatad_ds.inference.placement import place
from adatad_ds.models.detector import Detector
from adatad_ds.system.launch import gpu_count
from adatad_ds.tasks.detection_pipeline import damaged_videos, find_candidates, finish


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A detected action."""

    start_sec: float
    end_sec: float
    label: str
    score: float

    def record(self) -> dict[str, Any]:
        """Entry of a result file in the community's format."""
        return {"segment": [self.start_sec, self.end_sec], "label": self.label, "score": self.score}


class VideoDetector:
    """A trained detector for video files.

    Args:
        module: the network, on its device.
        config: its config.
        classes: label names by class index.
        device: the network's device.
        operating_point: the score of the best F1, if evaluated.
    """

    def __init__(
        self,
        *,
        module: Detector,
        config: Config,
        classes: Sequence[str],
        device: torch.device,
        operating_point: OperatingPoint | None,
    ) -> None:
        self.classes = tuple(classes)
        self.operating_point = operating_point
        self._module = module
        test = replace(config.test, external_scores="")  # they belong to other videos
        self.config = replace(config, parallel=ParallelConfig(), test=test)
        self._mesh = Mesh(world=World(rank=0, size=1, device=device), config=self.config)

    def find_candidates(self, batches: Iterable[Batch]) -> dict[str, VideoCandidates]:
        """Candidates of windows, merged by video; not yet suppressed."""
        return find_candidates(
            forward=self._module,
            batches=batches,
            config=self.config,
            mesh=self._mesh,
            report=lambda message: None,
        )

    def detect(
        self,
        path: str | Path,
        *,
        progress: Callable[[float], object] = lambda done: None,
        report: Callable[[str], object] = lambda line: None,
    ) -> list[Detection]:
        """All detections in a video of any length, by decreasing score; times are those of a video player.

        Args:
            path: the file.
            progress: called with the share of the video that is done, after each batch.
            report: called once with a message if the file is damaged; the rest of it is searched.

        Raises:
            VideoError: a file that cannot be decoded.
        """
        path, config = Path(path), self.config
        video = lone_video(path, name=str(path))
        windows = windows_of_file(video, path, config.data)
        batches = stream_batches(video, path, windows, config=config.data, batch=config.test.batch)
        with closing(batches):
            candidates = self.find_candidates(_counted(batches, len(windows), progress))
        for line in damaged_videos(candidates).values():
            report(line)
        results = finish(candidates, videos=[video.name], classes=self.classes, config=config, world=self._mesh.world)
        return [
            Detection(
                start_sec=record["segment"][0],
                end_sec=record["segment"][1],
                label=record["label"],
                score=record["score"],
            )
            for record in results[video.name]
        ]


def load_detector(
    path: str | Path,
    *,
    recipe: str | None = None,
    classes: Sequence[str] = (),
    overrides: Sequence[str] = (),
    averaged: bool = True,
    device: str | torch.device | None = None,
    max_device_gb: float | None = None,
) -> VideoDetector:
    """Load a trained detector for videos.

    Args:
        path: a run's folder, a checkpoint, an export, a published .pth.
        recipe: recipe of a published checkpoint.
        classes: names by class index, if the checkpoint and its recipe do not have them.
        overrides: `section.key=value` changes of its config.
        averaged: use the running average of the weights (EMA) where there is one, not the last weights.
        device: device to run on; None: a GPU if there is one, else the CPU.
        max_device_gb: device memory limit; transformer blocks that do not fit stay in host memory. None: what is free.

    Raises:
        ConfigError: nothing is there, no detector, no such device, or missing class names.
        CheckpointError: incomplete, unreadable or unsuitable weights, of the detector or its backbone.
    """
    found = trained_model.find_trained(Path(path), recipe=recipe, overrides=overrides, averaged=averaged)
    trained_model.check_recipe(recipe, [found])
    if found.config.recognition:
        raise ConfigError(f"{found.name} is a recognition model, which finds no actions in untrimmed videos")
    if found.config.backbone.is_features:
        raise ConfigError(
            f"{found.name} detects in features, not in video files: extract those of your videos and use evaluate"
        )
    names = tuple(classes or found.classes or found.config.data.classes)
    if not names and found.class_order and found.class_order.spellings:
        names = found.class_order.spellings[0]
    if found.config.data.class_agnostic:
        names = (ANY_ACTION,)
    if not names:
        raise ConfigError(
            f"{found.name} does not name its classes; give a text file with one name per line, in the order of the "
            "class logits, with --classes FILE"
        )
    target = _device(device)
    module = trained_model.load_model(found, num_classes=len(names))
    assert isinstance(module, Detector)
    module = place(module, config=found.config, device=target, max_device_gb=max_device_gb)
    return VideoDetector(
        module=module, config=found.config, classes=names, device=target, operating_point=found.operating_point
    )


def _device(wanted: str | torch.device | None) -> torch.device:
    """The device with that name; by default a GPU, if there is one."""
    try:
        device = torch.device(wanted or ("cuda" if gpu_count() else "cpu"))
    except RuntimeError as error:
        raise ConfigError(f"--device {wanted}: invalid device; use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= gpu_count():
        raise ConfigError(f"--device {wanted}: PyTorch finds {gpu_count()} GPUs here; leave --device out")
    return device


def _counted(batches: Iterator[Batch], windows: int, progress: Callable[[float], object]) -> Iterator[Batch]:
    """The same batches; `progress` is called when the next one is requested."""
    done = 0
    for batch in batches:
        yield batch
        done += len(batch.videos)
        progress(done / windows)
