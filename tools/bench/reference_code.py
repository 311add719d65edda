"""The authors' own backbone (OpenTAD) out of a checkout, without the libraries that it wants compiled.

Read from the checkout's `opentad/models/backbones/vit_adapter.py`; the few names that it imports from mmcv, mmengine
and mmaction are stood in for here.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from adatad_ds.errors import ConfigError
from adatad_ds.models.backbones.vit import sinusoid


def load_reference(folder: Path) -> ModuleType:
    """The module `vit_adapter` of a checkout.

    Raises:
        ConfigError: it is not there.
    """
    path = folder / "opentad" / "models" / "backbones" / "vit_adapter.py"
    if not path.is_file():
        raise ConfigError(f"--opentad {folder}: there is no {path}")
    spec = importlib.util.spec_from_file_location("reference_vit_adapter", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    held = dict(sys.modules)
    sys.modules.update(_stand_ins())
    try:
        spec.loader.exec_module(module)
    finally:
        for name in _stand_ins():
            sys.modules.pop(name)
        sys.modules.update({name: held[name] for name in _stand_ins() if name in held})
    return module


class _BaseModule(nn.Module):
    def __init__(self, init_cfg: Any = None) -> None:
        super().__init__()


class _FFN(nn.Module):
    def __init__(self, *, embed_dims: int, feedforward_channels: int, **_: Any) -> None:
        super().__init__()
        hidden = nn.Linear(embed_dims, feedforward_channels)
        self.layers = nn.ModuleList([hidden, nn.Linear(feedforward_channels, embed_dims)])

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers[1](nn.functional.gelu(self.layers[0](tokens)))


class _PatchEmbed(nn.Module):
    def __init__(self, *, in_channels: int, embed_dims: int, kernel_size: Any, stride: Any, **_: Any) -> None:
        super().__init__()
        self.projection = nn.Conv3d(in_channels, embed_dims, kernel_size, stride)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Any]:
        projected = self.projection(pixels)
        return projected.flatten(2).transpose(1, 2), projected.shape[2:]


class _Registry:
    def register_module(self) -> Callable[[type], type]:
        return lambda registered: registered


def _stand_ins() -> dict[str, ModuleType]:
    """Modules with the few names that the reference's file imports; weights are set afterwards."""

    def nothing(module: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Initialise nothing."""

    contents: dict[str, dict[str, Any]] = {
        "mmcv": {},
        "mmcv.cnn": {"build_norm_layer": lambda cfg, width: ("ln", nn.LayerNorm(width, eps=cfg["eps"]))},
        "mmcv.cnn.bricks": {"DropPath": nn.Identity},
        "mmcv.cnn.bricks.transformer": {"FFN": _FFN, "PatchEmbed": _PatchEmbed},
        "mmengine": {},
        "mmengine.registry": {"MODELS": _Registry()},
        "mmengine.model": {"BaseModule": _BaseModule, "ModuleList": nn.ModuleList},
        "mmengine.model.weight_init": {"constant_init": nothing, "trunc_normal_init": nothing},
        "mmaction": {},
        "mmaction.utils": {"ConfigType": Any, "OptConfigType": Any},
        "mmaction.models": {},
        "mmaction.models.backbones": {},
        "mmaction.models.backbones.vit_mae": {
            "get_sinusoid_encoding": lambda length, width: sinusoid(length=length, width=width)[None]
        },
    }
    modules = {name: ModuleType(name) for name in contents}
    for name, module in modules.items():
        vars(module).update(contents[name])
        module.__path__ = []  # a package
    return modules
