"""One run, one trainer: the lock of a run's folder.

The lock is a file that only one process can create (O_EXCL), which works on every file system, also without `flock`.
It names its holder, who updates the file's time every few seconds (a heartbeat). A holder on this machine is checked
by its process. One on another machine is watched for a while: if the file's time does not change, the holder is gone.
No two clocks are compared, so they need not agree. A stale lock is not removed and created again, which two processes
could do one after the other: it is outranked by `lock.1`, that by `lock.2`, and so on. The highest one counts.
"""

from __future__ import annotations

import json
import os
import platform
import re
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from adatad_ds.errors import ConfigError, TrainingError, WriteError

LOCK_FILE = "lock"
BEAT_SEC = 10.0  # between heartbeats
WATCH_SEC = 60.0  # without a heartbeat, after which a holder on another machine counts as gone


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        token: unique to each acquisition.
        machine: the same for processes with a common PID namespace.
        host: the machine's name, for messages.
        process: its PID.
        started: when the process started, in its machine's clock ticks; PIDs are reused, the two together are not.
        job: the Slurm job id, if any.
        since: when the lock was taken, for messages.
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
        folder: the run's folder; created when the lock is taken.
        beat_sec: seconds between heartbeats.
        watch_sec: how long to wait for a heartbeat from another machine; several times its `beat_sec`.
    """

    def __init__(self, folder: Path, *, beat_sec: float = BEAT_SEC, watch_sec: float = WATCH_SEC) -> None:
        self._folder = folder
        self._path = folder / LOCK_FILE  # this process' own, once taken
        self._beat_sec, self._watch_sec = beat_sec, watch_sec
        self._own: Holder | None = None
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="run lock", daemon=True)

    def take(self) -> str | None:
        """Take the lock; waits up to `watch_sec` for a heartbeat if a process on another machine holds it.

        Returns:
            Description of the holder of a stale lock that was taken over; None: there was none.

        Raises:
            ConfigError: another process trains here.
            WriteError: the folder cannot be written to.
        """
        stale = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            own = _this_process()
            highest = self._highest()
            if highest is not None:
                if self._lives(highest):
                    raise self._in_use(_read(highest))
                stale = str(_read(highest) or "a process that is gone")
            self._path = self._folder / _name(0 if highest is None else _rank(highest) + 1)
            if not _create(self._path, own):
                raise self._in_use(_read(self._path))
            if (held := self._held()) != own:  # another one took it over, before or since
                self._path.unlink(missing_ok=True)
                raise self._in_use(held)
            for path in self._files():
                if _rank(path) < _rank(self._path):
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise WriteError(
                f"cannot write to --run-dir {self._folder}: {error.strerror or error}; choose a folder that can "
                "be made and written to"
            ) from error
        self._own = own
        self._beating.start()
        return stale

    def check(self) -> None:
        """Check that the lock is still held; call it before writing to the run's folder.

        Raises:
            TrainingError: it was removed or taken over, e.g. while this process was suspended.
        """
        if self._own is not None and (held := self._held()) != self._own:
            raise TrainingError(
                f"{self._folder} is no longer this training's: its lock is "
                f"{f'held by {held}' if held else 'gone'}. Nothing more is written there; what was saved is intact"
            )

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._own is None:
            return
        self._ended.set()
        self._beating.join()
        with suppress(OSError):
            if _read(self._path) == self._own:
                self._path.unlink()
        self._own = None

    def _files(self) -> list[Path]:
        """The lock files in the folder, by rank."""
        paths = (
            path for path in self._folder.glob(f"{LOCK_FILE}*") if re.fullmatch(rf"{LOCK_FILE}(\.\d+)?", path.name)
        )
        return sorted(paths, key=_rank)

    def _highest(self) -> Path | None:
        return max(self._files(), key=_rank, default=None)

    def _held(self) -> Holder | None:
        """The holder of the lock that counts; None without one, or if a crash truncated its file."""
        highest = self._highest()
        return None if highest is None else _read(highest)

    def _lives(self, path: Path) -> bool:
        """Whether the holder is still running; a lock file that is still being written counts as held."""
        before, deadline = _renewed(path), time.monotonic() + self._watch_sec
        while True:
            holder = _read(path)
            if holder is not None and holder.machine == _machine():
                return _runs(holder.process, holder.started)
            if (renewed := _renewed(path)) != before:
                return renewed is not None
            if before is None:
                return False
            if time.monotonic() >= deadline:
                return False
            time.sleep(min(1.0, self._watch_sec / 10))

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_sec):
            with suppress(OSError):  # the server may be back at the next one
                if _read(self._path) == self._own:
                    os.utime(self._path)

    def _in_use(self, holder: Holder | None) -> ConfigError:
        return ConfigError(
            f"another training runs in {self._folder}: {holder or 'its lock is being renewed'}. Wait until it "
            "ends, or choose another folder with --run-dir"
        )


def _name(rank: int) -> str:
    return f"{LOCK_FILE}.{rank}" if rank else LOCK_FILE


def _rank(path: Path) -> int:
    return int(path.suffix[1:] or 0)


def _create(path: Path, own: Holder) -> bool:
    """Create a lock's file; False if it exists."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(own), file)
    return True


def _read(path: Path) -> Holder | None:
    """The holder that a file names; None without the file, or if a crash truncated it."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _renewed(path: Path) -> int | None:
    """Time of the last heartbeat; opens the file, since network file systems refresh its time only then."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns
    return None


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
    """Identifies this boot of the machine and, in containers, the PID namespace."""
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
    """When a process of this machine started; "" if the system does not tell, "ended" for a zombie."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "ended" if state in "ZX" else fields[18]
