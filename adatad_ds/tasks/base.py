"""The interface between a task and the training loop: data, losses, evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from adatad_ds.config.schema import Config
from adatad_ds.data.loader import BatchLoader, BatchT, Samples, make_test_loader
from adatad_ds.distributed.world import World
from adatad_ds.evaluation.operating_point import OperatingPoint
from adatad_ds.weights.files import Tensors
from adatad_ds.weights.layout import Weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results of an evaluation.

    Attributes:
        metrics: shares of 1 by name, a headline among them.
        table: of the metrics, for a person.
        per_class: the same, class by class.
        save: writes the results into a folder.
        pictures: by name, each draws a figure, for the title's beginning.
        operating_point: of detection, the score of the best F1.
    """

    metrics: Mapping[str, float]
    table: str
    per_class: str
    save: Callable[[Path], None]
    pictures: Mapping[str, Callable[[str], Figure]]
    operating_point: OperatingPoint | None = None


class StepEngine(Protocol):
    """The engine, as a step uses it: gradients become the mean over ranks and micro batches."""

    @property
    def accumulation(self) -> int:
        """Micro batches a step."""
        ...

    def __call__(self, *inputs: Tensor) -> Any:
        """The model's forward pass."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Back-propagate one micro batch."""
        ...

    def step(self) -> None:
        """After each micro batch; the last one of a step updates the weights."""
        ...


class Task(Protocol):
    """Data and losses of a task; built once per run, on every rank."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes by index."""
        ...

    @property
    def train_data(self) -> Samples[Any]:
        """Samples to train on."""
        ...

    @property
    def test_data(self) -> Samples[Any]:
        """Samples to evaluate on."""
        ...

    @property
    def data_fingerprint(self) -> Mapping[str, Any]:
        """Counts and a hash of what determines the training samples; see `data_fingerprint` below."""
        ...

    @property
    def reports(self) -> Sequence[str]:
        """Lines for the user about the data."""
        ...

    @property
    def loss_names(self) -> Sequence[str]:
        """Names of the losses, in order."""
        ...

    def restore_published(self, weights: Weights, model: Any) -> Mapping[str, Tensors]:
        """Trainable tensors of a published model, by kind and name; empty for a transformer alone.

        Raises:
            CheckpointError: weights that do not fit the model.
        """
        ...

    def describe_published(self, restored: Container[str]) -> Sequence[str]:
        """Lines for the user about restored parameters, by their names."""
        ...

    def step(self, engine: StepEngine, micro_batches: Sequence[Any]) -> tuple[Sequence[Any], Tensor]:
        """One optimizer step on a global batch. A collective.

        Returns:
            The micro batches as all ranks agree on them, and this rank's share of each loss, in the order of
            `loss_names`; the shares of a global batch, summed, are its loss.
        """
        ...

    def sum_over_samples(self, *values: float | Tensor) -> list[float]:
        """Sums over the ranks' different samples. A collective."""
        ...

    def scalars(self) -> dict[str, float]:
        """Extra scalars to log."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """State of the task that a checkpoint saves."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...

    def evaluate(self, forward: Callable[..., Any], *, report: Callable[[str], None]) -> Evaluation | None:
        """Measure a model on the test data; the result is on rank 0 only. A collective."""
        ...


def open_test_loader(
    data: Samples[BatchT], *, config: Config, world: World, rank: int, ranks: int
) -> BatchLoader[BatchT]:
    """Loader of one of `ranks` shares of the test samples. A collective of all ranks in the world."""
    return world.attempt(
        lambda: make_test_loader(
            data,
            config=config.data,
            batch=config.test.batch,
            rank=rank,
            ranks=ranks,
            pin_memory=world.device.type == "cuda",
        )
    )


def data_fingerprint(videos: Iterable[Sequence[Any]], *, classes: Sequence[str]) -> dict[str, Any]:
    """Counts, and a hash of everything that determines the training samples, in order.

    Args:
        videos: name and annotations of each, in the order of the samples.
        classes: names of the classes by index.
    """
    videos = list(videos)
    content = repr((list(map(tuple, videos)), tuple(classes))).encode()
    return {
        "videos": len(videos),
        "classes": len(classes),
        "hash": hashlib.blake2b(content, digest_size=8).hexdigest(),
    }
