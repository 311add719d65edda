"""The running average of trainable weights (EMA): how closely it follows them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AverageDecay:
    """How much of the running average stays in an update.

    Attributes:
        decay: the share that stays; 0: there is no average.
        warmup: follow more closely at first, (1 + n) / (10 + n) until that reaches `decay`, as TensorFlow's
            ExponentialMovingAverage and torch_ema have it; without, always `decay`, as AdaTAD's authors have it.
    """

    decay: float
    warmup: bool = False

    def after(self, updates: int) -> float:
        """The share that stays in the `updates`-th update, from 1."""
        return min(self.decay, (1 + updates) / (10 + updates)) if self.warmup else self.decay
