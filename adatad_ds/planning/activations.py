"""Where a backbone's activations wait for the backward pass, and how much of it runs again, within a budget.

Everything here is arithmetic on the bytes of one span, which fake_run.py counts. A rank's window has spans that are
processed one after the other, segment by segment (models/execution/recompute.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from adatad_ds.errors import ConfigError
from adatad_ds.models.execution.retention import Retention, least_inputs
from adatad_ds.planning.fake_run import LadderBytes, SegmentBytes, SegmentKind


class BudgetError(ConfigError):
    """`backbone.activation_memory_gb` is less than any way of running needs.

    Args:
        message: as for any error.
        needed: bytes that would do.
    """

    def __init__(self, message: str, *, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What waits on a rank, and what runs again.

    Attributes:
        retention: what is kept.
        clips_per_chunk: clips that run at once; 0: all.
        stored: inputs of segments that wait.
        on_device: how many of them wait on the device.
        tensor_bytes: of each.
        graphs: spans whose graph is kept.
        spans: spans of all segments.
        graph_bytes: of all kept graphs.
        ladder_bytes: of long-range adapters' graph.
        peak_bytes: of the backbone's activations on the device, all included.
        recomputed: forward passes of the part with gradients that run again; 1.0: all of it once.
    """

    retention: Retention = field(default_factory=Retention)
    clips_per_chunk: int
    stored: int = 0
    on_device: int = 0
    tensor_bytes: int = 0
    graphs: int = 0
    spans: int = 0
    graph_bytes: int = 0
    ladder_bytes: int = 0
    peak_bytes: int
    recomputed: float

    @property
    def kept_bytes(self) -> int:
        """What waits on the device between the passes."""
        return self.on_device * self.tensor_bytes + self.graph_bytes + self.ladder_bytes

    def __str__(self) -> str:
        """In words."""
        again = "nothing is" if self.recomputed == 0 else f"{self.recomputed:.2f} forward passes are"
        return (
            f"activations: {self.stored} stored tensors ({self.on_device} on the device), graphs of {self.graphs} of "
            f"{self.spans} chunks, {self.clips_per_chunk or 'all'} clips per chunk, {self.peak_bytes / 1e9:.3f} GB "
            f"planned; {again} recomputed"
        )


@dataclass(frozen=True, kw_only=True)
class Segments:
    """A rank's segments, cut into spans of a number of clips.

    Attributes:
        spans: of each segment.
        kinds: of each segment, lowest first.
        weights: FLOPs of each one's forward pass, in shares of all.
        first: peak bytes of a span before the segments.
        bytes: of a span in a segment, by its kind.
        tensor: bytes of a segment's input.
        gradient: bytes of the window's gradient.
        regroups: whether inputs can be made again from the segments below.
        ladder: of long-range adapters, which run after all segments, and whose backward pass is before all others.
    """

    spans: int
    kinds: Sequence[SegmentKind]
    weights: Sequence[float]
    first: int
    bytes: dict[SegmentKind, SegmentBytes]
    tensor: int
    gradient: int
    regroups: bool
    ladder: LadderBytes

    def place(self, retention: Retention, *, on_device: int | None, clips_per_chunk: int) -> Activations:
        """What waits, with so many stored tensors on the device (None: all)."""
        count = len(self.kinds)
        sizes = retention.groups(count) if self.regroups else [1] * count
        graphs = retention.graphs_of(count, self.spans)
        on_device = len(sizes) if on_device is None else on_device
        kept = [number * self.bytes[kind].graph for number, kind in zip(graphs, self.kinds, strict=True)]
        again = [1 - number / self.spans for number in graphs]
        recomputed = sum(weight * share for weight, share in zip(self.weights, again, strict=True))
        for group in self._groups(sizes):
            recomputed += sum(self.weights[segment] for segment in group[:-1])
        return Activations(
            retention=retention,
            clips_per_chunk=clips_per_chunk,
            stored=len(sizes),
            on_device=on_device,
            tensor_bytes=self.tensor,
            graphs=sum(graphs),
            spans=self.spans * count,
            graph_bytes=sum(kept),
            ladder_bytes=self.ladder.graph,
            peak_bytes=max(*self._forward(sizes, graphs, on_device), *self._backward(sizes, graphs, on_device)),
            recomputed=recomputed,
        )

    def _groups(self, sizes: Sequence[int]) -> Iterator[range]:
        start = 0
        for size in sizes:
            yield range(start, start + size)
            start += size

    def _forward(self, sizes: Sequence[int], graphs: Sequence[int], on_device: int) -> Iterator[int]:
        """Peaks of the forward pass: stored tensors, graphs so far, two inputs that come and go, and a span."""
        stored = on_device * self.tensor + self.ladder.means
        yield stored + self.first
        kept = 0
        for group in self._groups(sizes):
            passing = min(2, len(group) - 1) * self.tensor
            for segment in group:
                span, count = self.bytes[self.kinds[segment]], graphs[segment]
                if count:
                    yield stored + kept + (count - 1) * span.graph + span.build
                kept += count * span.graph
                if count < self.spans:
                    yield stored + kept + passing + span.run

    def _backward(self, sizes: Sequence[int], graphs: Sequence[int], on_device: int) -> Iterator[int]:
        """Peaks of the backward pass, from the last segment: its graphs first, then the spans that run again."""
        kept = sum(count * self.bytes[kind].graph for count, kind in zip(graphs, self.kinds, strict=True))
        yield on_device * self.tensor + kept + self.ladder.backward
        on_host = len(sizes) - on_device
        for below, group in reversed(list(enumerate(self._groups(sizes)))):
            waiting = self.gradient + max(0, below + 1 - on_host) * self.tensor
            for segment in group[:-1]:
                yield waiting + (len(group) - 1) * self.tensor + self.bytes[self.kinds[segment]].run
            for made_again, segment in reversed(list(enumerate(group))):
                span, count = self.bytes[self.kinds[segment]], graphs[segment]
                held = waiting + made_again * self.tensor
                if count:
                    yield held + kept + span.backward - span.graph
                    kept -= count * span.graph
                if count < self.spans:
                    yield held + kept + max(span.build, span.backward)


