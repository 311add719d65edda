"""Shared by tests: published."""

from __future__ import annotations

import re

import torch


def published(detector: torch.nn.Module, *, beside: bool) -> dict[str, torch.Tensor]:
    """A detector's tensors under the names of AdaTAD's authors."""
    blocks = sorted({int(name.split(".")[2]) for name, _ in detector.named_parameters() if ".adapters." in name})
    out = {}
    for name, tensor in detector.state_dict().items():
        if name.startswith("backbone.adapters."):
            _, _, block, rest = name.split(".", 3)
            tensor = tensor.unsqueeze(-1) if rest == "conv.weight" else tensor  # a 1x1 convolution
            place = f"ladders.adapters.{blocks.index(int(block))}" if beside else f"blocks.{block}.adapter"
            out[f"backbone.model.backbone.{place}.{rest}"] = tensor
        elif name.startswith("backbone.vit."):
            inner = name.removeprefix("backbone.vit.").replace("patch_embed.proj.", "patch_embed.projection.")
            inner = inner.replace(".mlp.fc1.", ".mlp.layers.0.0.").replace(".mlp.fc2.", ".mlp.layers.1.")
            if inner.endswith("attn.qkv.bias"):
                query, _, value = tensor.chunk(3)
                stem = inner.removesuffix("qkv.bias")
                out |= {f"backbone.model.backbone.{stem}{p}_bias": t for p, t in (("q", query), ("v", value))}
            else:
                out[f"backbone.model.backbone.{inner}"] = tensor
        else:
            name = re.sub(r"^pyramid\.norms\.", "neck.fpn_norms.", name)
            name = re.sub(r"^pyramid\.", "projection.", name)
            name = re.sub(r"^head\.scales\.(\d+)\.weight", r"rpn_head.scale.\1.scale", name)
            name = re.sub(r"^head\.", "rpn_head.", name)
            name = re.sub(r"\.(query|key|value)_conv\.", r".\1_conv.conv.", name)
            name = name.replace(".fc1.", ".mlp.0.").replace(".fc2.", ".mlp.3.")
            out[re.sub(r"\.(attn|mlp)_branch\.", r".drop_path_\1.", name)] = tensor
    return {f"module.{name}": tensor for name, tensor in out.items()}
