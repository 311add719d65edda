"""The server itself: its threads, its temporary folder, its end."""

from __future__ import annotations

import io
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from adatad_ds.errors import ConfigError
from adatad_ds.evaluation.operating_point import ShownFrom
from adatad_ds.inference.video_detector import VideoDetector
from adatad_ds.serving.app import LOCAL_HOSTS, App
from adatad_ds.serving.jobs import Jobs, Limits

SILENT_SEC = 60.0  # a client that sends nothing for so long is let go
REQUEST_SEC = 3600.0  # a request, with its video, that takes longer to arrive is given up


class _InTime(io.RawIOBase):
    """What a client sends, up to a time, however slowly it comes: a `TimeoutError` afterwards."""

    def __init__(self, sent: io.RawIOBase, *, until: float) -> None:
        self._sent, self._until = sent, until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        """Read what is there, or wait for the next of it."""
        if time.monotonic() > self._until:
            raise TimeoutError("the request took too long")
        return self._sent.readinto(buffer)

    def close(self) -> None:
        self._sent.close()
        super().close()


class _Handler(WSGIRequestHandler):
    timeout = SILENT_SEC

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_InTime(self.rfile.detach(), until=time.monotonic() + REQUEST_SEC))

    def log(self, type: str, message: str, *args: object) -> None:
        if type == "error":
            print(f"request: {message % args}", file=sys.stderr)


@contextmanager
def serving(
    detector: VideoDetector,
    *,
    host: str,
    port: int,
    folder: Path | None,
    shown: ShownFrom,
    limits: Limits,
    work: Path | None,
    about: str,
    report: Callable[[str], object],
) -> Iterator[BaseWSGIServer]:
    """A server whose address is taken and which `serve_forever` starts.

    Args:
        detector: of videos.
        host: address to listen on.
        port: 0: any free one.
        folder: of videos that requests may name.
        shown: least score in pages.
        limits: of requests.
        work: where uploads and results are kept while it runs; None: the system's temporary folder.
        about: of the detector.
        report: told about jobs.

    Raises:
        ConfigError: the folder does not exist, or the address cannot be used.
    """
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--folder {folder}: there is no such folder")
    hosts = (*LOCAL_HOSTS, host) if host in LOCAL_HOSTS else ()
    with tempfile.TemporaryDirectory(dir=work, prefix="adatad_serve_") as temporary:
        jobs = Jobs(detector, shown=shown, folder=Path(temporary), limits=limits, report=report)
        try:
            app = App(jobs, folder=folder, hosts=hosts, about=about)
            try:
                server = make_server(host, port, app, threaded=True, request_handler=_Handler)
            except (OSError, SystemExit) as error:
                raise ConfigError(f"{host}:{port} cannot be listened on ({error}); give another --port") from error
            server.daemon_threads = True  # pyright: ignore[reportAttributeAccessIssue]
            try:
                yield server
            finally:
                server.server_close()
        finally:
            jobs.close()


def serve_until_stopped(server: BaseWSGIServer) -> None:
    """Answer requests until Ctrl-C or SIGTERM."""

    def stop(*_: object) -> None:
        Thread(target=server.shutdown, daemon=True).start()  # it waits for the loop below, which is this thread's

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.serve_forever()
    finally:
        for number, handler in before.items():
            with suppress(TypeError):
                signal.signal(number, handler)
