"""torch.compile by region: each block, each adapter, each attention of the pyramid by itself (`train.compile`).

What runs between them (spans, recomputation, drop path's draws, exchanges with neighbours) stays as it is. Blocks are
alike, so that one compilation serves them all; there is one for each shape, with and without a graph. ZeRO-3's hooks
gather weights inside of blocks, and cannot be compiled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from adatad_ds.errors import ConfigError
from adatad_ds.models.backbones.adapted_video import whole_blocks
from adatad_ds.models.pyramid import ConvAttention
from adatad_ds.models.tuning.adapters import TIA, PlainAdapter
from adatad_ds.models.tuning.ladder import LongRange

REGIONS = (TIA, PlainAdapter, LongRange, ConvAttention)  # besides the backbone's blocks
MOST_VARIANTS = 64  # of one region's code: spans of a window, levels of the pyramid, training and evaluation


def compile_regions(model: nn.Module, *, device: torch.device, backend: str = "inductor") -> int:
    """Have a model's regions compiled when they first run; returns how many there are.

    Args:
        model: the model; its modules and parameters keep their names.
        device: where it will run.
        backend: of torch.compile; "aot_eager" makes the same graphs without code for them.

    Raises:
        ConfigError: there is nothing to compile, or no compiler.
    """
    regions = [*whole_blocks(model), *(module for module in model.modules() if isinstance(module, REGIONS))]
    if not regions:
        raise ConfigError("train.compile=true: this model has no video transformer's block, adapter or attention")
    if backend == "inductor" and (lacking := _lacking(device)) is not None:
        raise ConfigError(f"train.compile=true needs {lacking}; install it, or train without")
    import torch._dynamo  # seconds, and only here

    for region in regions:
        region.register_forward_pre_hook(_allow_variants)
        region.forward = torch.compile(region.forward, backend=backend, dynamic=False, fullgraph=True)
    return len(regions)


def _allow_variants(region: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Raise the limit in the thread that calls a region: on GPUs, autograd recomputes in one of its own.

    Since PyTorch 2.12 each thread has settings of its own; 2.11 has no `torch.compile(recompile_limit=...)`.
    """
    settings = torch._dynamo.config
    if settings.recompile_limit < MOST_VARIANTS:
        settings.recompile_limit = MOST_VARIANTS


def _lacking(device: torch.device) -> str | None:
    """The compiler that is missing for a device; None: it is there."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton"
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception:  # which one depends on the version of PyTorch
        return "a C++ compiler (g++ or clang++)"
    return None
