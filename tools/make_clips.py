"""Generate short H.264 clips in a folder per class: the quickstart's data of recognition.

python tools/make_clips.py --out data/quickstart_clips --train 60 --test 15 --seed 1
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from adatad_ds.data.generated.clips import CLASSES, FPS, SIDE, TWINS, generator, make_clip
from adatad_ds.data.generated.videos import encode
from adatad_ds.system.utf8 import use_utf8


@dataclass(frozen=True)
class Job:
    """One clip and its twin to make."""

    subset: str
    seed: int
    twins: int
    index: int
    out: Path


def make(job: Job) -> None:
    """Draw and encode one clip forwards and backwards, one for each of two classes."""
    for label in TWINS[job.twins]:
        frames = make_clip(label, generator(job.subset, job.seed, job.twins, job.index))
        path = job.out / job.subset / label / f"{job.index:04d}.mp4"
        encode(frames, path, fps=FPS, width=SIDE, height=SIDE)


def main() -> int:
    """Make the data set, unless the same one is there already."""
    parser = argparse.ArgumentParser(description="Generate clips of classes that differ only in the motion.")
    parser.add_argument("--out", type=Path, required=True, help="folder for train/CLASS/*.mp4 and test/CLASS/*.mp4")
    parser.add_argument("--train", type=int, default=60, help="training clips of a class")
    parser.add_argument("--test", type=int, default=15, help="test clips of a class")
    parser.add_argument("--seed", type=int, default=1, help="another seed, another data set")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    arguments = parser.parse_args()

    counts = {"train": arguments.train, "test": arguments.test}
    wanted = {**counts, "seed": arguments.seed}
    marker = arguments.out / "complete.json"  # written last
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == wanted:
        print(f"{arguments.out} is complete")
        return 0
    marker.unlink(missing_ok=True)
    for subset in counts:
        for label in CLASSES:
            folder = arguments.out / subset / label
            folder.mkdir(parents=True, exist_ok=True)
            for clip in folder.glob("[0-9][0-9][0-9][0-9].mp4"):  # a smaller data set keeps none of a larger one
                clip.unlink()
    jobs = [
        Job(subset, arguments.seed, twins, index, arguments.out)
        for subset, count in counts.items()
        for twins in range(len(TWINS))
        for index in range(count)
    ]
    with multiprocessing.Pool(arguments.workers) as pool:
        for _ in tqdm(pool.imap(make, jobs), total=len(jobs), unit="pair", dynamic_ncols=True):
            pass
    marker.write_text(json.dumps(wanted), encoding="utf-8")
    print(f"{2 * len(jobs)} clips of {len(CLASSES)} classes in {arguments.out}")
    return 0


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
