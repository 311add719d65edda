"""What a rank does as ranks become more: a tiny model's real training, counted by stages.

    python tools/bench/scale.py                                         # 1, 2, 4 and 8 ranks, zero2.json
    python tools/bench/scale.py --ranks 2 4 8 16 32 --deepspeed_config ds_configs/zero3.json --json scale.json
    python tools/bench/scale.py --ranks 2 4 8 --set parallel.temporal=2

Processes are forked from this one, which has imported everything, and meet over gloo on this machine: counts say how
work grows, not how long it takes. Each rank has one window a step (the batch grows with the ranks); test videos stay
the same. Training starts, takes steps, saves, evaluates, ends and is resumed; `tools/bench/counting.py` says what is
counted. Of each quantity the table has rank 0's count and the most of any other rank, of steps the mean; a row that is
larger with the most ranks than with the fewest (of 2 or more) says GROWS, or why it may.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone, without installing

import torch

from adatad_ds.config.loading import override
from adatad_ds.config.schema import Config
from adatad_ds.data.generated.folders import generate_videos
from adatad_ds.distributed.ds_config import read_ds_config
from adatad_ds.distributed.world import World
from adatad_ds.errors import ConfigError
from adatad_ds.inference.feature_cache import cache_features
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.runs.folder import RunFolder
from adatad_ds.runs.lock import RunLock
from adatad_ds.system.utf8 import use_utf8
from adatad_ds.training.build import Session, build_trainer
from adatad_ds.training.preemption import StopRequest
from adatad_ds.training.trainer import Trainer
from tools.bench.counting import Counts

SETTINGS = (
    "backbone.weights=None", "data.window_size=32", "data.feature_stride_frames=2", "data.resolution=32",
    "data.short_side_before_crop=36", "data.workers=0", "head.width=32", "head.arch=[1,1,2]",
    "head.regression_range=[[0,4],[4,8],[8,10000]]", "test.batch=2", "train.warmup_epochs=0",
    "train.schedule_epochs=1", "train.stop_epoch=1", "train.eval_from_epoch=1", "train.eval_every=1",
    "train.log_every_steps=1", "train.precision=fp32",
)  # fmt: skip
VIDEOS, TEST_VIDEOS = 2, 3
STAGES = ("start", "step", "save", "evaluate", "end", "resume")
QUANTITIES = ("collectives", "messages", "bytes", "objects", "opened", "calls")
SHARE = 1.05  # of what there is with fewest ranks, and besides: partitions are filled up, one rank indexes videos for
BESIDES = {"calls": 4.0}  # all, and others look for what it writes, once or again
WHY = {
    ("evaluate", "bytes"): "every rank gets all candidates, padded to the largest share",
    ("evaluate", "objects"): "every rank gets each rank's candidates and detections, once an evaluation",
    ("end", "objects"): "up to 8 ranks tell their memory by themselves",
    ("end", "bytes"): "up to 8 ranks tell their memory by themselves",
}
Counted = dict[str, dict[str, int]]  # by stage and quantity


def main() -> int:
    """Count and print; exit code 1 if something grows that should not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--deepspeed_config", type=Path, default=Path("ds_configs/zero2.json"))
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the model")
    parser.add_argument("--json", type=Path, help="write each rank's counts here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    counted: dict[int, list[Counted]] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="adatad_scale_") as temporary:
            data = Path(temporary) / "data"
            generate(data)
            for ranks in sorted(arguments.ranks):
                config = tiny_config(data, arguments.set, ranks=ranks, steps=arguments.steps)
                folder = Path(temporary) / f"ranks{ranks}"
                folder.mkdir()
                counted[ranks] = _run_ranks(ranks, config, read_ds_config(arguments.deepspeed_config), folder)
                print(f"{ranks} ranks counted", file=sys.stderr, flush=True)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = table(counted, steps=arguments.steps)
    _print(rows, list(counted))
    if arguments.json:
        result = {"ds_config": str(arguments.deepspeed_config), "set": arguments.set, "rows": rows, "ranks": counted}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(any(row["note"] == "GROWS" for row in rows))


def generate(data: Path) -> None:
    """A few videos to train on, by a process of its own."""
    work = partial(generate_videos, data, train=VIDEOS, test=TEST_VIDEOS, workers=1, duration_sec=(6.0, 8.0))
    _wait([_fork(work, data.parent / "generation.log")])


def table(counted: Mapping[int, Sequence[Counted]], *, steps: int) -> list[dict[str, Any]]:
    """A row for each stage, quantity and kind of rank that counted anything: `counts` by number of ranks, and a note.

    Args:
        counted: each rank's counts, by number of ranks.
        steps: over which those of the stage `step` are averaged.
    """
    rows = []
    for stage in STAGES:
        for quantity in QUANTITIES:
            for whose, of in (("rank 0", slice(0, 1)), ("others", slice(1, None))):
                counts = {
                    ranks: max((each.get(stage, {}).get(quantity, 0) for each in found[of]), default=0)
                    / (steps if stage == "step" else 1)
                    for ranks, found in counted.items()
                }
                several = [count for ranks, count in sorted(counts.items()) if ranks > 1]
                grows = len(several) > 1 and several[-1] > SHARE * several[0] + BESIDES.get(quantity, 1.0)
                note = WHY.get((stage, quantity), "GROWS") if grows else ""
                if any(counts.values()):
                    rows.append({"stage": stage, "quantity": quantity, "whose": whose, "counts": counts, "note": note})
    return rows


def _print(rows: Sequence[Mapping[str, Any]], ranks: Sequence[int]) -> None:
    print("| stage | | | " + " | ".join(f"{count} ranks" for count in ranks) + " | |")
    print("|---" * (4 + len(ranks)) + "|")
    for row in rows:
        counts = " | ".join(f"{row['counts'][count]:,.10g}" for count in ranks)
        print(f"| {row['stage']} | {row['quantity']} | {row['whose']} | {counts} | {row['note']} |")


def tiny_config(data: Path, changes: Sequence[str], *, ranks: int, steps: int) -> Config:
    """Of a training of so many steps with a window a rank; `changes` as for `--set`."""
    files = [f"data.annotations={data / 'annotations.json'}", f"data.videos={data / 'videos'}"]
    config = override(find_recipe("quickstart").config, [*SETTINGS, *files, *changes])
    batch = ranks // config.parallel.temporal
    if batch * steps % VIDEOS:
        raise ConfigError(
            f"--steps {steps}: {batch} windows a step are not a multiple of {VIDEOS} videos; use an even one"
        )
    return override(config, [f"train.global_batch={batch}", f"train.repeats={batch * steps // VIDEOS}"])


def _run_ranks(ranks: int, config: Config, ds_config: dict[str, Any], folder: Path) -> list[Counted]:
    """Each rank's counts of a training."""
    fork_ranks(ranks, partial(_train, config, ds_config, folder), folder=folder)
    return [json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)]


