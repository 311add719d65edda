"""Counts of what a process does through PyTorch's process groups and in some folders, by stages of its work."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import av
import torch
import torch.distributed as dist

from adatad_ds.runs import checkpoint
from adatad_ds.weights import files

P = ParamSpec("P")
R = TypeVar("R")
MESSAGES = ("send", "recv")
COLLECTIVES = (
    "broadcast", "allreduce", "allreduce_coalesced", "reduce", "allgather", "_allgather_base", "all_gather_single",
    "allgather_coalesced", "allgather_into_tensor_coalesced", "all_gather_single_coalesced", "gather", "gather_single",
    "scatter", "reduce_scatter", "_reduce_scatter_base", "reduce_scatter_single", "reduce_scatter_tensor_coalesced",
    "reduce_scatter_single_coalesced", "all_to_all_single", "alltoall_base", "alltoall", "barrier",
)  # fmt: skip
FILE_EVENTS = (
    "glob.glob", "os.chmod", "os.link", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir",
    "os.symlink", "os.truncate", "os.utime",
)  # fmt: skip


class Counts:
    """Counts by stage and quantity, from construction on; once per process, as it replaces functions of libraries.

    - `collectives`, `messages` and `bytes` of both: what PyTorch's process groups are asked for, by whomever. Bytes are
      those of what goes in or of what comes out, whichever is more, on this rank.
    - `objects`: picklable ones that this rank has received.
    - `opened`: files below the folders that Python, PyAV or safetensors opened.
    - `calls`: those, and looking up, listing, making, renaming and removing below the folders.

    Args:
        folders: those whose files are counted.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(os.path.realpath(folder) for folder in folders)
        self._stage = "start"
        self._thread = threading.get_ident()  # others watch the run's lock, now and then
        self._counts: Counter[tuple[str, str]] = Counter()
        self._watch_process_groups()
        self._watch_files()

    def by_stage(self) -> dict[str, dict[str, int]]:
        """Counts by stage and quantity."""
        stages: dict[str, dict[str, int]] = {}
        for (stage, quantity), count in sorted(self._counts.items()):
            stages.setdefault(stage, {})[quantity] = count
        return stages

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what happens inside under a name."""
        before, self._stage = self._stage, name
        try:
            yield
        finally:
            self._stage = before

    def within(self, name: str, function: Callable[P, R]) -> Callable[P, R]:
        """The function, as a stage of its own."""

        def counted(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.stage(name):
                return function(*args, **kwargs)

        return counted

    def add(self, quantity: str, number: int = 1) -> None:
        """Count something in the present stage."""
        self._counts[self._stage, quantity] += number

    def _watch_process_groups(self) -> None:
        for name in (*COLLECTIVES, *MESSAGES):
            if hasattr(dist.ProcessGroup, name):
                kind = "messages" if name in MESSAGES else "collectives"
                setattr(dist.ProcessGroup, name, self._counted(getattr(dist.ProcessGroup, name), kind))
        for name in ("all_gather_object", "broadcast_object_list"):
            setattr(dist, name, self._counting_objects(getattr(dist, name)))

    def _counted(self, method: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.add(kind)
            self.add("bytes", max((_bytes(each) for each in (*args, *kwargs.values())), default=0))
            return method(*args, **kwargs)

        return counted

    def _counting_objects(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(objects: list[Any], *args: Any, **kwargs: Any) -> Any:
            self.add("objects", len(objects))
            return function(objects, *args, **kwargs)

        return counted

    def _watch_files(self) -> None:
        stat = os.stat

        def looked_up(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
            if self._is_inside(path):
                self.add("calls")
            return stat(path, *args, **kwargs)

        os.stat = looked_up
        av.open = self._opening(av.open, position=0)
        files.safe_open = self._opening(files.safe_open, position=0)
        checkpoint.save_file = self._opening(checkpoint.save_file, position=1)
        sys.addaudithook(self._heard)

    def _opening(self, function: Callable[..., Any], *, position: int) -> Any:
        def opened(*args: Any, **kwargs: Any) -> Any:
            if self._is_inside(args[position]):
                self.add("opened")
                self.add("calls")
            return function(*args, **kwargs)

        return opened

    def _heard(self, event: str, args: tuple[Any, ...]) -> None:
        if (event == "open" or event in FILE_EVENTS) and args and self._is_inside(args[0]):
            self.add("calls")
            if event == "open":
                self.add("opened")

    def _is_inside(self, path: Any) -> bool:
        if threading.get_ident() != self._thread or not isinstance(path, str | bytes | os.PathLike):
            return False
        whole = os.path.normpath(os.path.join(os.getcwd(), os.fsdecode(path)))
        return whole.startswith(self._folders)


def _bytes(item: Any) -> int:
    if isinstance(item, torch.Tensor):
        return item.numel() * item.element_size()
    return sum(map(_bytes, item)) if isinstance(item, list | tuple) else 0
