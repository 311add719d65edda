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
from adatad_ds.models.heads.parts import JoinedLevels, Scale, class_prior_bias, tower


class TridentPredictions(NamedTuple):
    """`Predictions` whose distances follow from bins around each point.

    Attributes:
        class_logits: (B, P, K) float32.
        bins: (B, P, 2, R) float32, a point's own logits of its start's and end's bins, from left to right.
        starts: (B, S, K) float32, logits of a start at each step: the levels one after another, each after at least
            R - 1 zeros.
        ends: (B, S, K) float32, of an end, each level before at least R - 1 zeros.
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
        return iou_weighted_losses(
            class_logits=self.class_logits,
            valid=self.valid,
            targets=targets,
            pairs=targets.pairs,
            distances=self.distances_of(*targets.pairs),
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
        actionformer_norms: bool,
    ) -> None:
        super().__init__()
        self.num_bins = num_bins
        self.gap = max(num_bins, kernel // 2, boundary_kernel // 2)

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
        joined = JoinedLevels(levels, masks, gap=self.gap)
        logits = joined.split(joined.run(self.cls_convs, self.cls_head, joined.features))
        own = joined.split(joined.run(self.reg_convs, self.reg_head, joined.features))
        bins = [scale(part) for scale, part in zip(self.scales, own, strict=True)]
        # As published, starts and ends do not train the pyramid, and are 0 beyond the video's end.
        fixed, inside = joined.features.detach(), joined.valid.unsqueeze(-1)
        starts = joined.run(self.start_convs, self.start_head, fixed) * inside
        ends = joined.run(self.end_convs, self.end_head, fixed) * inside
        places = [torch.arange(level.shape[1], device=level.device) for level in levels]
        return TridentPredictions(
            class_logits=torch.cat(logits, dim=1).float(),
            bins=F.relu(torch.cat(bins, dim=1)).unflatten(2, (2, -1)).float(),
            starts=F.pad(starts, (0, 0, self.num_bins, 0)).float(),
            ends=F.pad(ends, (0, 0, 0, self.num_bins)).float(),
            first_bin=torch.cat([first + place for first, place in zip(joined.first_steps, places, strict=True)]),
            valid=torch.cat(masks, dim=1),
        )
