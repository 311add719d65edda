"""Extract features of whole videos once, to train heads on them in minutes.

    adatad-ds extract-features --recipe thumos14_videomae_s_frozen --out data/thumos14/features
    adatad-ds extract-features --checkpoint runs/NAME --out FOLDER      (with a trained model's adapters)
    adatad-ds extract-features --recipe R --clip-frames 16 --stride 4 --out FOLDER      (one feature per clip)

Writes FOLDER/NAME.npy (T, C) for each video and FOLDER/features.json; docs/guides/features.md says how to train on
them. If the command is stopped, run it again to continue with the remaining videos. Several ranks (torchrun, srun) or
the jobs of a Slurm array (--share "$SLURM_ARRAY_TASK_ID/8") each process a share of the videos.

Exit code: 0 all videos are done, 1 some cannot be read (0 with several ranks, or the launcher would end the others), 2
nothing could be started, 130 interrupted.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adatad_ds.cli.commands import command_parser
from adatad_ds.errors import ConfigError
from adatad_ds.system.launch import launched_rank, launched_ranks
from adatad_ds.system.options import at_least

if TYPE_CHECKING:
    from adatad_ds.config.schema import Config
    from adatad_ds.data.features.plan import Snippet


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(prog, __doc__)
    add = parser.add_argument
    add("--recipe", help="recipe whose frozen backbone and data are used; with a published --checkpoint, its recipe")
    add(
        "--checkpoint", type=Path, help="run, checkpoint, export or published .pth whose backbone with adapters is used"
    )
    add("--out", type=Path, required=True, help="folder of the features")
    add(
        "--videos",
        nargs="+",
        metavar="VIDEO",
        help="files, folders (searched recursively), globs; default: those of data.annotations",
    )
    add(
        "--stride",
        type=at_least(1),
        metavar="FRAMES",
        help="file frames between two features; default: as in the recipe",
    )
    add(
        "--clip-frames",
        type=at_least(1),
        metavar="FRAMES",
        help="one averaged feature per clip of this many frames; default: features as in evaluation windows",
    )
    add(
        "--frame-stride",
        type=at_least(1),
        default=1,
        metavar="FRAMES",
        help="file frames between two frames of a clip; default: %(default)s",
    )
    add("--dtype", choices=("fp16", "fp32"), default="fp16", help="dtype of the stored features; default: %(default)s")
    add("--share", default="0/1", metavar="I/N", help="process share I of N, counted from 0; default: all")
    add("--no-ema", action="store_true", help="use the last weights, not their running average (EMA)")
    add("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a setting")
    return parser


def main(argv: Sequence[str], *, prog: str) -> int:
    """Extract."""
    arguments = make_parser(prog).parse_args(argv)
    share, shares = _share(arguments.share)
    if arguments.no_ema and arguments.checkpoint is None:
        raise ConfigError("--no-ema goes with --checkpoint; a recipe's frozen backbone has no running average")
    from tqdm import tqdm

    from adatad_ds.data.video_files import find_files
    from adatad_ds.inference.feature_job import Job, extract, open_source

    overrides = list(arguments.set)
    if arguments.stride is not None and arguments.clip_frames is None:
        overrides.append(f"data.feature_stride_frames={arguments.stride}")
    source = open_source(
        recipe=arguments.recipe,
        checkpoint=arguments.checkpoint,
        overrides=overrides,
        averaged=not arguments.no_ema,
    )
    videos, absent = find_files(arguments.videos, reserved="features", ending=".npy") if arguments.videos else ({}, [])
    for message in absent:
        print(f"error: {message}", file=sys.stderr)
    ranks = launched_ranks()
    job = Job(
        out=arguments.out,
        videos=videos,
        snippet=_snippet(arguments, source.config),
        dtype="float16" if arguments.dtype == "fp16" else "float32",
        share=share * ranks + launched_rank(),
        shares=shares * ranks,
    )
    extracted = extract(source, job, report=tqdm.write)
    videos_of = f"{extracted.done} of {extracted.done + len(extracted.failed)} videos"
    share_of = f" of share {job.share} of {job.shares}" if job.shares > 1 else ""
    rest = "" if extracted.complete else "; features.json lists all videos once the last share is done"
    print(f"{videos_of}{share_of} in {job.out}{rest}")
    # Launchers end all ranks when one exits with an error: they get 0, and features.json names what failed.
    return 1 if (extracted.failed or absent) and ranks == 1 else 0


def _snippet(arguments: argparse.Namespace, config: Config) -> Snippet | None:
    """The clip of each feature; None: features as evaluation windows have them."""
    from adatad_ds.data.features.plan import Snippet

    if arguments.clip_frames is None:
        if arguments.frame_stride != 1:
            raise ConfigError("--frame-stride needs --clip-frames; without it, data.frames_per_feature applies")
        if arguments.stride is not None and config.data.sampling == "resize":
            raise ConfigError(
                "this recipe resizes each video to the same number of features; --stride needs --clip-frames, or "
                "--set data.sampling=random_trunc"
            )
        return None
    frames, stride = arguments.clip_frames, arguments.stride or config.data.feature_stride_frames
    if stride is None:
        raise ConfigError("--clip-frames needs --stride: this recipe has none")
    if frames % config.clip_frames:
        raise ConfigError(
            f"--clip-frames {frames} is not a multiple of {config.clip_frames}, the frames that {config.backbone.name} "
            "takes at once"
        )
    return Snippet(frames=frames, frame_stride=arguments.frame_stride, stride=stride)


def _share(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise ConfigError(f"--share {text}: give I/N with I from 0 to N - 1, as --share 0/4")
    return int(found[1]), int(found[2])
