"""Settings of a detector's pyramid and heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adatad_ds.config import numbers

SGP_GROUPS = 16  # of an SGP layer's group normalisation; the width is a multiple of it
REGRESSION_RANGE = ((0.0, 4.0), (4.0, 8.0), (8.0, 16.0), (16.0, 32.0), (32.0, 64.0), (64.0, 10000.0))


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The pyramid and its heads."""

    # attention (arXiv 2202.07925), max pooling alone (2303.09055), SGP layers and trident heads (2303.07347)
    name: Literal["actionformer", "temporalmaxer", "tridet"] = "actionformer"
    width: numbers.PositiveInt = 512
    # convolutions, blocks at full rate, halving blocks
    arch: tuple[numbers.NonNegativeInt, numbers.NonNegativeInt, numbers.NonNegativeInt] = (2, 2, 5)
    max_len: numbers.PositiveInt | None = None  # steps that windows are padded to; None: no padding
    abs_pos_embed: bool = False
    drop_path: numbers.Probability = 0.1
    # channels that each of several sources of features is projected to, `width` in all; (): features as they are
    source_widths: tuple[numbers.PositiveInt, ...] = ()
    input_dropout: numbers.Probability = 0.0
    input_noise: numbers.NonNegativeFloat = 0.0  # deviation of Gaussian noise added to the features in training
    num_convs: numbers.PositiveInt = 2
    tower_width: numbers.PositiveInt | None = None  # channels of the heads' convolutions; None: `width`
    tower_kernel: numbers.PositiveInt = 3  # of the heads' convolutions
    cls_prior: numbers.OpenFraction = 0.01
    actionformer_norms: bool = False  # as in its authors' code: not masked again, epsilon 1e-5
    regression_range: tuple[tuple[numbers.Reach, numbers.Reach], ...] = REGRESSION_RANGE
    point_offset: bool = False
    loss_normalizer: numbers.PositiveFloat = 100.0
    loss_normalizer_momentum: numbers.Probability = 0.9
    center_radius: numbers.PositiveFloat = 1.5
    label_smoothing: numbers.Probability = 0.0
    reg_loss_weight: numbers.NonNegativeFloat = 1.0
    filter_similar_gt: bool = True
    reset_classifier: bool = False  # newly initialise the class logits if `backbone.weights` is a detector

    # actionformer only
    heads: numbers.PositiveInt = 4  # of attention
    attn_window: numbers.Steps | tuple[numbers.Steps, ...] = -1  # one for all levels, or one per level; -1: global
    proj_dropout: numbers.Probability = 0.0  # after the attention's projection and both layers of the MLP

    # tridet only
    sgp_window: numbers.PositiveInt = 1  # w, kernel of an SGP layer's convolution; at full rate 1
    sgp_scale: numbers.PositiveFloat = 1.5  # k: its wider convolution has a kernel of k * (w + 1), made odd
    sgp_mlp_width: numbers.PositiveInt | None = None  # None: 4 * `width`
    sgp_init_std: numbers.NonNegativeFloat = 0.0  # of its convolutions' initial weights
    num_bins: numbers.PositiveInt = 16  # B: boundaries are at most so many strides away
    boundary_kernel: numbers.PositiveInt = 3  # of the start and end heads' convolutions
    iou_weight_power: numbers.NonNegativeFloat = 1.0  # positives' class loss is multiplied by IoU to this power

    @property
    def levels(self) -> int:
        """Pyramid levels: one at full rate and one per halving block."""
        return self.arch[2] + 1

    @property
    def regresses_by_class(self) -> bool:
        """Whether each class of a point has a regression of its own, and so a term in the loss (TriDet)."""
        return self.name == "tridet"

    @property
    def attn_windows(self) -> tuple[int, ...]:
        """The attention window of each level."""
        return (self.attn_window,) * self.levels if isinstance(self.attn_window, int) else self.attn_window

    @property
    def strides(self) -> tuple[int, ...]:
        """Feature steps between two points of each level."""
        return tuple(2**level for level in range(self.levels))
