"""Training losses: sigmoid focal loss on classes, DIoU loss on segments, and their running normaliser.

B windows, P points, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adatad_ds.detection.decoding import decode_segments
from adatad_ds.detection.points import Targets

_EPS = 1e-7
_ALPHA, _GAMMA = 0.25, 2.0  # weight of the positives; how strongly easy examples are down-weighted


def sigmoid_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Focal loss (arXiv 1708.02002, equation 5), elementwise, float32.

    Args:
        logits: any shape.
        targets: the same shape, in [0, 1].
    """
    logits, targets = logits.float(), targets.float()
    probability = logits.sigmoid()
    wrong = probability * (1 - targets) + (1 - probability) * targets  # 1 - p_t
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (_ALPHA * targets + (1 - _ALPHA) * (1 - targets)) * wrong**_GAMMA * cross_entropy


def diou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Distance-IoU loss of paired segments (arXiv 1911.08287, equation 7, in one dimension).

    Args:
        predicted: (..., 2), start and end.
        target: (..., 2).

    Returns:
        (...), 1 - IoU + (distance of centres / length of the enclosing segment)^2.
    """
    start, end = predicted.unbind(-1)
    target_start, target_end = target.unbind(-1)
    enclosing = torch.maximum(end, target_end) - torch.minimum(start, target_start)
    between_centers = 0.5 * ((start + end) - (target_start + target_end))
    return 1 - paired_iou(predicted, target) + (between_centers / enclosing.clamp(min=_EPS)) ** 2


def paired_iou(predicted: Tensor, target: Tensor) -> Tensor:
    """Temporal IoU of paired segments, (..., 2) each, to (...)."""
    start, end = predicted.unbind(-1)
    target_start, target_end = target.unbind(-1)
    overlap = (torch.minimum(end, target_end) - torch.maximum(start, target_start)).clamp(min=0)
    union = (end - start) + (target_end - target_start) - overlap
    return overlap / union.clamp(min=_EPS)


def detection_losses(
    *,
    class_logits: Tensor,
    distances: Tensor,
    points: Tensor,
    valid: Tensor,
    targets: Targets,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """Unnormalised sums of a batch: focal over valid points, DIoU over positives.

    Shapes are static: other points are masked, not removed. Without positives the second sum is 0 and still has a
    (zero) gradient.

    Args:
        class_logits: (B, P, K).
        distances: (B, P, 2) in strides.
        points: (P, 4).
        valid: (B, P) bool.
        targets: see `assign_targets`.
        label_smoothing: moves multi-hot targets towards 1 / (K + 1).
    """
    classification = _valid_focal_loss(class_logits, valid, targets, label_smoothing).sum()
    positive = targets.positive[..., None]
    # Elsewhere both get the same unit segment, so that no masked element divides by zero in the backward pass.
    predicted = decode_segments(points, torch.where(positive, distances.float(), 1.0))
    target = decode_segments(points, torch.where(positive, targets.distances, 1.0))
    regression = (diou_loss(predicted, target) * targets.positive).sum()
    return classification, regression


def iou_weighted_losses(
    *,
    class_logits: Tensor,
    valid: Tensor,
    targets: Targets,
    pairs: tuple[Tensor, ...],
    distances: Tensor,
    label_smoothing: float,
    power: float,
) -> tuple[Tensor, Tensor]:
    """Unnormalised sums of a batch with distances of each class (TriDet, arXiv 2303.07347, section 3.4).

    Focal over valid points, where that of positives is multiplied by IoU^power, and DIoU over pairs of a positive point
    and one of its classes. As published, the gradient reaches the distances through the weights, too.

    Args:
        class_logits: (B, P, K).
        valid: (B, P) bool.
        targets: see `assign_targets`.
        pairs: window, point and class of N pairs, (N,) each.
        distances: (N, 2) in strides.
        label_smoothing: moves multi-hot targets towards 1 / (K + 1).
        power: exponent of the IoU.
    """
    window, point, label = pairs
    predicted, target = _around_zero(distances), _around_zero(targets.distances[window, point])
    # The derivative of a small power is infinite at 0.
    weights = paired_iou(predicted, target).clamp(min=_EPS) ** power
    focal = _valid_focal_loss(class_logits, valid, targets, label_smoothing)
    classification = focal.sum() + (focal[window, point, label] * (weights - 1)).sum()
    return classification, diou_loss(predicted, target).sum()


def _around_zero(distances: Tensor) -> Tensor:
    """Segments (N, 2) of distances (N, 2) to start and end, from points at 0."""
    to_start, to_end = distances.unbind(-1)
    return torch.stack([-to_start, to_end], dim=-1)


def _valid_focal_loss(class_logits: Tensor, valid: Tensor, targets: Targets, label_smoothing: float) -> Tensor:
    """Focal loss of each class of each point, (B, P, K), 0 where the point is not valid."""
    num_classes = class_logits.shape[-1]
    smoothed = targets.classes * (1 - label_smoothing) + label_smoothing / (num_classes + 1)
    counts = valid[..., None]
    # Invalid points are replaced before the loss: a NaN or infinity there would survive a product with 0.
    logits = torch.where(counts, class_logits.float(), 0.0)
    return sigmoid_focal_loss(logits, smoothed) * counts


class LossNormalizer:
    """Running mean of the number of positives per global batch, which divides the losses (ActionFormer, section 3.4).

    # differs: AdaTAD's authors keep one mean on each of 2 or 4 GPUs, of its own windows, and average the quotients. In
    # some 30 steps, when the initial value is forgotten, that is the same scale.

    Args:
        initial: value before the first step.
        momentum: weight of the old value in each update.
    """

    def __init__(self, *, initial: float, momentum: float) -> None:
        self.value = float(initial)
        self.momentum = momentum

    def update(self, num_positives: float) -> float:
        """Update with a global batch's number of positives (counted as at least 1); return the new value."""
        self.value = self.momentum * self.value + (1 - self.momentum) * max(num_positives, 1)
        return self.value

    def state_dict(self) -> dict[str, float]:
        """State for a checkpoint."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the state from a checkpoint."""
        self.value = float(state["value"])
