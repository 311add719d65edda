"""A step of VideoMAE with adapters beside the authors' own code (OpenTAD), from a checkout that you bring.

    git clone https://github.com/sming256/OpenTAD /tmp/opentad
    python tools/bench/reference.py --opentad /tmp/opentad --set data.window_size=192 --set data.resolution=96 \\
        --set train.precision=fp32 --threads 1

Their backbone is read from the checkout (`tools/bench/reference_code.py`). It runs as their configs have it: blocks
under torch's checkpoint, fp32 weights under autocast. Both sides get the same random weights and frames, without drop
path; a step is normalisation, forward pass and backward pass of the features' mean square. Losses and the norm of the
adapters' gradients must agree. All ways take a step in turn; ratios are the median over the rounds. On a CPU seconds
are the process's CPU seconds, and memory is the peak of the tensors that are alive in one more step; on a GPU, which is
taken where there is one, seconds pass until the device has finished, and memory is the peak of its allocator. Weights,
their gradients and the frames are not counted.

Ours runs as the recipe has it, within the memory that theirs took and within a quarter of it
(`backbone.activation_memory_gb`), if that is possible, and without recomputation.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone, without installing

import torch
from torch import Tensor, nn

from adatad_ds.config.loading import override
from adatad_ds.config.schema import Config
from adatad_ds.errors import ConfigError
from adatad_ds.models.backbones.adapted_video import AdaptedBackbone
from adatad_ds.models.backbones.patch_embed import PIXEL_MEAN, PIXEL_STD
from adatad_ds.models.execution.activation_store import StoragePolicy
from adatad_ds.models.factory import Runtime, build_detector
from adatad_ds.models.live_bytes import live_bytes
from adatad_ds.models.transformers import backbone_spec
from adatad_ds.planning.activations import Activations
from adatad_ds.planning.memory import backbone_cost
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.system.launch import gpu_count
from adatad_ds.system.utf8 import use_utf8
from tools.bench.reference_code import load_reference

AGREE = {"fp32": 1e-4, "bf16": 3e-2}  # relative


@dataclass
class Way:
    """A way to take a step, and what was measured of it."""

    name: str
    model: nn.Module
    features: Callable[[], Tensor]
    loss: float = 0.0
    gradient_norm: float = 0.0
    peak_bytes: int = 0
    seconds: list[float] = field(default_factory=list)

    def step(self) -> None:
        """Forward and backward pass."""
        loss = self.features().float().square().mean()
        loss.backward()
        self.loss = float(loss.detach())

    def measure(self) -> None:
        """Memory, loss and gradients of a step, which warms up, too; gradients stay allocated."""
        self._clear_gradients()
        if next(self.model.parameters()).is_cuda:
            self.step()  # what libraries set up once
            self._clear_gradients()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.step()
            self.peak_bytes = torch.cuda.max_memory_allocated() - before
        else:
            self.peak_bytes = live_bytes(self.step)
        gradients = [p.grad.float().norm() for p in self.model.parameters() if p.grad is not None]
        self.gradient_norm = float(torch.stack(gradients).norm())

    def time(self) -> None:
        """A step's seconds: of the process on a CPU, until the device has finished on a GPU."""
        on_gpu = next(self.model.parameters()).is_cuda
        clock = time.perf_counter if on_gpu else time.process_time
        began = clock()
        self.step()
        if on_gpu:
            torch.cuda.synchronize()
        self.seconds.append(clock() - began)

    def _clear_gradients(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None


def main() -> int:
    """Measure and print; exit code 1 if the two do not agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--opentad", type=Path, required=True, metavar="FOLDER", help="checkout of OpenTAD")
    parser.add_argument("--recipe", default="thumos14_videomae_s")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the recipe")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    fixed = ["backbone.weights=None", "backbone.drop_path=0.0"]
    try:
        config = override(find_recipe(arguments.recipe).config, [*arguments.set, *fixed])
        device = torch.device("cuda" if gpu_count() else "cpu")
        ways = list(measured_ways(config, load_reference(arguments.opentad), device))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for _ in range(arguments.rounds):
        for way in ways:
            way.time()
    _print(config, ways, device, commit=_commit(arguments.opentad))
    theirs, tolerance = ways[0], AGREE[config.train.precision]
    wrong = [
        way.name
        for way in ways[1:]
        for one, other in ((way.loss, theirs.loss), (way.gradient_norm, theirs.gradient_norm))
        if abs(one / other - 1) > tolerance
    ]
    if wrong:
        print(f"error: losses or gradients differ from the reference's: {', '.join(wrong)}", file=sys.stderr)
    return int(bool(wrong))


def measured_ways(config: Config, reference: ModuleType, device: torch.device) -> Iterator[Way]:
    """Theirs, then ours as the recipe has it, within budgets, and without recomputation; memory is measured."""
    if config.backbone.tuning != "tia" or config.train.precision not in AGREE:
        raise ConfigError("the comparison is of backbone.tuning=tia in train.precision=fp32 or bf16")
    side, generator = config.data.resolution, torch.Generator().manual_seed(0)
    shape = (config.train.micro_batch or 1, config.data.window_frames, side, side, 3)
    frames = torch.randint(256, shape, dtype=torch.uint8, generator=generator).to(device)
    theirs = their_backbone(config, reference).to(device)
    way = Way("reference", theirs, lambda: their_features(theirs, frames, config.train.dtype))
    way.measure()
    yield way
    cost = backbone_cost(config)
    everything = override(config, ["backbone.activation_checkpointing=false"])
    for name, its_cost, budget in (
        ("ours", cost, None),
        ("ours, in a quarter of its memory", cost, way.peak_bytes // 4),
        ("ours, in its memory", cost, way.peak_bytes),
        ("ours, all graphs", backbone_cost(everything), None),
    ):
        try:
            placed = its_cost.activations(
                windows=len(frames),
                clips=config.data.window_frames // config.clip_frames,
                policy=StoragePolicy(),
                budget=budget,
                beside=0,
                cuda=device.type == "cuda",
            )
        except ConfigError as error:
            print(f"left out: {name}: {error}", file=sys.stderr)
            continue
        model = our_backbone(config, theirs, placed).to(device)
        own = Way(name, model, lambda model=model: model.tubelet_features(frames))
        own.measure()
        yield own


def their_backbone(config: Config, reference: ModuleType) -> nn.Module:
    """The reference's backbone with random weights, as its configs build it."""
    spec, backbone = backbone_spec(config.backbone.name), config.backbone
    torch.manual_seed(0)
    with contextlib.redirect_stdout(sys.stderr):
        model = reference.VisionTransformerAdapter(
            img_size=spec.pretrained_side,
            patch_size=spec.patch,
            embed_dims=spec.width,
            depth=spec.depth,
            num_heads=spec.heads,
            mlp_ratio=spec.mlp_hidden / spec.width,
            return_feat_map=True,
            with_cp=True,
            adapter_mlp_ratio=backbone.adapter_ratio,
            total_frames=config.data.window_frames,
            adapter_index=list(range(spec.depth)) if backbone.adapter_blocks is None else list(backbone.adapter_blocks),
        )
    for name, parameter in model.named_parameters():
        if "norm" not in name and not name.endswith("gamma"):
            nn.init.normal_(parameter, std=0.02)
    model._freeze_layers()  # as each of its forward passes does
    return model


def their_features(model: nn.Module, frames: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, F, H, W, 3) uint8 to (B, C, T'), as its wrapper and pipelines do it."""
    windows, count = frames.shape[:2]
    mean, std = (frames.new_tensor(rgb, dtype=torch.float32).view(3, 1, 1, 1) for rgb in (PIXEL_MEAN, PIXEL_STD))
    clips = frames.view(windows * count // 16, 16, *frames.shape[2:]).permute(0, 4, 1, 2, 3)
    pixels = (clips.float() - mean) / std  # (n, 3, 16, H, W)
    with torch.autocast(frames.device.type, dtype=torch.bfloat16, enabled=dtype != torch.float32):
        tokens = model(pixels)  # (n, C, t, h, w)
        pooled = tokens.mean(dim=(3, 4))
    return pooled.unflatten(0, (windows, -1)).permute(0, 2, 1, 3).flatten(2)


def our_backbone(config: Config, theirs: nn.Module, placed: Activations) -> AdaptedBackbone:
    """Ours with the reference's weights, run as planned."""
    runtime = Runtime(retention=placed.retention, clips_per_chunk=placed.clips_per_chunk)
    model = build_detector(config, num_classes=1, runtime=runtime).backbone
    assert isinstance(model, AdaptedBackbone)
    state = dict(theirs.state_dict())
    own = dict(model.named_parameters())
    for name, parameter in own.items():
        parameter.data.copy_(_their_weight(name, state).view(parameter.shape))
    return model.to(config.train.dtype)


def _their_weight(name: str, state: dict[str, Tensor]) -> Tensor:
    kind, _, rest = name.partition(".")
    if kind == "adapters":
        index, _, inner = rest.partition(".")
        return state[f"blocks.{index}.adapter.{inner}"]
    if rest.endswith("attn.qkv.bias"):
        query, value = (state[rest.replace("qkv.bias", f"{part}_bias")] for part in "qv")
        return torch.cat([query, torch.zeros_like(query), value])
    for ours, its in (("patch_embed.proj", "patch_embed.projection"), ("fc1", "layers.0"), ("fc2", "layers.1")):
        rest = rest.replace(ours, its)
    return state[rest]


def _commit(folder: Path) -> str:
    if not (folder / ".git").exists():  # a folder in another repository would be told of that one's commit
        return "of an unknown commit"
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _print(config: Config, ways: list[Way], device: torch.device, *, commit: str) -> None:
    data, theirs = config.data, ways[0]
    on_gpu = device.type == "cuda"
    where = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} threads"
    print(
        f"{config.backbone.name}, {data.window_frames} frames, {data.resolution} px, {config.train.precision}, "
        f"{where}; OpenTAD {commit}, PyTorch {torch.__version__}\n"
    )
    print(f"| | GB | / reference | {'s' if on_gpu else 'CPU s'} | / reference | loss | gradient norm |")
    print("|---" * 7 + "|")
    for way in ways:
        ratio = median(a / b for a, b in zip(way.seconds, theirs.seconds, strict=True))
        print(
            f"| {way.name} | {way.peak_bytes / 1e9:.3f} | {way.peak_bytes / theirs.peak_bytes:.2f} | "
            f"{median(way.seconds):.3f} | {ratio:.2f} | {way.loss:.6g} | {way.gradient_norm:.5g} |"
        )


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
