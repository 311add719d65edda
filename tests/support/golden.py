"""Where the reference numerics lie, and the names that the reference gave its parameters."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason=f"the reference numerics are kept outside the repository, in {GOLDEN}"
)


def published_name(name: str, *, adapted_blocks: list[int], side: bool) -> str:
    """Our parameter name -> the reference's."""
    adapter = re.fullmatch(r"backbone\.adapters\.(\d+)\.(.+)", name)
    if adapter:
        block, rest = int(adapter[1]), adapter[2]
        place = f"ladders.adapters.{adapted_blocks.index(block)}" if side else f"blocks.{block}.adapter"
        return f"backbone.model.backbone.{place}.{rest}"
    for pattern, replacement in (
        (r"^pyramid\.norms\.", "neck.fpn_norms."),
        (r"^pyramid\.", "projection."),
        (r"^head\.scales\.(\d+)\.weight", r"rpn_head.scale.\1.scale"),
        (r"^head\.", "rpn_head."),
        (r"\.(query|key|value)_conv\.", r".\1_conv.conv."),
        (r"\.fc1\.", ".mlp.0."),
        (r"\.fc2\.", ".mlp.3."),
        (r"\.(attn|mlp)_branch\.", r".drop_path_\1."),
    ):
        name = re.sub(pattern, replacement, name)
    return name
