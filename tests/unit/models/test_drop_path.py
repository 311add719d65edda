"""A block's branches by their drop-path factors: each clip's own, on each branch alone."""

from __future__ import annotations

import pytest
import timm.models.vision_transformer
import torch
from torch import nn

from adatad_ds.models.backbones import internvideo2, vit
from adatad_ds.models.backbones.image_blocks import ImageBlock

WIDTH, HEADS = 24, 2
BLOCKS = {
    "videomae": lambda: vit.Block(width=WIDTH, heads=HEADS, mlp_hidden=48),
    "internvideo2": lambda: internvideo2.Block(width=WIDTH, heads=HEADS, mlp_hidden=48),
    "image": lambda: ImageBlock(timm.models.vision_transformer.Block(dim=WIDTH, num_heads=HEADS, init_values=1.0)),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_factors_weigh_the_branches(name):
    torch.manual_seed(0)
    block: nn.Module = BLOCKS[name]().double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    tokens = torch.randn(3, 5, WIDTH, dtype=torch.float64)
    attention, mlp = torch.tensor([[0.0, 2.0, 1.25], [1.5, 0.0, 3.0]], dtype=torch.float64)

    def run(of_attention: torch.Tensor, of_mlp: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return block(tokens, torch.stack((of_attention, of_mlp), dim=1))

    ones, zeros = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(run(ones, ones), block(tokens).detach())
    torch.testing.assert_close(run(zeros, zeros), tokens)
    attended = tokens + attention[:, None, None] * (run(ones, zeros) - tokens)
    torch.testing.assert_close(run(attention, zeros), attended)
    torch.testing.assert_close(run(attention, mlp), attended + mlp[:, None, None] * (run(attention, ones) - attended))
    assert not torch.allclose(run(attention, ones), attended)
