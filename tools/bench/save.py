"""How long a save stops training, beside a copy of the bytes that it saves.

    python tools/bench/save.py                                  # ZeRO-2 and ZeRO-3, one rank and two
    python tools/bench/save.py --ranks 1 --set backbone.name=videomae_s --set head.width=256

After a short training of a small model on generated videos, saves and copies take turns. A save stops training until
rank 0 has its copy of masters, Adam moments and running average; it is written, which is waited for here, while
training goes on. Copying is a clone of each of these fp32 tensors, all of them on rank 0. Seconds are the processor
time of rank 0's main thread: the writer's thread does not count, nor does waiting for other ranks. Encoded: with
`train.compact_checkpoints`, which takes 9 bytes a parameter of the 16.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone, without installing

import torch

from adatad_ds.config.schema import Config
from adatad_ds.distributed.ds_config import read_ds_config
from adatad_ds.distributed.world import World
from adatad_ds.errors import ConfigError
from adatad_ds.system.utf8 import use_utf8
from tools.bench.scale import build, fork_ranks, generate, open_session, tiny_config

SETTINGS = ("backbone.name=videomae_s", "head.width=512", "train.eval_from_epoch=100", "test.max_per_video=1")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--deepspeed_config", type=Path, nargs="+", default=list(map(_stage, (2, 3))))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| ranks | DeepSpeed | encoded | GB | stops training, s | copy, s | ratio | written in, s |")
    print("|---" * 8 + "|")
    try:
        with tempfile.TemporaryDirectory(prefix="adatad_save_") as temporary:
            data = Path(temporary) / "data"
            generate(data)
            for ranks in arguments.ranks:
                for ds_config in arguments.deepspeed_config:
                    for compact in ("false", "true"):
                        settings = [*SETTINGS, *arguments.set, f"train.compact_checkpoints={compact}"]
                        config = tiny_config(data, settings, ranks=ranks, steps=2)
                        with tempfile.TemporaryDirectory(dir=temporary) as folder:
                            work = partial(_measure, config, read_ds_config(ds_config), Path(folder), arguments.rounds)
                            fork_ranks(ranks, work, folder=Path(folder))
                            found = json.loads((Path(folder) / "seconds.json").read_text(encoding="utf-8"))
                        stops, copies, written, size = found
                        ratio = median(a / b for a, b in zip(stops, copies, strict=True))
                        print(
                            f"| {ranks} | {ds_config.stem} | {compact} | {size / 1e9:.3f} | {median(stops):.3f} | "
                            f"{median(copies):.3f} | {ratio:.2f} | {median(written):.2f} |",
                            flush=True,
                        )
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _stage(stage: int) -> Path:
    return Path(f"ds_configs/zero{stage}.json")


def _measure(config: Config, ds_config: dict[str, Any], folder: Path, rounds: int, rank: int) -> None:
    """Train, then save and copy in turn; rank 0 writes seconds of each round and the bytes copied."""
    world = World.join()
    trainer = build(config, ds_config, open_session(world=world, folder=folder / "run"), resume=False)
    trainer.run()
    state = [tensor.clone() for _, kinds in trainer.engine.trainable_state() for tensor in kinds.values()]
    stops, copies, written = [], [], []
    for _ in range(rounds):
        trainer.finish_saving()
        began = time.thread_time()
        trainer.save()
        saved = time.thread_time()
        wall = time.perf_counter()
        trainer.finish_saving()
        written.append(time.perf_counter() - wall)
        stops.append(saved - began)
        began = time.thread_time()
        copied = [tensor.clone() for tensor in state]
        copies.append(time.thread_time() - began)
        del copied
    if rank == 0:
        size = sum(tensor.numel() * tensor.element_size() for tensor in state)
        (folder / "seconds.json").write_text(json.dumps([stops, copies, written, size]), encoding="utf-8")
    trainer.close()
    trainer.lock.release()
    world.gather(None)  # rank 0 holds the store in which the ranks meet


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