def fork_ranks(ranks: int, work: Callable[[int], None], *, folder: Path) -> None:
    """Fork processes that are to join a world, give each its rank, and wait for them; output goes to `folder`.

    Raises:
        ConfigError: with the end of one's output; it has failed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {"ADATAD_DS_CACHE": str(folder / "cache"), "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    running = []
    for rank in range(ranks):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        running.append(_fork(partial(work, rank), folder / f"rank{rank}.log"))
    _wait(running)


def _fork(action: Callable[[], Any], log: Path) -> tuple[int, Path]:
    """A process that acts and ends, its output in a file."""
    process = os.fork()
    if process:
        return process, log
    code = 1
    with log.open("w", encoding="utf-8") as output, redirect_stdout(output), redirect_stderr(output):
        try:
            action()
            code = 0
        except BaseException:  # whatever it is, this process must end here
            traceback.print_exc(file=output)
    os._exit(code)


def _wait(processes: Sequence[tuple[int, Path]]) -> None:
    """Wait for processes; when one has failed, end the others.

    Raises:
        ConfigError: with the end of its output.
    """
    left = dict(processes)
    failed = None
    while left:
        process, status = os.wait()
        log = left.pop(process)
        if status and failed is None:
            failed = log.read_text(encoding="utf-8")[-3000:]
            for other in left:
                os.kill(other, 9)
    if failed is not None:
        raise ConfigError(f"a rank failed:\n{failed}")


def _train(config: Config, ds_config: dict[str, Any], folder: Path, rank: int) -> None:
    """Train and resume as one rank, and write its counts."""
    counts = Counts([Path(config.data.videos).parent, folder / "run", folder / "cache"])
    world = World.join()
    session = partial(open_session, world=world, folder=folder / "run")
    trainer = build(config, ds_config, session(), resume=False)
    trainer.save = counts.within("save", trainer.save)
    trainer.evaluate_if_due = counts.within("evaluate", trainer.evaluate_if_due)
    with counts.stage("step"):
        trainer.run()
    with counts.stage("end"):
        trainer.report_evaluations()
        trainer.report_memory()
        trainer.close()
        trainer.lock.release()
    with counts.stage("resume"):
        trainer = build(config, ds_config, session(), resume=True)
    trainer.close()
    trainer.lock.release()
    (folder / f"rank{rank}.json").write_text(json.dumps(counts.by_stage()), encoding="utf-8")
    world.gather(None)  # rank 0 holds the store in which the ranks meet


def open_session(*, world: World, folder: Path) -> Session:
    """One training in this folder."""
    run = RunFolder(folder)
    stop = StopRequest(launched=False, rank=world.rank)
    return Session(run=run, lock=RunLock(run.path), world=world, stop=stop)


def build(config: Config, ds_config: dict[str, Any], session: Session, *, resume: bool) -> Trainer:
    """The trainer, which has locked its folder."""
    session.world.on_main(session.lock.take)
    return build_trainer(
        config, ds_config, class_order=None, resume=resume, cache_features=cache_features, session=session
    )


if __name__ == "__main__":
    use_utf8()
    sys.dont_write_bytecode = True  # which whoever imports a module first would be counted with
    sys.exit(main())
