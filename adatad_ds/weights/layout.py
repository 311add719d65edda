"""How files name the tensors of a transformer, and what is known of a file once its layout is recognised."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from adatad_ds.errors import CheckpointError, summarize_list
from adatad_ds.weights.files import StoredTensor, Tensors

Renames = tuple[tuple[str, str], ...]  # regular expressions and their replacements, applied in order


@dataclass(frozen=True, kw_only=True)
class WeightLayout:
    """One way of naming a transformer's tensors.

    Attributes:
        name: for people.
        signature: a regular expression; a file of this layout has a key that it matches, wrappers' prefixes taken off.
        also: more of them, each of which must match a key, too.
        renames: from the file's names to ours.
    """

    name: str
    signature: str
    also: tuple[str, ...] = ()
    renames: Renames

    def rename(self, key: str) -> str:
        """Our name of a tensor."""
        return rename(key, self.renames)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A file of pretrained weights, recognised but not read.

    Attributes:
        source: path or hub name.
        layout: name of its `WeightLayout`.
        size: the transformer's, for people.
        vit: the transformer's tensors, by our names.
        trained: what a trained model has besides (adapters, pyramid, heads or classifier), by our names; empty for a
            transformer alone.
        left_out: keys without use here, by what they are.
        loss_normalizer: the running mean of positives of a trained detector.
    """

    source: str
    layout: str
    size: str
    vit: Tensors
    trained: Tensors = field(default_factory=dict)
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    loss_normalizer: float | None = None

    def report(self) -> str:
        """One line: what was found and what was left out."""
        left = "; ".join(
            f"{what} ({len(keys)}: {summarize_list(keys, limit=2, separator=', ')})"
            for what, keys in self.left_out.items()
        )
        return f"{self.source}: {self.layout}, {self.size}" + (f"; left out: {left}" if left else "")


def find_layout(
    tensors: Mapping[str, StoredTensor],
    layouts: Sequence[WeightLayout],
    *,
    kind: str,
    known: Sequence[str],
    source: str,
) -> WeightLayout:
    """The first layout whose signature is among the keys.

    Args:
        tensors: by the file's names, wrappers' prefixes taken off.
        layouts: in the order in which they are tried.
        kind: of the transformers, for the message.
        known: the layouts' names in the order of the message.
        source: likewise.

    Raises:
        CheckpointError: it is none of them.
    """
    for layout in layouts:
        wanted = (layout.signature, *layout.also)
        if all(any(re.fullmatch(pattern, key) for key in tensors) for pattern in wanted):
            return layout
    raise CheckpointError(
        f"{source} has no known layout: no patch embedding of {kind} transformer among its {len(tensors)} "
        f"tensors ({summarize_list(list(tensors), limit=5, separator=', ')}). Known: {', '.join(known)}"
    )


def leave_out(tensors: Tensors, unused: Mapping[str, str]) -> tuple[Tensors, dict[str, tuple[str, ...]]]:
    """Part what a model uses from what it does not: the tensors kept, and the other keys by what they are.

    Args:
        tensors: by name.
        unused: regular expressions of the names' beginnings, by what such tensors are.
    """
    left = {what: tuple(key for key in tensors if re.match(keys, key)) for what, keys in unused.items()}
    gone = {key for keys in left.values() for key in keys}
    kept = {key: tensor for key, tensor in tensors.items() if key not in gone}
    return kept, {what: keys for what, keys in left.items() if keys}


def rename(key: str, rules: Renames) -> str:
    """A key after all replacements, in their order."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def stacked(parts: Sequence[StoredTensor]) -> StoredTensor:
    """Tensors that differ in their first axis alone, as one."""
    rows = sum(part.shape[0] for part in parts)
    return StoredTensor((rows, *parts[0].shape[1:]), lambda: torch.cat([part.read() for part in parts]))
