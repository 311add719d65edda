"""Shared by tests: site."""

from __future__ import annotations

from adatad_ds.cluster.site import Site

SITE = Site(
    gpus_per_node=8,
    ranks_per_node=8,
    cpus_per_rank=8,
    gpu="A100-80",
    ds_config="ds_configs/zero3.json",
    options=(),
    cells_at_once=None,
)
