"""Convert pretrained weights once, so that a run reads just what it needs.

    python tools/convert_weights.py SOURCE --out pretrained/videomae_b.safetensors [--dtype bf16]

SOURCE is any that `backbone.weights` takes: a file or folder of VideoMAE, VideoMAE V2, InternVideo, transformers or
mmaction2, a name on the Hugging Face hub, or a trained detector of AdaTAD's authors. Writes OUT under this package's
names, and OUT's name with `.json`: where it came from, what was left out, its fingerprint.

A trained detector keeps its published names (which blocks its adapters belong to is its recipe's to say); of the
running average only what differs from the last weights is written.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a fresh clone, without installing

import torch
from safetensors.torch import save_file
from torch import Tensor

from adatad_ds.errors import ConfigError, UserError
from adatad_ds.system.utf8 import use_utf8
from adatad_ds.weights.files import open_tensors
from adatad_ds.weights.layout import Weights
from adatad_ds.weights.loading import WHERE_FROM, tensor_hash
from adatad_ds.weights.video_layouts import ADATAD, AVERAGED_PREFIX, backbone_name, open_weights

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def main() -> int:
    """Convert; what is wrong with the source ends in one paragraph and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--out", type=Path, required=True, help="OUT.safetensors")
    parser.add_argument("--dtype", choices=DTYPES, help="default: as in the source")
    arguments = parser.parse_args()
    try:
        if arguments.out.suffix != ".safetensors":
            raise ConfigError(f"--out must end in .safetensors; got {arguments.out}")
        weights = open_weights(arguments.source)
        convert(weights, out=arguments.out, dtype=DTYPES.get(arguments.dtype))
    except (UserError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def convert(weights: Weights, *, out: Path, dtype: torch.dtype | None) -> None:
    """Write the tensors and their description."""

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
    name = backbone_name(weights.vit)
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
    out.with_suffix(".json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    print(weights.report())
    print(f"written: {out} ({out.stat().st_size / 1e6:.1f} MB), {len(tensors)} tensors, {name or 'a size of its own'}")
    if name in WHERE_FROM:
        print(f"the weights of {name} come from {WHERE_FROM[name]}")


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
