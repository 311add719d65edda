"""Where a live video comes from, and how it is opened: a pipe, an address, a camera, a file that grows."""

from __future__ import annotations

import os
import select
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import av

from adatad_ds.data.decoding.video import VideoError

POLL_SEC = 0.1  # for more bytes of a file, and for a reader that was closed
LEAST_OPEN_SEC = 5.0  # a stream may take so long to be recognised, however short the patience is

Kind = Literal["pipe", "file", "device"]


@dataclass(frozen=True, kw_only=True)
class LiveSource:
    """A live video.

    Attributes:
        address: `-` (standard input), an address that FFmpeg opens (rtsp://, http://, ...), a camera (/dev/video0), a
            pipe, a file that may still grow.
        format: FFmpeg's name of the input format; None: recognised.
        options: FFmpeg's options of this input.
        idle_sec: without data for so long, a file has ended, and an address or camera is opened again.
        reconnect_sec: for so long it is tried to open it again; 0: never.
    """

    address: str
    format: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    idle_sec: float = 10.0
    reconnect_sec: float = 60.0

    @property
    def kind(self) -> Kind:
        """How it is read: bytes of a pipe or a file, or whatever FFmpeg does with its address."""
        if self.address == "-":
            return "pipe"
        if "://" in self.address:
            return "device"
        try:
            mode = os.stat(self.address).st_mode
        except OSError:
            return "device"
        return "pipe" if stat.S_ISFIFO(mode) else "file" if stat.S_ISREG(mode) else "device"

    @property
    def comes_back(self) -> bool:
        """Whether it is opened again once it has ended."""
        return self.reconnect_sec > 0 and self.address != "-" and self.kind != "file"

    @property
    def name(self) -> str:
        """The address for messages, without a password in it."""
        if self.address == "-":
            return "standard input"
        parts = urlsplit(self.address)
        if "://" not in self.address or "@" not in parts.netloc:
            return self.address
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    @contextmanager
    def opened(self, closed: Event) -> Iterator[tuple[Any, Any]]:
        """Open the container and its first video stream.

        Args:
            closed: once set, reading of a pipe or file ends.

        Raises:
            VideoError: it cannot be opened, or holds no video.
        """
        with _bytes(self, closed) as readable:
            try:
                container = av.open(
                    self.address if readable is None else readable,
                    format=self.format or self._usual_format,
                    options=dict(self.options),
                    timeout=None if readable else (max(self.idle_sec, LEAST_OPEN_SEC), self.idle_sec),
                )
            except (av.FFmpegError, OSError, ValueError) as error:
                cause = getattr(error, "strerror", None) or str(error)
                raise VideoError(f"{self.name}: {' '.join(cause.split())}") from error
            with container:
                if not container.streams.video:
                    raise VideoError(f"{self.name}: the stream holds no video")
                stream = container.streams.video[0]
                stream.codec_context.thread_type = "SLICE"  # threads by frame would hold pictures back
                yield container, stream

    @property
    def _usual_format(self) -> str | None:
        try:
            is_camera = stat.S_ISCHR(os.stat(self.address).st_mode)
        except OSError:
            return None
        return "v4l2" if is_camera else None


class _Bytes:
    """What PyAV reads of a pipe, or of a file that may still grow.

    Args:
        descriptor: of the pipe or file.
        grows: at its end, more may come.
        idle_sec: it has ended if nothing comes for so long.
        closed: once set, it has ended.
    """

    def __init__(self, descriptor: int, *, grows: bool, idle_sec: float, closed: Event) -> None:
        self._descriptor, self._grows, self._closed = descriptor, grows, closed
        self._idle_sec, self._fed = idle_sec, time.monotonic()

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; none at the end."""
        while not self._closed.is_set():
            if self._grows:
                data = os.read(self._descriptor, size)
                if data:
                    self._fed = time.monotonic()
                    return data
                if time.monotonic() - self._fed >= self._idle_sec:
                    return b""
                self._closed.wait(min(POLL_SEC, self._idle_sec))
            elif select.select([self._descriptor], [], [], POLL_SEC)[0]:
                return os.read(self._descriptor, size)
        return b""


@contextmanager
def _bytes(source: LiveSource, closed: Event) -> Iterator[_Bytes | None]:
    """A reader of a pipe or file; None for what FFmpeg opens itself."""
    if source.kind == "device":
        yield None
        return
    own = source.address == "-"
    try:
        descriptor = 0 if own else os.open(Path(source.address), os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise VideoError(f"{source.name}: {error.strerror}") from error
    try:
        yield _Bytes(descriptor, grows=source.kind == "file", idle_sec=source.idle_sec, closed=closed)
    finally:
        if not own:
            os.close(descriptor)
