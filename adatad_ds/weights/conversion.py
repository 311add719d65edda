"""Pretrained weights, written once under this package's names, so that a run reads just what it needs."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from adatad_ds.system.json_text import write_json
from adatad_ds.weights.files import open_tensors
from adatad_ds.weights.loading import WHERE_FROM, tensor_hash
from adatad_ds.weights.video_layouts import ADATAD, AVERAGED_PREFIX, Weights, backbone_name

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def convert(weights: Weights, *, out: Path, dtype: torch.dtype | None) -> str:
    """Write the tensors, and beside them their description.

    Args:
        weights: as they were opened.
        out: the file, `.safetensors`; its description is called the same, `.json`.
        dtype: of floating-point tensors; None: as they are.

    Returns:
        What was read, left out and written, for the user.
    """

    def converted(tensor: Tensor) -> Tensor:
        return (tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor).contiguous()

    if weights.layout == ADATAD:
        last = open_tensors(weights.source, entries=("state_dict",))
        average = open_tensors(weights.source, entries=("state_dict_ema", "state_dict"))
        tensors = {name: converted(stored.read()) for name, stored in last.items()}
        for name, stored in average.items():
            value = converted(stored.read())
            if name not in tensors or not torch.equal(value, tensors[name]):
                tensors[AVERAGED_PREFIX + name] = value
    else:
        tensors = {name: converted(stored.read()) for name, stored in weights.vit.items()}
    name = backbone_name(weights)
    description = {
        "source": weights.source,
        "layout": weights.layout,
        "backbone": name,
        "terms": WHERE_FROM.get(name or ""),
        "left_out": weights.left_out,
        "fingerprint": {key: tensor_hash(stored.read()) for key, stored in weights.vit.items()},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out)
    write_json(out.with_suffix(".json"), description)
    lines = [
        weights.report(),
        f"written: {out} ({out.stat().st_size / 1e6:.1f} MB), {len(tensors)} tensors, {name or 'a size of its own'}",
    ]
    if name in WHERE_FROM:
        lines.append(f"the weights of {name} come from {WHERE_FROM[name]}")
    return "\n".join(lines)
