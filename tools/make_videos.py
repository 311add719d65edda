"""Generate a data set of untrimmed H.264 videos with annotations: the quickstart's data.

python tools/make_videos.py --out data/quickstart --train 160 --test 32 --seed 1
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

from adatad_ds.data.generated.videos import Purpose, annotation, generator, make_video, write_video
from adatad_ds.system.utf8 import use_utf8

SUBSETS: dict[Purpose, str] = {"training": "training", "test": "validation"}  # THUMOS14's names


@dataclass(frozen=True)
class Job:
    """One video to make."""

    purpose: Purpose
    seed: int
    index: int
    folder: Path

    @property
    def name(self) -> str:
        """The video's name, and its file's."""
        return f"{self.purpose}_{self.index:04d}"


def make(job: Job) -> tuple[str, dict[str, object]]:
    """Draw and encode one video; its name and annotation."""
    video = make_video(generator(job.purpose, job.seed, job.index))
    write_video(video, job.folder / f"{job.name}.mp4")
    return job.name, annotation(video, subset=SUBSETS[job.purpose])


def main() -> int:
    """Make the data set, unless the same one is there already."""
    parser = argparse.ArgumentParser(description="Generate untrimmed videos with annotated actions.")
    parser.add_argument("--out", type=Path, required=True, help="folder for annotations.json and videos/")
    parser.add_argument("--train", type=int, default=160, help="training videos")
    parser.add_argument("--test", type=int, default=32, help="test videos")
    parser.add_argument("--seed", type=int, default=1, help="another seed, another data set")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    arguments = parser.parse_args()

    wanted = {"train": arguments.train, "test": arguments.test, "seed": arguments.seed}
    marker = arguments.out / "complete.json"  # written last
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == wanted:
        print(f"{arguments.out} is complete")
        return 0
    marker.unlink(missing_ok=True)
    videos = arguments.out / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    counts: list[tuple[Purpose, int]] = [("training", arguments.train), ("test", arguments.test)]
    jobs = [Job(purpose, arguments.seed, index, videos) for purpose, count in counts for index in range(count)]
    with multiprocessing.Pool(arguments.workers) as pool:
        made = dict(tqdm(pool.imap(make, jobs), total=len(jobs), unit="video", dynamic_ncols=True))
    (arguments.out / "annotations.json").write_text(json.dumps({"database": made}, indent=1), encoding="utf-8")
    marker.write_text(json.dumps(wanted), encoding="utf-8")
    seconds = sum(float(str(video["duration"])) for video in made.values())
    actions = [action for video in made.values() for action in video["annotations"]]  # type: ignore[union-attr]
    print(f"{len(made)} videos, {seconds / 60:.0f} minutes, {len(actions)} actions in {arguments.out}")
    return 0


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
