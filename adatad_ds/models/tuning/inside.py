"""What is trained inside a frozen transformer's blocks: low-rank updates, biases, or norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from adatad_ds.config.backbone import Inside
from adatad_ds.models.tuning.lora import LoRASettings, add_lora, is_update


@dataclass(frozen=True, kw_only=True)
class InsideTuning:
    """One way to tune blocks from within.

    - `lora`: low-rank updates of the linear layers (lora.py).
    - `bitfit`: biases, those of norms too (BitFit, arXiv 2106.10199).
    - `norm`: norms' weights and biases (arXiv 2312.11420).

    Attributes:
        way: one of the three above.
        blocks: indices of the tuned blocks.
        lora: of `lora`.
    """

    way: Inside
    blocks: tuple[int, ...]
    lora: LoRASettings

    def apply(self, blocks: nn.ModuleList) -> None:
        """Make the tuned parts of a frozen transformer's blocks trainable."""
        for block in (blocks[index] for index in self.blocks):
            if self.way == "lora":
                add_lora(block, self.lora)
            for module in block.modules():
                for name, parameter in module.named_parameters(recurse=False):
                    parameter.requires_grad_(self._trains(module, name))

    def _trains(self, module: nn.Module, name: str) -> bool:
        if self.way == "lora":
            return is_update(name)
        return name == "bias" if self.way == "bitfit" else isinstance(module, nn.LayerNorm | nn.RMSNorm)


def stored_outputs(*, adapters: Sequence[int], inside: Sequence[int]) -> list[int]:
    """Blocks whose outputs wait for the backward pass, lowest first; -1: the embedding.

    Each adapter's input, and what enters the blocks that are tuned inside. Where blocks have both, one tensor a block
    is enough: the next adapter's segment contains the next tuned block.
    """
    if adapters and inside:
        return sorted({*adapters, min(inside) - 1})
    return sorted(adapters) or sorted(block - 1 for block in inside)
