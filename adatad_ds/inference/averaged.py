"""Several detectors as one, point by point: mean class scores and mean boundaries, as OpenTAD's `fuse_list`.

B windows, P points, K classes, N pairs of a point and a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adatad_ds.errors import ConfigError, summarize_list
from adatad_ds.inference.trained_model import Trained
from adatad_ds.models.heads.interface import PointOutputs

# What may differ between detectors whose points and windows are the same.
OF_TRAINING = (
    "data.augment",
    "data.augment_on_device",
    "data.short_side_before_crop",
    "data.crop_ratio",
    "data.min_action_share",
    "data.trunc_thresh",
)
OF_MACHINE = ("data.workers", "data.prefetch", "data.worker_timeout_sec", "data.max_failed_videos", "data.reader")
OF_POINTS = ("head.arch", "head.max_len", "head.point_offset")


@dataclass(frozen=True)
class AveragedOutputs:
    """`PointOutputs` that are means of several detectors'.

    Attributes:
        parts: of each detector, at the same points.
    """

    parts: Sequence[PointOutputs]

    @property
    def class_logits(self) -> Tensor:
        """(B, P, K) float32, whose sigmoid is the mean of the detectors' scores."""
        return torch.stack([part.class_logits.sigmoid() for part in self.parts]).mean(dim=0).logit()

    @property
    def valid(self) -> Tensor:
        """(B, P) bool."""
        return self.parts[0].valid

    def distances_of(self, window: Tensor, point: Tensor, label: Tensor) -> Tensor:
        """(N, 2) float32; see `PointOutputs`."""
        return torch.stack([part.distances_of(window, point, label) for part in self.parts]).mean(dim=0)


class AveragedDetector(nn.Module):
    """Runs all detectors on the same windows.

    Args:
        detectors: with the same points and classes.
    """

    def __init__(self, detectors: Sequence[nn.Module]) -> None:
        super().__init__()
        self.detectors = nn.ModuleList(detectors)

    def forward(self, frames: Tensor, valid: Tensor) -> AveragedOutputs:
        """Frames or features and valid steps of windows to outputs; see `Detector`."""
        return AveragedOutputs([detector(frames, valid) for detector in self.detectors])


def check_same_points(first: Trained, other: Trained) -> None:
    """Check that two detectors can be averaged.

    Raises:
        ConfigError: other classes, windows or points.
    """
    ours, theirs = (_of_points(trained) for trained in (first, other))
    different = [f"{key} {theirs[key]!r}, not {ours[key]!r}" for key in ours if ours[key] != theirs[key]]
    if different:
        raise ConfigError(
            f"{other.name} cannot be averaged with {first.name} point by point: it has {summarize_list(different)}. "
            "Fuse their candidates: evaluate each with --save-candidates, then all raw.npz together"
        )


def _of_points(trained: Trained) -> dict[str, Any]:
    config = trained.config.to_dict()
    keys = [f"data.{key}" for key in config["data"] if f"data.{key}" not in (*OF_TRAINING, *OF_MACHINE)]
    found = {key: config[key.split(".")[0]][key.split(".")[1]] for key in (*keys, *OF_POINTS)}
    return found | {"classes": tuple(trained.classes)}
