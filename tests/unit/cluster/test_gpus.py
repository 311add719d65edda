"""Which GPU it is: read from the node, never assumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from adatad_ds.cli.commands import main
from adatad_ds.cluster.cells import Overrides, read_cells
from adatad_ds.cluster.site import gpu_types_in, read_site
from adatad_ds.errors import ConfigError
from adatad_ds.planning.gpus import GPUS, gpu_here, gpu_named
from adatad_ds.planning.layouts import planned_gpu
from tests.support.site import SITE, executable

GIB = 2**30 / 1e9


@pytest.mark.parametrize(
    ("name", "memory_gb", "kind"),
    [  # as nvidia-smi and PyTorch name them, with their memory; as clusters name types
        ("NVIDIA A100-SXM4-80GB", 80 * GIB, "A100-80"),
        ("NVIDIA A100-PCIE-40GB", None, "A100-40"),
        ("NVIDIA A100-SXM4-40GB", 40 * GIB, "A100-40"),
        ("NVIDIA H100 80GB HBM3", 79.6 * GIB, "H100-80"),
        ("NVIDIA H100 PCIe", 79.6 * GIB, "H100-PCIe-80"),
        ("NVIDIA H200", 140.4 * GIB, "H200-141"),
        ("NVIDIA GeForce RTX 4090", 24 * GIB, "RTX4090-24"),
        ("NVIDIA L40S", 45 * GIB, "L40S-48"),
        ("NVIDIA L4", 22.5 * GIB, "L4-24"),
        ("h100", None, "H100-80"),
        ("nvidia_h100_80gb_hbm3", None, "H100-80"),
        ("rtx_4090", None, "RTX4090-24"),
        ("a100_80gb", None, "A100-80"),
        *((kind, None, kind) for kind in GPUS),
    ],
)
def test_names(name, memory_gb, kind):
    assert gpu_named(name, memory_gb=memory_gb) == kind


@pytest.mark.parametrize(
    ("name", "memory_gb", "said"),
    [
        ("a100", None, "'a100' may be A100-40 or A100-80"),
        ("Tesla T4", 15.8, "'Tesla T4' with 16 GB is unknown to the planner; known: RTX3090-24, "),
        ("NVIDIA L40", 48, "is unknown"),
        ("NVIDIA H100 NVL", 95.8 * GIB, "'NVIDIA H100 NVL' with 103 GB is unknown"),
    ],
)
def test_names_that_do_not_say_it(name, memory_gb, said):
    with pytest.raises(ConfigError, match=said):
        gpu_named(name, memory_gb=memory_gb)


def test_the_planner_asks_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    executable(tmp_path, "nvidia-smi", "NVIDIA GeForce RTX 4090, 24564\nNVIDIA GeForce RTX 4090, 24564")
    assert planned_gpu(None) == "RTX4090-24"
    assert planned_gpu("A100-40") == "A100-40"
    executable(tmp_path, "nvidia-smi", "NVIDIA H200, 143771\nNVIDIA L4, 23034")
    with pytest.raises(ConfigError, match="several kinds of GPU: H200-141, L4-24"):
        gpu_here()


def test_without_a_gpu_the_planner_asks_for_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["plan", "--recipe", "quickstart", "--ds_config", "ds_configs/zero2.json"]) == 2
    error = capsys.readouterr().err
    assert "no GPU (there is no nvidia-smi); choose a GPU with --gpu, one of RTX3090-24, " in error


@pytest.mark.parametrize(
    ("gres", "types"),
    [
        ("(null)", set()),
        ("gpu:8", set()),
        ("gpu:a100:4(S:0-1)", {"a100"}),
        ("gpu:3g.20gb:2,gpu:h100:1,nic:3", {"3g.20gb", "h100"}),
    ],
)
def test_types_of_a_nodes_gpus(gres, types):
    assert gpu_types_in(gres) == types


@pytest.mark.parametrize(
    ("gres", "setting", "gpu"),
    [
        ("gpu:h100:8", "", "h100"),
        ("gpu:a100:8(S:0-1)", "A100-40", "A100-40"),
        ("gpu:8", "", ""),
        ("gpu:rtx_4090:8\nall*|64|gpu:l40s:8", "", "l40s or rtx_4090"),
    ],
)
def test_a_site_is_what_sinfo_says(gres, setting, gpu, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name in ("GPUS_PER_NODE", "CPUS_PER_RANK", "PARTITION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GPU", setting)
    executable(tmp_path, "sinfo", f"all*|64|{gres}")
    site = read_site(["thumos14_videomae_s"])
    assert (site.gpus_per_node, site.cpus_per_rank, site.gpu) == (8, 8, gpu)


@pytest.mark.parametrize(
    ("gpu", "said"),
    [
        ("", "sinfo names no type of the nodes' GPUs. Set GPU in slurm/site.env to one of RTX3090-24, "),
        ("a100", "'a100' may be A100-40 or A100-80. Set GPU"),
        ("l40s or rtx_4090", "may be RTX4090-24 or L40S-48. Set GPU"),
    ],
)
def test_a_grid_is_not_planned_for_an_unknown_gpu(gpu, said):
    file, frames = Path("slurm/models.json"), Overrides(recipes=("thumos14_videomae_s",), frames=(768,))
    with pytest.raises(ConfigError, match=said):
        read_cells(file, frames, replace(SITE, gpu=gpu))
    fixed = replace(frames, nodes=1, temporal=1)
    assert len(read_cells(file, fixed, replace(SITE, gpu=gpu))) == 1
