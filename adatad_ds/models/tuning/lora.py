"""LoRA: a frozen linear layer plus a trainable update of low rank (arXiv 2106.09685), and DoRA (arXiv 2402.09353).

Written here rather than taken from peft, which renames the frozen weights that files, fingerprints and ZeRO-3's
partitioning block by block go by.

I channels in, O channels out, r rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PARTS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}  # of a block, by target


@dataclass(frozen=True, kw_only=True)
class LoRASettings:
    """How a block's linear layers are updated.

    Attributes:
        rank: r.
        alpha: updates are scaled by alpha / r.
        targets: keys of `PARTS`.
        dora: train the size of each output's weights, too.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    dora: bool


class LoRALinear(nn.Module):
    """y = W x + b + (alpha / r) up(down(x)); `up` starts at zero, so the layer starts as the frozen one.

    With `dora`, W' = W + (alpha / r) up down is rescaled to rows of length (1 + m) |W|, m trainable from zero. As in
    the paper (section 4.3), |W'| counts as constant in the backward pass.
    # differs: theirs trains (1 + m) |W|, which weight decay pulls to zero; here it pulls to the pretrained length.

    Parameters keep the frozen layer's names: `weight`, `bias`, and besides `lora_down`, `lora_up`, `lora_size`.

    Args:
        linear: the layer to adapt; its tensors may be on the meta device.
        settings: rank, scale, DoRA.
    """

    def __init__(self, linear: nn.Linear, *, settings: LoRASettings) -> None:
        super().__init__()
        out, into = linear.weight.shape
        self.scale = settings.alpha / settings.rank
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_down = nn.Parameter(torch.empty(settings.rank, into))
        self.lora_up = nn.Parameter(torch.zeros(out, settings.rank))
        self.lora_size = nn.Parameter(torch.zeros(out)) if settings.dora else None
        nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        update = self.scale * F.linear(F.linear(x, self.lora_down), self.lora_up)
        if self.lora_size is None:
            return F.linear(x, self.weight, self.bias) + update
        stretched = (F.linear(x, self.weight) + update) * self._stretch(self.lora_size).to(x.dtype)
        return stretched if self.bias is None else stretched + self.bias

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The weight of a plain linear layer that does the same, (O, I) float32."""
        merged = self._updated()
        return merged if self.lora_size is None else merged * self._stretch(self.lora_size).unsqueeze(1)

    def _updated(self) -> Tensor:
        """W + (alpha / r) up down, (O, I) float32."""
        return torch.addmm(self.weight.float(), self.lora_up.float(), self.lora_down.float(), alpha=self.scale)

    def _stretch(self, size: Tensor) -> Tensor:
        """Factor of each output, (O,) float32."""
        with torch.no_grad():
            before, after = (torch.linalg.vector_norm(w.float(), dim=1) for w in (self.weight, self._updated()))
            ratio = before / after
        return ratio * (1 + size.float())


def add_lora(block: nn.Module, settings: LoRASettings) -> None:
    """Replace the targets among a block's linear layers."""
    for target in settings.targets:
        owner, _, name = PARTS[target].rpartition(".")
        linear = block.get_submodule(PARTS[target])
        assert isinstance(linear, nn.Linear)
        setattr(block.get_submodule(owner), name, LoRALinear(linear, settings=settings))


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """Each adapted layer's merged weight by the name of the frozen one, of a model whose weights are whole."""
    return {f"{name}.weight": m.merged_weight() for name, m in model.named_modules() if isinstance(m, LoRALinear)}


def is_update(name: str) -> bool:
    """Whether a parameter is part of an update, by its name."""
    return name.rpartition(".")[2].startswith("lora_")
