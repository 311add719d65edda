"""Logging of a run: TensorBoard, JSON lines, a progress bar. Rank 0 only; silent on other ranks."""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from tqdm import tqdm

from adatad_ds.evaluation.plots.attempt import try_to_draw
from adatad_ds.evaluation.run_report.facts import LOG_FILE
from adatad_ds.runs.mirrors import Mirrors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMOOTHED_STEPS = 20  # averaging window of the progress bar's loss


class Monitor:
    """Logger of a run.

    Args:
        folder: the run's folder, for TensorBoard's events and `log.jsonl`.
        active: False turns every method into a no-op.
        start_step: the first step that this process will run; entries from this step on, left by a crash, are dropped,
            so that no step appears twice.
        total_steps: steps of the whole run, for the remaining time.
        mirrors: get the scalars, too.
    """

    def __init__(
        self, *, folder: Path, active: bool, start_step: int, total_steps: int, mirrors: Mirrors | None = None
    ) -> None:
        self._active, self._mirrors = active, mirrors
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter  # here: rank 0 alone writes

        self._log_path = folder / LOG_FILE
        if start_step and self._log_path.exists():
            _drop_later_steps(self._log_path, before=start_step)
        self._log = self._log_path.open("a" if start_step else "w", encoding="utf-8")
        self._board = SummaryWriter(log_dir=str(folder), purge_step=start_step)
        self._start_step, self._loss = start_step, 0.0
        self._bar = tqdm(total=total_steps, initial=start_step, unit="step", dynamic_ncols=True, file=sys.stdout)

    def text(self, name: str, content: str, step: int | None = None) -> None:
        """Add a text to TensorBoard verbatim, such as the config; at a step, by default that of this start."""
        if self._active:
            fence = "`" * max(3, 1 + max(map(len, re.findall("`*", content))))  # longer than any inside
            self._board.add_text(name, f"{fence}\n{content}\n{fence}", self._start_step if step is None else step)

    def figure(self, name: str, draw: Callable[[], Figure], step: int) -> None:
        """Add a figure of step `step` to TensorBoard, drawn without a display; if drawing fails, print a warning."""

        def add() -> None:
            from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second, for evaluations alone

            canvas = FigureCanvasAgg(draw())
            canvas.draw()
            self._board.add_image(name, np.asarray(canvas.buffer_rgba())[..., :3], step, dataformats="HWC")

        if self._active:
            try_to_draw(name, add, report=self.say)

    def histogram(self, name: str, values: ArrayLike, step: int) -> None:
        """Add a histogram of step `step` to TensorBoard; non-finite values are left out."""
        if not self._active:
            return
        numbers = np.asarray(values, dtype=np.float64).ravel()
        numbers = numbers[np.isfinite(numbers)]
        if len(numbers):
            self._board.add_histogram(name, numbers, step)

    def advance(self, step: int, *, loss: float) -> None:
        """Move the progress bar past an optimizer step; it shows the smoothed loss, as single batches are noisy."""
        if self._active:
            weight = 1 / min(step + 1 - self._start_step, SMOOTHED_STEPS)  # a plain mean at first
            self._loss += weight * (loss - self._loss)
            self._bar.update(step + 1 - self._bar.n)
            self._bar.set_postfix_str(f"loss {self._loss:.4f} (smoothed)", refresh=False)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars of step `step` (0 is the first), named `group/name`."""
        if not self._active:
            return
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._log.write(json.dumps({"step": step, **values}) + "\n")
        self._log.flush()
        if self._mirrors is not None:
            self._mirrors.scalars(step, values)

    def say(self, message: str) -> None:
        """Print a message above the progress bar."""
        if self._active:
            self._bar.write(message, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        """Flush and close."""
        if self._active:
            if self._mirrors is not None:
                self._mirrors.close()
            self._bar.close()
            self._board.close()
            self._log.close()


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of this process: of the allocator on a GPU, resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_memory_name(device: torch.device) -> str:
    """Name of what `peak_memory_bytes` measures: "peak" of the allocator, or "peak_resident" of the process."""
    return "peak" if device.type == "cuda" else "peak_resident"


def _drop_later_steps(path: Path, *, before: int) -> None:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] < before:
                kept.append(line)
        except (ValueError, KeyError):
            continue  # a line truncated by the crash
    path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
