"""Detectors on features as the authors of ActionFormer and TriDet publish them, brought under this package's names.

Arrays of one more axis of length 1 (norms, 1x1 convolutions) have the same values; `check_fit` lets them pass.
"""

from __future__ import annotations

import re
from pathlib import Path

from adatad_ds.errors import CheckpointError, summarize_list
from adatad_ds.weights.files import open_tensors
from adatad_ds.weights.layout import Weights, leave_out, rename

SIGNATURE = "cls_head.cls_head.conv.weight"
TRIDENT = "start_head.cls_head.conv.weight"  # what TriDet has besides
_RENAMES = (
    (r"^backbone\.proj\.(\d+)\.conv\.", r"pyramid.sources.linears.\1."),
    (r"^backbone\.embd\.(\d+)\.conv\.", r"pyramid.embed.\1.conv."),
    (r"^backbone\.embd_norm\.(\d+)\.", r"pyramid.embed.\1.norm."),
    (r"^backbone\.(stem|branch)\.", r"pyramid.\1."),
    (r"^neck\.fpn_norms\.", "pyramid.norms."),
    (r"^(cls|start|end|reg)_head\.head\.(\d+)\.conv\.", r"head.\1_convs.\2.conv."),
    (r"^(cls|start|end|reg)_head\.norm\.(\d+)\.", r"head.\1_convs.\2.norm."),
    (r"^(cls|start|end)_head\.cls_head\.conv\.", r"head.\1_head."),
    (r"^reg_head\.offset_head\.conv\.", "head.reg_head."),
    (r"^reg_head\.scale\.(\d+)\.scale$", r"head.scales.\1.weight"),
    (r"\.(query|key|value)_conv\.conv\.", r".\1_conv."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.3\.", ".fc2."),
    (r"\.drop_path_(attn|mlp)\.", r".\1_branch."),
    # TriDet's SGP layers
    (r"\.ln\.", ".norm."),
    (r"\.gn\.", ".mlp_norm."),
    (r"\.fc\.", ".instant."),
    (r"\.global_fc\.", ".instant_gate."),
    (r"\.convw\.", ".window."),
    (r"\.psi\.", ".window_gate."),
    (r"\.convkw\.", ".wide_window."),
    (r"\.mlp\.2\.", ".fc2."),
    (r"\.drop_path_out\.", ".mix_branch."),
)
_LEFT_OUT = {"points and positions, which are computed": r"(point_generator\.|backbone\.pos_embd$)"}


def open_head_weights(source: str | Path, *, averaged: bool) -> Weights:
    """Recognise a detector on features.

    Args:
        source: the file.
        averaged: take the running average rather than the last weights.

    Raises:
        FileNotFoundError: nothing is there.
        CheckpointError: unreadable, unsafe, or of another layout.
    """
    entries = ("state_dict_ema", "state_dict") if averaged else ("state_dict",)
    stored = {re.sub(r"^module\.", "", key): tensor for key, tensor in open_tensors(source, entries=entries).items()}
    if SIGNATURE not in stored:
        raise CheckpointError(
            f"{source} is no detector on features as the authors of ActionFormer and TriDet save it: there is no "
            f"{SIGNATURE} among its {len(stored)} tensors ({summarize_list(list(stored), limit=5, separator=', ')}). "
            "With backbone.name=features, backbone.weights is such a detector or null"
        )
    kept, left_out = leave_out(stored, _LEFT_OUT)
    return Weights(
        source=str(source),
        layout="TriDet" if TRIDENT in stored else "ActionFormer",
        size="a detector on features",
        vit={},
        trained={rename(key, _RENAMES): tensor for key, tensor in kept.items()},
        left_out=left_out,
    )
