"""Measure what loading a backbone costs: seconds, and resident memory of all ranks together.

    python tools/bench/load.py --backbone videomaev2_g --ranks 2

Makes a file of random bf16 weights at full size (kept in --folder for the next time), then loads it as train.py does
under ZeRO-3 with CPU offload, and for comparison as one does without care: every rank builds the model, reads the whole
file, and DeepSpeed partitions it afterwards. Memory is the sum over ranks of each one's peak (the kernel's count,
VmHWM, mapped file pages included) above what it held before, so it is never less than the true peak of all together.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))  # runs from a fresh clone, without installing

import torch
from safetensors.torch import load_file, save_file

from adatad_ds.config.schema import BackboneConfig, Config, DataConfig, TrainConfig
from adatad_ds.distributed.ds_config import read_ds_config, resolve_ds_config
from adatad_ds.distributed.engine import partitioner
from adatad_ds.distributed.process import end_process
from adatad_ds.distributed.world import World
from adatad_ds.models.backbones.contract import VideoTransformer
from adatad_ds.models.backbones.vit import VIT_SPECS
from adatad_ds.models.backbones.vjepa2 import VJEPA2_SPECS
from adatad_ds.models.factory import build_backbone
from adatad_ds.models.transformers import backbone_spec
from adatad_ds.system.utf8 import use_utf8
from adatad_ds.weights.loading import fill_backbone, find_weights

WAYS = ("naive", "adatad_ds")


def main() -> int:
    """Start the ranks for each way, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=[*VIT_SPECS, *VJEPA2_SPECS], default="videomaev2_g")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--ds-config", type=Path, default=REPOSITORY / "ds_configs/zero3_offload.json")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "data/bench")
    parser.add_argument("--skip-naive", action="store_true", help="which takes ranks x 4 bytes a parameter and more")
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)  # what a rank is started with
    arguments = parser.parse_args()
    file = arguments.folder / f"{arguments.backbone}_random_bf16.safetensors"
    if arguments.measure:
        world = World.join()
        measure(
            arguments.measure, backbone=arguments.backbone, file=file, ds_config_file=arguments.ds_config, world=world
        )
        world.leave()
        return 0
    if not file.exists():
        write_random(file, arguments.backbone)
    size = file.stat().st_size
    print(f"{file}: {size / 1e9:.2f} GB; {arguments.ranks} ranks, {arguments.ds_config.name}")
    print(f"{'way':<10} {'peak of all ranks':>18} {'ratio to file':>14} {'after':>9} {'seconds':>8}")
    for way in WAYS[arguments.skip_naive :]:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(arguments.ranks)]
        command = [sys.executable, *launch, __file__, "--measure", way, "--backbone", arguments.backbone]
        command += ["--folder", str(arguments.folder), "--ds-config", str(arguments.ds_config)]
        environment = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **os.environ}
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
        result = next(json.loads(line) for line in output.splitlines() if line.startswith('{"peak"'))
        print(
            f"{way:<10} {result['peak'] / 1e9:>15.2f} GB {result['peak'] / size:>14.2f} "
            f"{result['after'] / 1e9:>6.2f} GB {result['seconds']:>8.1f}",
            flush=True,
        )
    return 0


def measure(way: str, *, backbone: str, file: Path, ds_config_file: Path, world: World) -> None:
    """On each rank: load, and have rank 0 print the sums."""
    config = Config(
        backbone=BackboneConfig(name=backbone, weights=str(file)), train=TrainConfig(global_batch=world.size)
    )
    ds_config = resolve_ds_config(
        read_ds_config(ds_config_file), config=config, ranks=world.size, cuda=world.device.type == "cuda"
    )
    host = partitioner(ds_config, world=world)
    host(torch.nn.Linear(8, 8))  # what DeepSpeed sets up once belongs to the baseline
    world.sum(0)
    forget_peak()
    before = resident("VmRSS")
    began = time.perf_counter()
    if way == "naive":
        vit = transformer(backbone, weights=None)
        vit.load_state_dict(load_file(file))
        host(vit.to(torch.bfloat16))
    else:
        vit = transformer(backbone, weights=file)
        weights = find_weights(config.backbone, vit)
        assert weights is not None
        fill_backbone(vit, weights.vit, dtype=torch.bfloat16, read=world.is_main, host=host)
    world.sum(0)
    seconds = time.perf_counter() - began
    peak, after = world.sum(resident("VmHWM") - before, resident("VmRSS") - before)
    if world.is_main:
        print(json.dumps({"peak": peak, "after": after, "seconds": seconds}), flush=True)


def transformer(backbone: str, *, weights: Path | None) -> VideoTransformer:
    """A frozen one at full size; on the meta device if its weights are in a file."""
    config = Config(
        data=DataConfig(resolution=backbone_spec(backbone).pretrained_side),
        backbone=BackboneConfig(name=backbone, weights=weights and str(weights), tuning="frozen"),
    )
    vit = build_backbone(config, feature_steps=1).vit
    assert isinstance(vit, VideoTransformer)
    return vit


def forget_peak() -> None:
    """Have the kernel count this process's peak from now on."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def resident(field: str) -> int:
    """A line of /proc/self/status in bytes: VmRSS now, VmHWM at the peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def write_random(file: Path, backbone: str) -> None:
    """Random bf16 weights under our names, at full size."""
    vit = transformer(backbone, weights=file)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, parameter in vit.named_parameters():
        if name.endswith("bias"):
            value = torch.zeros(parameter.shape)
        elif "norm" in name:
            value = torch.ones(parameter.shape)
        else:
            value = torch.empty(parameter.shape).normal_(std=0.02, generator=generator)
        tensors[name] = value.to(torch.bfloat16)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)


if __name__ == "__main__":
    use_utf8()
    end_process(main())
