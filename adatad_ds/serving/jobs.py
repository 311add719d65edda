"""The server's jobs: a queue of one detector, each with its progress, its result and its files."""

from __future__ import annotations

import queue
import secrets
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Literal

import av

from adatad_ds.data.decoding.video import VideoError, forget_indexes, probe
from adatad_ds.data.video_files import length_sec
from adatad_ds.errors import DataError
from adatad_ds.evaluation.detections_file import write_results
from adatad_ds.evaluation.operating_point import ShownFrom
from adatad_ds.evaluation.video.page import write_page
from adatad_ds.inference.video_detector import VideoDetector
from adatad_ds.serving.video_paths import check_video

State = Literal["queued", "running", "done", "failed", "cancelled"]
RESULT, PAGE, VIDEO = "detections.json", "page.html", "video"


class QueueFullError(Exception):
    """There are as many waiting jobs as are allowed."""


class _StoppedError(Exception):
    """The job is to end; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may ask for.

    Attributes:
        max_mb: size of an upload.
        max_video_min: length of a video.
        max_job_min: time of a job, from its beginning.
        max_queued: jobs that wait.
        kept: finished jobs whose results are kept.
    """

    max_mb: float
    max_video_min: float
    max_job_min: float
    max_queued: int
    kept: int


@dataclass(kw_only=True)
class Job:
    """A video to search.

    Attributes:
        id: hard to guess.
        name: of the video, for people.
        path: the file.
        uploaded: the file belongs to the job, and goes with it.
        state: see `State`.
        progress: share that is done.
        error: why it failed.
        damage: what the file lacks.
    """

    id: str
    name: str
    path: Path
    uploaded: bool
    state: State = "queued"
    progress: float = 0.0
    error: str = ""
    damage: str = ""
    cancelled: bool = field(default=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """What clients are told, JSON-ready."""
        tree: dict[str, Any] = {"id": self.id, "name": self.name, "state": self.state, "progress": self.progress}
        tree |= {"error": self.error} if self.error else {}
        tree |= {"damage": self.damage} if self.damage else {}
        if self.state == "done":
            tree |= {"detections": f"/jobs/{self.id}/{RESULT}", "page": f"/jobs/{self.id}/{PAGE}"}
        return tree


class Jobs:
    """Runs jobs one after the other, in a thread, and keeps the last results.

    Args:
        detector: of videos.
        shown: least score in pages.
        folder: for uploads and results; it belongs to the server.
        limits: see there.
        report: told about each job's end.
    """

    def __init__(
        self,
        detector: VideoDetector,
        *,
        shown: ShownFrom,
        folder: Path,
        limits: Limits,
        report: Callable[[str], object],
    ) -> None:
        self.limits, self.folder = limits, folder
        self._detector, self._shown, self._report = detector, shown, report
        self._jobs: dict[str, Job] = {}
        self._lock = Lock()
        self._waiting: queue.Queue[Job | None] = queue.Queue()
        self._reserved = 0
        self._thread = Thread(target=self._work, daemon=True, name="jobs")
        self._thread.start()

    def close(self) -> None:
        """End after the present batch; jobs that wait are left."""
        with self._lock:
            for job in self._jobs.values():
                job.cancelled = True
        self._waiting.put(None)
        self._thread.join(timeout=60)

    @property
    def alive(self) -> bool:
        """Whether jobs are worked on."""
        return self._thread.is_alive()

    def reserve(self) -> None:
        """Take a place in the queue, for `add` or `release`.

        Raises:
            QueueFullError: there is none.
        """
        with self._lock:
            queued = sum(job.state == "queued" for job in self._jobs.values())
            if queued + self._reserved >= self.limits.max_queued:
                raise QueueFullError
            self._reserved += 1

    def release(self) -> None:
        """Give a reserved place back."""
        with self._lock:
            self._reserved -= 1

    def upload_path(self, name: str) -> Path:
        """A new file's path for an upload; its suffix is the name's, as far as that is harmless."""
        suffix = Path(name).suffix.lower()
        return self.folder / f"{secrets.token_hex(8)}{suffix if suffix[1:].isalnum() and len(suffix) < 8 else ''}"

    def add(self, *, name: str, path: Path, uploaded: bool) -> Job:
        """Put a job into its reserved place."""
        job = Job(id=secrets.token_hex(8), name=name, path=path, uploaded=uploaded)
        with self._lock:
            self._reserved -= 1
            self._jobs[job.id] = job
        self._waiting.put(job)
        return job

    def get(self, job_id: str) -> Job | None:
        """The job of that id."""
        with self._lock:
            return self._jobs.get(job_id)

    def all(self) -> list[Job]:
        """Every job that is known, the newest first."""
        with self._lock:
            return list(self._jobs.values())[::-1]

    def remove(self, job: Job) -> None:
        """Cancel a job, or delete what is kept of it."""
        with self._lock:
            job.cancelled = True
            if job.state == "running":
                return  # its thread removes it
            self._jobs.pop(job.id, None)
        self._delete(job)

    def file(self, job: Job, name: str) -> Path:
        """The path of a job's result."""
        return self.folder / f"{job.id}.{name}"

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None:
            with self._lock:
                if job.cancelled:
                    continue
                job.state = "running"
            state = self._try_to_run(job)
            try:
                self._settle(job, state)
            except Exception:  # of a message, or of a file that cannot be removed: the jobs that wait are not to suffer
                traceback.print_exc(file=sys.stderr)

    def _try_to_run(self, job: Job) -> State:
        try:
            self._run(job)
        except _StoppedError as error:
            job.error = str(error)
            return "cancelled" if job.cancelled else "failed"
        except (VideoError, DataError, av.FFmpegError, OSError) as error:
            job.error = str(error).replace(str(job.path), job.name)
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            job.error = f"the server failed ({type(error).__name__}); its log says more"
        else:
            return "done"
        return "failed"

    def _settle(self, job: Job, state: State) -> None:
        """Make a job's state known, remove what is no longer kept, report."""
        forget_indexes()
        with self._lock:
            job.state = state
            finished = [other for other in self._jobs.values() if other.state not in ("queued", "running")]
            gone = [job] if job.cancelled else finished[: max(0, len(finished) - self.limits.kept)]
            for other in gone:
                del self._jobs[other.id]
        for other in gone:
            self._delete(other)
        if state != "done" and job.uploaded:
            job.path.unlink(missing_ok=True)  # nobody will watch it
        self._report(f"{job.name}: {state}{': ' if job.error else ''}{job.error}")

    def _run(self, job: Job) -> None:
        """Detect in a job's video and write its result and its page."""
        until = time.monotonic() + 60 * self.limits.max_job_min

        def advance(done: float) -> None:
            job.progress = round(done, 3)
            if job.cancelled:
                raise _StoppedError("cancelled")
            if time.monotonic() > until and done < 1:
                raise _StoppedError(f"took more than {self.limits.max_job_min:g} minutes")

        def damaged(line: str) -> None:
            job.damage = line.replace(str(job.path), job.name)

        check_video(job.path)
        for measure in (length_sec, lambda path: probe(path).duration_sec):  # by the header, then by the packets
            if measure(job.path) > 60 * self.limits.max_video_min:
                raise DataError(f"the video is longer than {self.limits.max_video_min:g} minutes")
        advance(0.0)
        records = [found.record() for found in self._detector.detect(job.path, progress=advance, report=damaged)]
        damage = {job.name: job.damage} if job.damage else None
        write_results(self.file(job, RESULT), {job.name: records}, damaged=damage)
        write_page(
            self.file(job, PAGE),
            name=job.name,
            video=VIDEO,
            duration_sec=probe(job.path).duration_sec,
            detections=records,
            shown=self._shown,
        )
        job.progress = 1.0

    def _delete(self, job: Job) -> None:
        for path in (self.file(job, RESULT), self.file(job, PAGE), *([job.path] if job.uploaded else [])):
            path.unlink(missing_ok=True)
