"""AIM's ablation in miniature: train every row on generated clips, and print the table.

    python tools/ablate_aim.py

The clips' classes are twins that differ in the direction of time alone. What sees frames one by one cannot tell twins
apart, however much of it learns; what sees them together can. A row that has finished is not trained again.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from adatad_ds.data.generated.clips import TWINS
from adatad_ds.evaluation.accuracy import PREDICTIONS_FILE
from adatad_ds.evaluation.metrics_files import METRICS_FILE
from adatad_ds.recipes.aim import ABLATION, ablation_recipe
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.runs.folder import RunFolder
from adatad_ds.system.utf8 import use_utf8
from tools.ablation import generate, make_parser, markdown, train, trainable_parameters

CLIPS = "data/quickstart_clips"
COLUMNS = ("trained with final norm and classifier", "trainable, k", "top-1 %", "right pair %", "direction %", "s")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one row reached, in shares of 1."""

    what: str
    trainable: int
    top1: float
    pairs: float  # videos taken for their own class or its twin
    within: float  # of these, those taken for their own


def main() -> int:
    """Make clips, train, print."""
    arguments = make_parser(__doc__, rows=ABLATION).parse_args()
    generate("clips", CLIPS)
    cells = []
    for name in arguments.rows:
        recipe = ablation_recipe(name)
        run = arguments.runs / recipe
        took = train(arguments, recipe, run=run, stop_epoch=find_recipe(recipe).config.train.stop_epoch)
        row = measure(run, name)
        shares = (f"{100 * share:.1f}" for share in (row.top1, row.pairs, row.within))
        cells.append([row.what, f"{row.trainable / 1e3:.0f}", *shares, f"{took.seconds:.0f}"])
    print(markdown(COLUMNS, cells))
    return 0


def measure(run: Path, row: str) -> Row:
    """Of the last evaluation."""
    folder = RunFolder(run)
    config, classes = folder.read()
    last = run / f"evaluations/epoch_{max(folder.evaluations()):04d}"
    twin = {name: other for pair in TWINS for name, other in (pair, pair[::-1])}
    results = json.loads((last / PREDICTIONS_FILE).read_text(encoding="utf-8"))["results"].values()
    taken = [(each["label"], each["predictions"][0]["label"]) for each in results]
    right = sum(label == found for label, found in taken)
    in_pair = sum(found in (label, twin[label]) for label, found in taken)
    tuning, adapters = ABLATION[row]
    what = {"frozen": "frozen", "full": "full fine-tuning"}.get(tuning, "adapters")
    return Row(
        what=f"{what}: {' + '.join(adapters)}" if adapters else what,
        trainable=trainable_parameters(config, num_classes=len(classes)),
        top1=json.loads((last / METRICS_FILE).read_text(encoding="utf-8"))["top1"],
        pairs=in_pair / len(taken),
        within=right / max(1, in_pair),
    )


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