def within(
    budget: int,
    cut: Callable[[int], Segments],
    *,
    chunks: Sequence[int],
    beside: int,
    host: bool,
    step_cost: Callable[[float, int], float],
) -> Activations:
    """The fastest placement within a budget.

    Args:
        budget: bytes of the device.
        cut: segments by clips a chunk.
        chunks: clips a chunk to choose from; of equals the first.
        beside: bytes that something else takes while everything kept waits: the head's.
        host: stored tensors may wait in host memory, which is taken before inputs are made again: copies go on beside
            the arithmetic.
        step_cost: a step's time, in any unit, by the share that is recomputed and the clips a chunk.

    Raises:
        BudgetError: nothing fits.
    """
    best, cost, least = None, 0.0, None
    for chunk in chunks:
        segments = cut(chunk)

        def fits(placed: Activations) -> bool:
            return max(placed.peak_bytes, placed.kept_bytes + beside) <= budget

        smallest = None
        for smallest in _choices(segments, chunk, host=host, fits=fits):
            if fits(smallest):
                took = step_cost(smallest.recomputed, chunk)
                if best is None or took < cost:
                    best, cost = smallest, took
                break
        assert smallest is not None
        if least is None or smallest.peak_bytes < least.peak_bytes:
            least = smallest
    if best is not None:
        return best
    assert least is not None
    needed = max(least.peak_bytes, least.kept_bytes + beside)
    advice = "" if host else ", and less with cpu_checkpointing: true in the DeepSpeed config"
    raise BudgetError(
        f"backbone.activation_memory_gb: {max(0, budget) / 1e9:.3f} GB are too little; the minimum is "
        f"{needed / 1e9:.3f} GB, with clips_per_chunk={least.clips_per_chunk}{advice}",
        needed=needed,
    )


def _choices(
    segments: Segments, chunk: int, *, host: bool, fits: Callable[[Activations], bool]
) -> Iterator[Activations]:
    """Placements from most to least memory, each of which is to be had if those before do not fit."""

    def placed(retention: Retention, on_device: int | None = None) -> Activations:
        return segments.place(retention, on_device=on_device, clips_per_chunk=chunk)

    yield placed(Retention(graphs=None))
    count = len(segments.kinds)
    low, high = 0, count * segments.spans  # graphs: `high` is too many
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(placed(Retention(graphs=middle))) else (low, middle)
    yield placed(Retention(graphs=low))
    if host:
        for on_device in reversed(range(count)):
            yield placed(Retention(), on_device)
    elif segments.regroups:
        for inputs in reversed(range(least_inputs(count), count)):
            yield placed(Retention(inputs=inputs))


def halved(chunk: int, *, least: int) -> list[int]:
    """A number of clips, its half, ... down to one clip of each window."""
    sizes = [max(chunk, least)]
    while sizes[-1] > least:
        sizes.append(max(least, sizes[-1] // 2))
    return sizes
