"""Export what a run has trainable: one safetensors file and a JSON file of everything needed to rebuild the rest.

    python tools/export_adapter.py runs/NAME --out exports/NAME.safetensors [--raw]

The frozen backbone is not in it: the JSON file says which it was, with a fingerprint. `evaluate.py` takes the export.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a fresh clone, without installing

from adatad_ds.errors import ConfigError, UserError
from adatad_ds.inference.trained_model import export, find_trained
from adatad_ds.runs.folder import versions
from adatad_ds.system.utf8 import use_utf8


def main() -> int:
    """Export; what is wrong ends in one paragraph and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder (its best checkpoint, else the newest) or a checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="OUT.safetensors")
    parser.add_argument("--raw", action="store_true", help="the trained weights, not their running average")
    arguments = parser.parse_args()
    try:
        if arguments.out.suffix != ".safetensors":
            raise ConfigError(f"--out must end in .safetensors; got {arguments.out}")
        trained = find_trained(arguments.run, raw=arguments.raw)
        export(trained, arguments.out, extra={"versions": versions()})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = arguments.out.stat().st_size / 1e6
    print(f"{trained.name}: {arguments.out} ({size:.1f} MB) and {arguments.out.with_suffix('.json').name}")
    return 0


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
