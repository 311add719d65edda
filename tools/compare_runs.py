"""Print the evaluated mAP of several runs side by side.

python tools/compare_runs.py RUN [RUN ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a fresh clone, without installing

from adatad_ds.system.utf8 import use_utf8

METRICS = Path("evaluate") / "metrics.json"


def main() -> int:
    """Print one line a run: average mAP, then mAP at each tIoU, in %."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of evaluated runs")
    runs = parser.parse_args().runs
    missing = [str(run) for run in runs if not (run / METRICS).is_file()]
    if missing:
        print(f"error: not evaluated yet: {', '.join(missing)}; run adatad_ds/evaluate.py first", file=sys.stderr)
        return 2
    metrics = {run.name: json.loads((run / METRICS).read_text(encoding="utf-8")) for run in runs}
    names = [name for name in next(iter(metrics.values())) if name.startswith("mAP@")]
    width = max(map(len, metrics))
    print(f"\n{'mAP %':{width}}  average  " + "  ".join(f"{name.removeprefix('mAP@'):>6}" for name in names))
    for run, values in metrics.items():
        row = "  ".join(f"{100 * values[name]:6.2f}" for name in names)
        print(f"{run:{width}}  {100 * values['average_mAP']:7.2f}  {row}")
    return 0


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
