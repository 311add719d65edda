"""A campaign of faults against small trainings on a CPU: killed, signalled, stopped, short of space, damaged, doubled.

    python tools/faults.py --trials 100 --out runs/faults

Each trial starts a training, disturbs it at a random time, waits for its end, and goes on with --resume auto. Losses
must then be those of an undisturbed run, bit by bit, or the program must say in a line why not. What each kind of fault
came to is printed as a table, and written to report.md; every trial is a line of trials.jsonl. A campaign that was
ended goes on where it was when it is started again with the same arguments.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # runs from a fresh clone, without installing

from adatad_ds.system.utf8 import use_utf8
from tools.fault_runs import FAULTS, LAYOUTS, Run

DISK_MB = (2, 9)  # less than a run fills, which keeps three checkpoints of 3 MB
COLUMNS = ("exact", "refused", "failed", "silent", "hang", "orphans")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a disturbed run came to.

    Attributes:
        kind: of the fault.
        launcher: python, torchrun or deepspeed.
        step: the last one logged before the fault; -1: none.
        codes: exit codes of the disturbed run and of the resumed one.
        outcome: exact, refused (a line says why), failed (said, but it should have gone on), silent or hang.
        orphans: processes that stayed.
        said: the last error that was said.
    """

    kind: str
    launcher: str
    step: int
    codes: tuple[int, ...]
    outcome: str
    orphans: int
    said: str


class Campaign:
    """Undisturbed losses, and trials against them.

    Args:
        folder: for data and runs.
        seed: of the trials.
    """

    def __init__(self, folder: Path, *, seed: int) -> None:
        self._folder, self._seed = folder, seed
        self._data = folder / "data"
        if not (self._data / "annotations.json").exists():
            made = [sys.executable, "-m", "adatad_ds", "generate", "videos", "--out", str(self._data)]
            made += ["--train", "8", "--test", "2", "--seconds", "6", "10"]
            subprocess.run(made, cwd=REPOSITORY, check=True, capture_output=True)
        self._expected: dict[str, dict[int, float]] = {}

    def trial(self, number: int, kind: str, launcher: str) -> Trial:
        """Disturb a run, go on, and judge."""
        expected = self._undisturbed(launcher)
        chance = random.Random(f"{self._seed} {number}")
        folder = self._folder / f"trial_{number:04d}"
        shutil.rmtree(folder, ignore_errors=True)
        if kind == "full disk":
            folder.mkdir()
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={chance.randint(*DISK_MB)}m", "none", str(folder)], check=True
            )
        run = Run(folder, data=self._data, launcher=launcher)
        run.until_step(chance.randrange(-1, max(expected)))
        time.sleep(chance.uniform(0, 2))
        step = max(run.losses(), default=-1)
        if kind == "two trainings":
            other = Run(folder, data=self._data, launcher=launcher, changes=["train.seed=1"])
            ends = [other.wait(), other.orphans()]
            run_codes, orphans, heard = [ends[0]], ends[1] or 0, other.said()
        else:
            FAULTS[kind](run, chance)
            run_codes, orphans, heard = [], 0, ""
        run_codes.append(run.wait())
        orphans += run.orphans()
        heard = heard or run.said()
        if kind == "flip a byte":
            self._flip(folder, chance)
        if kind == "full disk":
            subprocess.run(["mount", "-o", "remount,size=500m", str(folder)], check=True)
        resumed = Run(folder, data=self._data, launcher=launcher)
        codes = [*run_codes, resumed.wait()]
        orphans += resumed.orphans()
        outcome = self._judge(codes, exact=resumed.losses() == expected, disturbed=heard, resumed=resumed.said())
        if kind in ("kill all", "flip a byte") and outcome == "silent" and codes[-1] == 0:
            outcome = "exact"  # nobody was left to say anything
        if kind == "full disk":
            subprocess.run(["umount", str(folder)], check=True)
        shutil.rmtree(folder)
        said = resumed.said() or heard
        ended = tuple(code if code is not None else 999 for code in codes)
        return Trial(
            kind=kind, launcher=launcher, step=step, codes=ended, outcome=outcome, orphans=orphans, said=said[:300]
        )

    def _judge(self, codes: Sequence[int | None], *, exact: bool, disturbed: str, resumed: str) -> str:
        if None in codes:
            return "hang"
        if codes[-1] != 0:
            return "refused" if resumed else "silent"
        if not exact:
            return "failed"
        return "exact" if disturbed or codes[0] in (0, -signal.SIGKILL, -signal.SIGINT, -signal.SIGHUP) else "silent"

    def _flip(self, folder: Path, chance: random.Random) -> None:
        """One bit in one file of the newest checkpoint, each file's turn by chance."""
        checkpoints = sorted((folder / "checkpoints").glob("step_*"))
        if not checkpoints:
            return
        file = chance.choice(sorted(path for path in checkpoints[-1].iterdir() if path.is_file()))
        content = bytearray(file.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(content)

    def _undisturbed(self, launcher: str) -> dict[int, float]:
        if launcher not in self._expected:
            folder = self._folder / f"whole_{launcher}"
            run = Run(folder, data=self._data, launcher=launcher)
            if run.wait() != 0:
                raise SystemExit(f"error: the undisturbed run under {launcher} failed: {run.said()}; see {run.output}")
            run.orphans()
            self._expected[launcher] = run.losses()
        return self._expected[launcher]


def table(trials: Sequence[Trial]) -> str:
    """What each kind of fault came to."""
    lines = [f"| fault | trials | {' | '.join(COLUMNS)} |", f"|---|{'---|' * (len(COLUMNS) + 1)}"]
    for kind in [*dict.fromkeys(trial.kind for trial in trials), "all"]:
        chosen = [trial for trial in trials if kind in (trial.kind, "all")]
        counts = Counter(trial.outcome for trial in chosen)
        counts["orphans"] = sum(trial.orphans for trial in chosen)
        lines.append(f"| {kind} | {len(chosen)} | {' | '.join(str(counts[column]) for column in COLUMNS)} |")
    return "\n".join(lines)


def main() -> int:
    """Run the trials; 1 if one was silent, hung, left processes behind, or lost what it had."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--launchers", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    arguments = parser.parse_args()
    folder = arguments.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    campaign, done = Campaign(folder, seed=arguments.seed), folder / "trials.jsonl"
    lines = done.read_text(encoding="utf-8").splitlines() if done.exists() else []
    trials = [Trial(**json.loads(line)) for line in lines]
    kinds = [kind for kind in arguments.kinds if kind != "full disk" or os.geteuid() == 0]  # a tmpfs takes root
    with done.open("a", encoding="utf-8") as log:
        for number in range(len(trials), arguments.trials):
            kind = kinds[number % len(kinds)]
            trial = campaign.trial(number, kind, arguments.launchers[number // len(kinds) % len(arguments.launchers)])
            trials.append(trial)
            log.write(json.dumps(asdict(trial)) + "\n")
            log.flush()
            print(f"{number + 1}/{arguments.trials} {trial}", flush=True)
            (folder / "report.md").write_text(table(trials) + "\n", encoding="utf-8")
    print(table(trials))
    return int(any(trial.outcome not in ("exact", "refused") or trial.orphans for trial in trials))


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
