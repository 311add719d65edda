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
from adatad_ds.models.detector import step_multiple
from adatad_ds.models.heads.interface import PointOutputs

# Of the data's settings, what may differ between detectors that see the same windows.
OF_TRAINING = (
    "train_subset",
    "classes",
    "augment",
    "augment_on_device",
    "short_side_before_crop",
    "crop_ratio",
    "min_action_share",
    "trunc_thresh",
)
OF_MACHINE = ("workers", "prefetch", "worker_timeout_sec", "max_failed_videos", "reader")


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
    config, head = trained.config, trained.config.head
    data = {key: value for key, value in config.to_dict()["data"].items() if key not in (*OF_TRAINING, *OF_MACHINE)}
    return {
        **{f"data.{key}": value for key, value in data.items()},
        "halvings (head.arch)": head.arch[2],
        "head.max_len": head.max_len,
        "head.point_offset": head.point_offset,
        "padding of whole videos": step_multiple(head) if config.data.test_whole_videos else 0,
        "classes": tuple(trained.classes),
    }
