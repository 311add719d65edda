"""The task of a config."""

from __future__ import annotations

from adatad_ds.config.schema import Config
from adatad_ds.distributed.mesh import Mesh
from adatad_ds.tasks.base import Task
from adatad_ds.tasks.detection import DetectionTask
from adatad_ds.tasks.recognition import RecognitionTask


def open_task(config: Config, *, mesh: Mesh) -> Task:
    """Detection or recognition, over a config's videos.

    Raises:
        DataError: no usable videos, annotations or lists.
    """
    if config.recognition is None:
        return DetectionTask.from_config(config, mesh=mesh)
    return RecognitionTask.from_config(config, world=mesh.world)
