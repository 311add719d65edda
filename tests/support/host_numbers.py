"""Shared by tests: tensors made from Python's numbers, each of which is a copy that the host waits for on a GPU."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class TensorsOfNumbers(TorchDispatchMode):
    """Counts them: what `torch.tensor` and its like make."""

    made = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        self.made += func.overloadpacket.__name__ == "lift_fresh"
        return func(*args, **(kwargs or {}))
