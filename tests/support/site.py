"""Shared by tests: site, programs that say what it is."""

from __future__ import annotations

from pathlib import Path

from adatad_ds.cluster.site import Site

SITE = Site(
    gpus_per_node=8,
    ranks_per_node=8,
    cpus_per_rank=8,
    gpu="A100-80",
    ds_config="ds_configs/zero3.json",
)


def executable(folder: Path, name: str, output: str) -> None:
    """A program of that name that prints."""
    (folder / name).write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\n")
    (folder / name).chmod(0o755)
