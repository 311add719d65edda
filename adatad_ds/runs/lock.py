"""One run, one trainer: the lock of a run's folder.

The lock is a file that one process alone can create (O_EXCL), which holds on every file system, those without `flock`
included. It names its holder, who renews the file's time every few seconds. A holder on this machine is known by its
process. One on another machine is watched for a while: if the file's time stands still, the holder is gone. No two
clocks are compared, so they need not agree.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from adatad_ds.errors import ConfigError, TrainingError, WriteError

LOCK_FILE = "lock"
BEAT_SEC = 10.0  # between two signs of life
WATCH_SEC = 60.0  # without one, after which a holder on another machine is taken for gone
SETTLE_SEC = 1.0  # in which of several that take over a stale lock one remains


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lock.

    Attributes:
        token: different for each lock taken.
        machine: the same for processes that see one another's numbers.
        host: the machine's name, for people.
        process: its number.
        started: when the process started, as its machine counts; a number is given out again, the two together aren't.
        job: Slurm's job, if it is one.
        since: when the lock was taken, for people.
    """

    token: str
    machine: str
    host: str
    process: int
    started: str
    job: str | None
    since: str

    def __str__(self) -> str:
        job = f" (Slurm job {self.job})" if self.job else ""
        return f"process {self.process} on {self.host}{job}, since {self.since}"


class RunLock:
    """The right to train in a run's folder, for one process.

    Args:
        folder: the run's; made when the lock is taken.
        beat_sec: between two signs of life.
        watch_sec: how long to wait for another machine's sign of life; several times its `beat_sec`.
    """

    def __init__(self, folder: Path, *, beat_sec: float = BEAT_SEC, watch_sec: float = WATCH_SEC) -> None:
        self._path = folder / LOCK_FILE
        self._beat_sec, self._watch_sec = beat_sec, watch_sec
        self._own: Holder | None = None
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="run lock", daemon=True)

    def take(self) -> str | None:
        """Take the lock; waits for `watch_sec` where another machine's holder may be gone.

        Returns:
            Who left a stale lock behind, in words; None: nobody.

        Raises:
            ConfigError: another process trains here.
            WriteError: the folder cannot be written to.
        """
        stale = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            own = _this_process()
            if not self._create(own):
                left = self._read()
                if self._lives(left):
                    raise self._in_use(left)
                stale = str(left or "a process that is gone")
                if self._read() == left:
                    self._path.unlink(missing_ok=True)
                if not self._create(own):
                    raise self._in_use(self._read())
                time.sleep(SETTLE_SEC)  # another may have found the same stale lock
                if (held := self._read()) != own:
                    raise self._in_use(held)
        except OSError as error:
            raise WriteError(
                f"cannot write to the run's folder {self._path.parent}: {error.strerror or error}; choose another with "
                "--run-dir"
            ) from error
        self._own = own
        self._beating.start()
        return stale

    def check(self) -> None:
        """See that the lock is still held; call it before writing what another trainer's would be lost to.

        Raises:
            TrainingError: it was removed or taken over, as when this process had been stopped for long.
        """
        if self._own is not None and (held := self._read()) != self._own:
            raise TrainingError(
                f"{self._path.parent} is no longer this training's: its lock is "
                f"{f'held by {held}' if held else 'gone'}. Nothing more is written there; what was saved is whole"
            )

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._own is None:
            return
        self._ended.set()
        self._beating.join()
        with suppress(OSError):
            if self._read() == self._own:
                self._path.unlink()
        self._own = None

    def _create(self, own: Holder) -> bool:
        """Whether the lock's file was made by this call."""
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(own), file)
        return True

    def _read(self) -> Holder | None:
        """The holder; None where there is no lock, or a crash cut its file short."""
        try:
            return Holder(**json.loads(self._path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _lives(self, holder: Holder | None) -> bool:
        """Whether a holder is still at work."""
        if holder is not None and holder.machine == _machine():
            return _runs(holder.process, holder.started)
        before, deadline = self._renewed(), time.monotonic() + self._watch_sec
        while time.monotonic() < deadline:
            if self._renewed() != before:
                return True
            time.sleep(min(1.0, self._watch_sec / 10))
        return False

    def _renewed(self) -> int | None:
        """Time of the last sign of life; opened for it, since a network file system looks anew only then."""
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
        return None

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_sec):
            with suppress(OSError):  # the next one may reach a server that is away now
                if self._read() == self._own:
                    os.utime(self._path)

    def _in_use(self, holder: Holder | None) -> ConfigError:
        return ConfigError(
            f"another training runs in {self._path.parent}: {holder or 'its lock is being renewed'}. Wait for its end, "
            "or choose another folder with --run-dir"
        )


def _this_process() -> Holder:
    return Holder(
        token=uuid.uuid4().hex,
        machine=_machine(),
        host=platform.node(),
        process=os.getpid(),
        started=_started(os.getpid()),
        job=os.environ.get("SLURM_JOB_ID"),
        since=time.strftime("%Y-%m-%d %H:%M:%S %z"),
    )


def _machine() -> str:
    """Names the system's start and, within containers, the set of processes that sees one another."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _runs(process: int, started: str) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return _started(process) == started


def _started(process: int) -> str:
    """When a process of this machine started; "" where the system does not say, "ended" of one that only awaits its
    parent."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "ended" if state in "ZX" else fields[18]
