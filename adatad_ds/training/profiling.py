"""`--profile START:STOP`: profile a few steps, as a trace for Perfetto and a table.

The training loop names its parts with `torch.profiler.record_function`; a step is `ProfilerStep#N`, as tools expect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from adatad_ds.errors import ConfigError

TABLE_ROWS = 20
NAME_WIDTH = 48  # characters


def parse_profile(text: str) -> range:
    """Steps START to STOP - 1 of `START:STOP`; the run's first step is 0.

    Raises:
        ConfigError: malformed or empty range.
    """
    start, colon, stop = text.partition(":")
    if not (colon and start.isascii() and start.isdecimal() and stop.isascii() and stop.isdecimal()):
        raise ConfigError(f"--profile {text} must be START:STOP, two step numbers such as 10:13")
    if int(start) >= int(stop):
        raise ConfigError(f"--profile {text} names no step: STOP is exclusive, so it must be larger than START")
    return range(int(start), int(stop))


class Profiler:
    """Profiles a range of training steps on this rank.

    Args:
        steps: steps to record, from `parse_profile`; None: none.
        folder: folder of `rankN.pt.trace.json.gz`.
        rank: this rank, for the file's name.
        device: device that the steps run on.
        active: False: record nothing on this rank.
        report: called with the table and the file's name.
    """

    def __init__(
        self,
        *,
        steps: range | None,
        folder: Path,
        rank: int,
        device: torch.device,
        active: bool,
        report: Callable[[str], None],
    ) -> None:
        self._steps = steps if active and steps is not None else range(0)
        on_gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
        self._activities = [ProfilerActivity.CPU, *on_gpu]
        self._path = folder / f"rank{rank}.pt.trace.json.gz"
        self._report = report
        self._profile: profile | None = None  # while recording or warming up
        self._recorded: list[int] = []

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Context of step `step` of the run."""
        if not self._steps or not self._steps.start - 1 <= step < self._steps.stop:
            yield
            return
        if self._profile is None:
            self._profile = profile(activities=self._activities, acc_events=True)
            self._profile.prepare_trace()  # one step ahead if possible, as the tracer's start-up is slow
        if step < self._steps.start:
            yield
            return
        if not self._recorded:
            self._profile.start_trace()
        self._recorded.append(step)
        with record_function(f"ProfilerStep#{step}"):
            yield
        if step + 1 == self._steps.stop:
            self.close()

    def close(self) -> None:
        """Write the recorded steps, unless already written; also if the run ends before STOP."""
        if self._steps and not self._recorded:
            self._report(f"nothing was profiled: no step of {self._steps.start}:{self._steps.stop} was run")
        if self._profile is None:
            return
        recorder, self._profile = self._profile, None
        if not self._recorded:
            recorder.start_trace()  # else PyTorch 2.11 lets no other tracer start in this process
            recorder.stop_trace()
            return
        recorder.stop_trace()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        recorder.export_chrome_trace(str(self._path))
        on_gpu = ProfilerActivity.CUDA in self._activities
        table = recorder.key_averages().table(
            sort_by="self_device_time_total" if on_gpu else "self_cpu_time_total",
            row_limit=TABLE_ROWS,
            max_name_column_width=NAME_WIDTH,
        )
        self._report(f"steps {self._recorded[0]} to {self._recorded[-1]}, most time first:\n{table}")
        self._report(f"written: {self._path}; open it at https://ui.perfetto.dev")
