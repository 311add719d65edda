"""What is known of the video files of a folder, in one file that many processes read and add to.

An entry belongs to a file's name, size and modification time; of a file that was changed, the newest counts. Entries
are appended under a lock, each with a checksum: what a killed process wrote of one is cut off by the next that adds.
The file is a cache: where it cannot be read, locked or written, files are demuxed as if there were none.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

VERSION = 3  # of what entries hold, too: another version is another file
FRAME = struct.Struct("<II")  # bytes of the entry, and their checksum (CRC-32)
KEY = struct.Struct("<HQq")  # bytes of the name, size of the video file, its modification time in ns
POLL_SEC = 0.1  # while waiting for another process that indexes


@dataclass(frozen=True)
class FileState:
    """A file as it was: size in bytes and modification time in ns."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        """The present state.

        Raises:
            OSError: no such file.
        """
        state = path.stat()
        return cls(state.st_size, state.st_mtime_ns)


class IndexFile:
    """The entries of one folder's video files; safe to use from several threads, processes and machines.

    Args:
        cache: folder that holds the index; made if it does not exist.
        folder: folder of the videos, absolute.
    """

    def __init__(self, *, cache: Path, folder: Path) -> None:
        whole = os.path.realpath(folder).encode(errors="surrogateescape")
        self._path = cache / f"{hashlib.sha256(whole).hexdigest()[:24]}.v{VERSION}"
        self._places: dict[str, tuple[FileState, int, int]] = {}  # by name: of which state, begin and end
        self._read_to = 0  # so far, all entries are complete
        self._inode: int | None = None
        self._threads = Lock()
        self._descriptor: int | None = None

    def __del__(self) -> None:
        self._close()

    def get(self, name: str, state: FileState) -> bytes | None:
        """The entry of a file in this state; None if there is none."""
        with self._threads:
            try:
                if self._held(name, state) is None:
                    self._refresh()
                place = self._held(name, state)
                if place is None or self._descriptor is None:
                    return None
                data = _read(self._descriptor, place[2] - place[1], at=place[1])
            except OSError:
                return None
        for begin, end in _complete(data):  # one, if no other process cut it off as damaged
            found, held, entry = _opened_entry(data[begin:end])
            return entry if (found, held) == (name, state) else None
        return None

    def has(self, name: str, state: FileState) -> bool:
        """Whether there is an entry of a file in this state."""
        with self._threads:
            if self._held(name, state) is None:
                with suppress(OSError):
                    self._refresh()
            return self._held(name, state) is not None

    def add(self, name: str, state: FileState, entry: bytes) -> None:
        """Add or replace an entry; nothing happens where the index cannot be written."""
        key = os.fsencode(name)
        body = KEY.pack(len(key), state.size, state.mtime_ns) + key + entry
        with self._threads:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with _opened(self._path) as descriptor:
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                    self._refresh()
                    if self._held(name, state) is not None:
                        return
                    end = self._read_to
                    if os.fstat(descriptor).st_size != end:
                        os.ftruncate(descriptor, end)  # the rest is of a process that was killed
                    _write(descriptor, FRAME.pack(len(body), zlib.crc32(body)) + body, at=end)
                    self._refresh()
            except OSError:
                return

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One process at a time; others wait, so that only the first indexes what all need."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path.with_name(f"{self._path.name}.turn"), os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            yield
            return
        try:
            while not _locked(descriptor):
                time.sleep(POLL_SEC)
            yield
        finally:
            os.close(descriptor)

    def _held(self, name: str, state: FileState) -> tuple[FileState, int, int] | None:
        place = self._places.get(name)
        return place if place is not None and place[0] == state else None

    def _refresh(self) -> None:
        """Read the entries that were added since."""
        try:
            state = self._path.stat()
        except FileNotFoundError:
            self._close()
            return
        if self._descriptor is None or state.st_ino != self._inode or state.st_size < self._read_to:
            self._close()
            self._descriptor = os.open(self._path, os.O_RDONLY)
            self._inode = os.fstat(self._descriptor).st_ino
        if state.st_size == self._read_to:
            return
        new = _read(self._descriptor, state.st_size - self._read_to, at=self._read_to)
        done = 0
        for begin, end in _complete(new):
            name, held, _ = _opened_entry(new[begin:end])
            self._places[name] = (held, self._read_to + begin - FRAME.size, self._read_to + end)
            done = end
        self._read_to += done

    def _close(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            os.close(self._descriptor)  # pyright: ignore[reportArgumentType]
        self._places, self._read_to, self._inode, self._descriptor = {}, 0, None, None


def _complete(data: bytes) -> Iterator[tuple[int, int]]:
    """Begin and end of each whole, undamaged entry, up to the first that is not."""
    at = 0
    while at + FRAME.size <= len(data):
        size, checksum = FRAME.unpack_from(data, at)
        begin, end = at + FRAME.size, at + FRAME.size + size
        if size < KEY.size or end > len(data) or zlib.crc32(memoryview(data)[begin:end]) != checksum:
            return
        yield begin, end
        at = end


def _opened_entry(body: bytes) -> tuple[str, FileState, bytes]:
    """Name and state of the file, and what is known of it."""
    length, size, mtime_ns = KEY.unpack_from(body)
    end = KEY.size + length
    return os.fsdecode(body[KEY.size : end]), FileState(size, mtime_ns), body[end:]


def _locked(descriptor: int) -> bool:
    """Whether this process has the lock now; also where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of its own, so that its lock is no other thread's or process's."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read(descriptor: int, size: int, *, at: int) -> bytes:
    parts, left = [], size
    while left and (part := os.pread(descriptor, left, at)):
        parts.append(part)
        at, left = at + len(part), left - len(part)
    return b"".join(parts)


def _write(descriptor: int, data: bytes, *, at: int) -> None:
    while data:
        done = os.pwrite(descriptor, data, at)
        data, at = data[done:], at + done
