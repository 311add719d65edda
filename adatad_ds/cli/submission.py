"""Write the submission file of a challenge from detections.json files.

    adatad-ds submission epic --verb VERB_RUN/evaluate/detections.json \\
        --noun NOUN_RUN/evaluate/detections.json --output submission.zip
    adatad-ds submission ego4d --detections RUN/evaluate/detections.json \\
        [--retrievals RUN/retrieval/detections.json] --output submission.json

EPIC-Kitchens: a verb and a noun detection that overlap become an action; see docs/reference/evaluation.md. Ego4D:
retrievals are for Recall@kx, usually with a smaller sigma (--save-candidates, then raw.npz --set test.sigma=0.7).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adatad_ds.cli.commands import command_parser

PAIRING = {  # fields of evaluation/submissions.ActionPairing
    "tiou": "minimum overlap of a verb and its noun",
    "nouns_per_verb": "nouns paired with each verb detection",
    "verb_weight": "w of verb^w * noun^(1-w)",
    "sigma": "sigma of the actions' soft-NMS",
    "min_score": "minimum score of actions",
    "max_per_video": "maximum number of actions per video",
}
SUPERVISION = {
    "sls_pt": (2, "pretraining, %(default)s"),
    "sls_tl": (3, "training labels, %(default)s: temporal"),
    "sls_td": (3, "training data, %(default)s; 4: with validation videos"),
}


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    from adatad_ds.evaluation.submissions import ActionPairing

    default = ActionPairing()
    parser = command_parser(prog, __doc__)
    challenges = parser.add_subparsers(dest="challenge", required=True, metavar="epic|ego4d")
    add = challenges.add_parser("epic", help="EPIC-Kitchens-100 action detection", allow_abbrev=False).add_argument
    add("--verb", type=Path, required=True, help="detections.json of the verb run")
    add("--noun", type=Path, required=True, help="detections.json of the noun run")
    add("--verb-classes", type=Path, help="EPIC_100_verb_classes.csv, if labels are names")
    add("--noun-classes", type=Path, help="EPIC_100_noun_classes.csv, if labels are names")
    add("--test-file", type=Path, help="EPIC_100_test_timestamps.csv, to check that exactly its videos are covered")
    for name, text in PAIRING.items():
        value = getattr(default, name)
        add(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"{text}; default: %(default)s")
    for name, (value, text) in SUPERVISION.items():
        add(f"--{name.replace('_', '-')}", type=int, default=value, help=f"supervision level of {text}")
    add("--output", type=Path, required=True, help="a .zip, as the server expects, or a .json")

    add = challenges.add_parser("ego4d", help="Ego4D moment queries", allow_abbrev=False).add_argument
    add("--detections", type=Path, required=True, help="detections.json, for mAP")
    add("--retrievals", type=Path, help="detections.json for Recall@kx; default: the same")
    add("--test-file", type=Path, help="moments_test_unannotated.json, to check that exactly its clips are covered")
    add("--output", type=Path, required=True, help="the .json file")
    return parser


def main(argv: Sequence[str], *, prog: str) -> int:
    """Write the file."""
    arguments = make_parser(prog).parse_args(argv)
    from adatad_ds.evaluation.submissions import write_submission

    submission, parts = (epic if arguments.challenge == "epic" else ego4d)(arguments)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_submission(arguments.output, submission)
    counts = " and ".join(f"{sum(map(len, submission[part].values()))} records" for part in parts)
    print(f"{arguments.output}: {counts} of {len(submission[parts[0]])} videos")
    return 0


def epic(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """EPIC-Kitchens' submission, and where its records are."""
    from adatad_ds.data.sources.formats import epic_test_names
    from adatad_ds.evaluation.submissions import ActionPairing, epic_submission, read_class_ids, read_detections

    names = epic_test_names([arguments.test_file]) if arguments.test_file else None
    submission = epic_submission(
        read_detections(arguments.verb, names, report=print),
        read_detections(arguments.noun, names, report=print),
        verb_ids=read_class_ids(arguments.verb_classes) if arguments.verb_classes else {},
        noun_ids=read_class_ids(arguments.noun_classes) if arguments.noun_classes else {},
        pairing=ActionPairing(**{name: getattr(arguments, name) for name in PAIRING}),
        sls_pt=arguments.sls_pt,
        sls_tl=arguments.sls_tl,
        sls_td=arguments.sls_td,
    )
    return submission, ["results"]


def ego4d(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Ego4D's submission, and where its records are."""
    from adatad_ds.data.sources.formats import ego4d_test
    from adatad_ds.evaluation.submissions import ego4d_submission, read_detections

    clips = ego4d_test([arguments.test_file]).entries if arguments.test_file else None
    names = None if clips is None else [clip.name for clip in clips]
    detections = read_detections(arguments.detections, names, report=print)
    again = arguments.retrievals
    retrievals = read_detections(again, names, report=print) if again else detections
    return ego4d_submission(detections, retrievals), ["detect_results", "retrieve_results"]
