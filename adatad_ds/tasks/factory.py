"""The task of a config: detection or recognition."""

from __future__ import annotations

from typing import Any

from adatad_ds.config.schema import Config
from adatad_ds.data.loader import Samples
from adatad_ds.distributed.mesh import Mesh
from adatad_ds.tasks.base import Task
from adatad_ds.tasks.detection import DetectionTask, open_train_windows
from adatad_ds.tasks.recognition import RecognitionTask, open_clips


def open_task(config: Config, *, mesh: Mesh) -> Task:
    """The task over a config's videos.

    Raises:
        DataError: no usable videos, annotations or lists.
    """
    if config.recognition is None:
        return DetectionTask.from_config(config, mesh=mesh)
    return RecognitionTask.from_config(config, world=mesh.world)


def open_train_data(config: Config) -> Samples[Any]:
    """The training data of a config's task, without ranks, to see that they can be used.

    Raises:
        ConfigError: settings that contradict each other.
        DataError: no usable videos, annotations or lists.
    """
    if config.recognition is None:
        return open_train_windows(config)
    return open_clips(config, training=True)
