"""What a forward pass retains for the backward pass, between least memory and no recomputation.

With L segments of s spans each, from the least memory to the most:

- some segments' inputs: backward makes the inputs between two of them again, group by group;
- every segment's input: each segment is recomputed once;
- graphs of spans as well, the last segments' first, as backward frees them first;
- all graphs: nothing is recomputed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What is retained.

    Attributes:
        graphs: spans whose graph is kept, the last segments' first; None: all.
        inputs: the most segments' inputs that wait at the same time; None: every segment's.
    """

    graphs: int | None = 0
    inputs: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for graphs beside inputs that are made again: a graph costs many times an input's memory."""
        if self.inputs is not None and self.graphs != 0:
            raise ValueError("graphs are kept only where every segment's input is")

    def graphs_of(self, segments: int, spans: int) -> list[int]:
        """Kept graphs of each segment, lowest first: those of its first spans, which backward reaches first."""
        if self.graphs is None:
            return [spans] * segments
        above = [spans * later for later in reversed(range(segments))]
        return [min(spans, max(0, self.graphs - kept)) for kept in above]

    def groups(self, segments: int) -> list[int]:
        """Sizes of the groups of segments, lowest first, of which only the first one's input is stored.

        When backward comes to group j, counted from 1, the inputs of j groups wait, and those inside it are made again:
        j + size - 1 tensors. So lower groups may be larger, and the number of groups, each of which saves a segment's
        second recomputation, is the most that `inputs` allows.

        Raises:
            ValueError: too few inputs for so many segments, see `least_inputs`.
        """
        room = segments if self.inputs is None else min(segments, self.inputs)
        sizes, left = [], segments
        for number in range(1, room + 1):
            others = room - number  # each of which has at least one segment
            sizes.append(min(room - number + 1, left - others))
            left -= sizes[-1]
        if left:
            raise ValueError(f"{self.inputs} stored inputs are too few for {segments} segments")
        return sizes


def least_inputs(segments: int) -> int:
    """The fewest inputs that segments can be run with: groups of m, m - 1, ..., 1 segments."""
    inputs = 1
    while inputs * (inputs + 1) // 2 < segments:
        inputs += 1
    return inputs
