"""TriDet's trident heads: boundaries as expected positions over bins around each point (arXiv 2303.07347, section 3.3).

B windows, T_l steps of level l, P points of all levels, C channels, K classes, R bins of a boundary (0 to R - 1 strides
away), N pairs of a point and a class.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad_ds.config.head import HeadConfig
from adatad_ds.detection.losses import iou_weighted_losses
from adatad_ds.detection.points import Targets
from adatad_ds.models.heads.parts import Scale, class_prior_bias, tower


class TridentPredictions(NamedTuple):
    """`Predictions` whose distances follow from bins around each point.

    Attributes:
        class_logits: (B, P, K) float32.
        bins: (B, P, 2, R) float32, a point's own logits of its start's and end's bins, from left to right.
        starts: (B, S, K) float32, logits of a start at each step: the levels one after another, each after R - 1 zeros.
        ends: (B, S, K) float32, of an end, each level before R - 1 zeros.
        first_bin: (P,) int64, index in `starts` and `ends` of each point's leftmost bin.
        valid: (B, P) bool, False beyond the video's end.
    """

    class_logits: Tensor
    bins: Tensor
    starts: Tensor
    ends: Tensor
    first_bin: Tensor
    valid: Tensor

    def distances_of(self, window: Tensor, point: Tensor, label: Tensor) -> Tensor:
        """The bins' expectation (equations 6 to 8); see `Predictions`."""
        bins = self.bins.shape[-1]
        away = torch.arange(bins, device=point.device)
        steps = self.first_bin[point, None] + away  # (N, R)
        to_start, to_end = (
            (neighbours[window[:, None], steps, label[:, None]] + self.bins[window, point, side]).softmax(dim=1)
            for side, neighbours in enumerate((self.starts, self.ends))
        )
        away = away.float()
        return torch.stack([to_start @ away.flip(0), to_end @ away], dim=1)

    def losses(self, *, points: Tensor, targets: Targets, settings: HeadConfig) -> tuple[Tensor, Tensor]:
        """Focal loss, weighted by each positive's IoU, and DIoU loss of every class of a point; see `Predictions`."""
        pairs = (targets.classes * targets.positive[..., None]).nonzero(as_tuple=True)
        return iou_weighted_losses(
            class_logits=self.class_logits,
            valid=self.valid,
            targets=targets,
            pairs=pairs,
            distances=self.distances_of(*pairs),
            label_smoothing=settings.label_smoothing,
            power=settings.iou_weight_power,
        )


class TriDetHead(nn.Module):
    """Four towers of masked convolutions, shared by all levels: classes, starts, ends, and each point's own bins.

    Args:
        width: channels C of the pyramid.
        tower_width: channels of the towers.
        kernel: of the convolutions of classes and bins.
        boundary_kernel: of those of starts and ends.
        num_classes: K.
        levels: pyramid levels, each with a trainable scale on its bins.
        num_convs: convolutions per tower.
        num_bins: R - 1, the farthest boundary in strides.
        cls_prior: initial probability of each class.
        actionformer_norms: see `MaskedConv`.
    """

    def __init__(
        self,
        *,
        width: int,
        tower_width: int,
        kernel: int,
        boundary_kernel: int,
        num_classes: int,
        levels: int,
        num_convs: int,
        num_bins: int,
        cls_prior: float,
        actionformer_norms: bool = False,
    ) -> None:
        super().__init__()
        self.num_bins = num_bins

        def branch(outputs: int, size: int) -> tuple[nn.ModuleList, nn.Conv1d]:
            convs = tower(width, tower_width, kernel=size, num_convs=num_convs, actionformer_norms=actionformer_norms)
            return convs, nn.Conv1d(tower_width, outputs, kernel_size=size, padding=size // 2)

        self.cls_convs, self.cls_head = branch(num_classes, kernel)
        self.start_convs, self.start_head = branch(num_classes, boundary_kernel)
        self.end_convs, self.end_head = branch(num_classes, boundary_kernel)
        self.reg_convs, self.reg_head = branch(2 * (num_bins + 1), kernel)
        self.scales = nn.ModuleList(Scale() for _ in range(levels))
        for head in (self.cls_head, self.start_head, self.end_head):
            head.bias = class_prior_bias(num_classes, cls_prior)
        assert self.reg_head.bias is not None
        nn.init.zeros_(self.reg_head.bias)

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> TridentPredictions:
        """Levels (B, T_l, C) and masks (B, T_l) to predictions."""
        logits, bins, starts, ends, first_bin = [], [], [], [], []
        passed, beyond = 0, self.num_bins
        for level, mask, scale in zip(levels, masks, self.scales, strict=True):
            logits.append(_run(self.cls_convs, self.cls_head, level, mask))
            own = _run(self.reg_convs, self.reg_head, level, mask)
            bins.append(F.relu(scale(own)).unflatten(2, (2, -1)))
            # As published, starts and ends do not train the pyramid, and are 0 beyond the video's end.
            fixed, inside = level.detach(), mask.unsqueeze(-1)
            starts.append(F.pad(_run(self.start_convs, self.start_head, fixed, mask) * inside, (0, 0, beyond, 0)))
            ends.append(F.pad(_run(self.end_convs, self.end_head, fixed, mask) * inside, (0, 0, 0, beyond)))
            first_bin.append(passed + torch.arange(level.shape[1], device=level.device))
            passed += beyond + level.shape[1]
        return TridentPredictions(
            class_logits=torch.cat(logits, dim=1).float(),
            bins=torch.cat(bins, dim=1).float(),
            starts=torch.cat(starts, dim=1).float(),
            ends=torch.cat(ends, dim=1).float(),
            first_bin=torch.cat(first_bin),
            valid=torch.cat(masks, dim=1),
        )


def _run(convs: nn.ModuleList, output: nn.Conv1d, x: Tensor, mask: Tensor) -> Tensor:
    """A tower and its last convolution: (B, T, C) to (B, T, outputs)."""
    for conv in convs:
        x = conv(x, mask)
    return output(x.transpose(1, 2)).transpose(1, 2)
