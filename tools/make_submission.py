"""Make a challenge's submission from detections.json files.

    python tools/make_submission.py epic --verb VERB_RUN/evaluate/detections.json \\
        --noun NOUN_RUN/evaluate/detections.json --output submission.zip
    python tools/make_submission.py ego4d --detections RUN/evaluate/detections.json \\
        [--retrievals RUN/retrieval/detections.json] --output submission.json

EPIC-Kitchens: a verb and a noun detection that overlap become an action; see --help and docs/evaluation.md. Ego4D:
retrievals are for Recall@kx, customarily of a smaller sigma (--save-raw, then RAW.npz --set test.sigma=0.7).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from adatad_ds.errors import DataError, summarize_list
from adatad_ds.evaluation.detections_file import read_results
from adatad_ds.evaluation.submissions import (
    ActionPairing,
    Results,
    ego4d_submission,
    epic_submission,
    of_test_videos,
    read_class_ids,
    write_submission,
)
from adatad_ds.system.utf8 import use_utf8
from tools.dataset_formats import ego4d_test, epic_test_names


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file; what the user got wrong ends in one paragraph and exit code 2."""
    arguments = parse_arguments(argv)
    try:
        if arguments.challenge == "epic":
            names = epic_test_names([arguments.test_file]) if arguments.test_file else None
            submission = epic_submission(
                read(arguments.verb, names),
                read(arguments.noun, names),
                verb_ids=read_class_ids(arguments.verb_classes) if arguments.verb_classes else {},
                noun_ids=read_class_ids(arguments.noun_classes) if arguments.noun_classes else {},
                pairing=ActionPairing(
                    tiou=arguments.tiou,
                    nouns_per_verb=arguments.nouns_per_verb,
                    verb_weight=arguments.verb_weight,
                    sigma=arguments.sigma,
                    min_score=arguments.min_score,
                    max_per_video=arguments.max_per_video,
                ),
                sls_pt=arguments.sls_pt,
                sls_tl=arguments.sls_tl,
                sls_td=arguments.sls_td,
            )
            parts = [submission["results"]]
        else:
            clips = ego4d_test([arguments.test_file]).entries if arguments.test_file else None
            names = None if clips is None else [clip.name for clip in clips]
            detections = read(arguments.detections, names)
            retrievals = read(arguments.retrievals, names) if arguments.retrievals else detections
            submission = ego4d_submission(detections, retrievals)
            parts = [submission["detect_results"], submission["retrieve_results"]]
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_submission(arguments.output, submission)
    counts = " and ".join(f"{sum(map(len, part.values()))} records" for part in parts)
    print(f"{arguments.output}: {counts} of {len(parts[0])} videos")
    return 0


def read(path: Path, test_videos: Sequence[str] | None) -> Results:
    """Detections of a file; where the challenge's test videos are known, of exactly these.

    Raises:
        DataError: no detections, or of other videos.
    """
    results = read_results(path)
    if test_videos is None:
        return results
    found, absent = of_test_videos(results, test_videos)
    if absent:
        print(
            f"note: {path} lacks {len(absent)} of {len(test_videos)} test videos, which get none: "
            f"{summarize_list(absent)}"
        )
    return found


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make a challenge's submission from detections.", allow_abbrev=False)
    challenges = parser.add_subparsers(dest="challenge", required=True)
    default = ActionPairing()

    epic = challenges.add_parser("epic", help="EPIC-Kitchens-100 action detection", allow_abbrev=False)
    epic.add_argument("--verb", type=Path, required=True, help="detections.json of the verb run")
    epic.add_argument("--noun", type=Path, required=True, help="detections.json of the noun run")
    epic.add_argument("--verb-classes", type=Path, help="EPIC_100_verb_classes.csv, where labels are names")
    epic.add_argument("--noun-classes", type=Path, help="EPIC_100_noun_classes.csv, where labels are names")
    epic.add_argument("--test-file", type=Path, help="EPIC_100_test_timestamps.csv: check for its videos")
    epic.add_argument("--tiou", type=float, default=default.tiou, help="overlap of a verb and its noun, %(default)s")
    epic.add_argument(
        "--nouns-per-verb", type=int, default=default.nouns_per_verb, help="a verb detection's best, %(default)s"
    )
    epic.add_argument(
        "--verb-weight", type=float, default=default.verb_weight, help="w of verb^w * noun^(1-w), %(default)s"
    )
    epic.add_argument("--sigma", type=float, default=default.sigma, help="of the actions' soft-NMS, %(default)s")
    epic.add_argument("--min-score", type=float, default=default.min_score, help="of actions, %(default)s")
    epic.add_argument("--max-per-video", type=int, default=default.max_per_video, help="actions, %(default)s")
    epic.add_argument("--sls-pt", type=int, default=2, help="supervision level of pretraining, %(default)s")
    epic.add_argument("--sls-tl", type=int, default=3, help="of training labels, %(default)s: temporal")
    epic.add_argument("--sls-td", type=int, default=3, help="of training data, %(default)s; 4: with validation videos")
    epic.add_argument("--output", type=Path, required=True, help="a .zip, as the server takes it, or a .json")

    ego4d = challenges.add_parser("ego4d", help="Ego4D moment queries", allow_abbrev=False)
    ego4d.add_argument("--detections", type=Path, required=True, help="detections.json, for mAP")
    ego4d.add_argument("--retrievals", type=Path, help="detections.json for Recall@kx; default: the same")
    ego4d.add_argument("--test-file", type=Path, help="moments_test_unannotated.json: check for its clips")
    ego4d.add_argument("--output", type=Path, required=True, help="the .json file")
    return parser.parse_args(argv)


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
