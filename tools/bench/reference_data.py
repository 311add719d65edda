"""What `data.py` compares with: the published pipelines' way of reading and augmenting, and another commit's code."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Frames = np.ndarray  # (h, w, 3) uint8

# run in another checkout: for each seed, CPU seconds of decoding and of augmenting
SERVER = """
import sys, time
from pathlib import Path
import numpy as np, torch
from adatad_ds.data.augmentation.transforms import augment
from adatad_ds.data.decoding.frames import read_frames
torch.set_num_threads(1)
video, side, resolution, scaling, kinds, indices = sys.argv[1:]
wanted = np.array([int(index) for index in indices.split(",")])
for line in sys.stdin:
    seed, count = map(int, line.split())
    began = time.process_time()
    frames = read_frames(Path(video), wanted[:count], short_side=int(side), scaling=scaling, backend="pyav")
    read = time.process_time()
    rng = np.random.default_rng(seed)
    augment(frames, resolution=int(resolution), scaling=scaling, kinds=tuple(filter(None, kinds.split(","))), rng=rng)
    print(read - began, time.process_time() - read, flush=True)
"""


class OtherCheckout:
    """The code of another checkout, in a process of its own with one thread, which works only when it is asked.

    Args:
        folder: the checkout, from the commit on that made `adatad_ds.data.decoding`.
        video: an ordinary file.
        indices: frames of a sample (F,).
        short_side: of decoded frames, pixels.
        resolution: of augmented frames, pixels.
        scaling: interpolation.
        kinds: augmentations.
    """

    def __init__(
        self,
        folder: Path,
        video: Path,
        indices: np.ndarray,
        *,
        short_side: int,
        resolution: int,
        scaling: str,
        kinds: Sequence[str],
    ) -> None:
        wanted = ",".join(map(str, indices.tolist()))
        settings = [str(video.absolute()), str(short_side), str(resolution), scaling, ",".join(kinds), wanted]
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, *settings],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def sample(self, seed: int, count: int) -> tuple[float, float]:
        """CPU seconds of decoding and scaling, and of augmenting, the first `count` frames of a sample.

        Raises:
            RuntimeError: the process failed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{seed} {count}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().split()
        if len(answer) != 2:
            raise RuntimeError("the other checkout's code failed; see above")
        return float(answer[0]), float(answer[1])

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def reference_read(video: Path, indices: np.ndarray, *, short_side: int) -> list[Frames]:
    """decord, then cv2.resize of each frame."""
    import cv2
    import decord

    cv2.setNumThreads(1)
    decoded = decord.VideoReader(str(video), num_threads=1).get_batch(indices).asnumpy()
    height, width = decoded.shape[1:3]
    factor = short_side / min(height, width)
    size = int(width * factor + 0.5), int(height * factor + 0.5)
    return [cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR) for frame in decoded]


def reference_augment(frames: list[Frames], *, side: int, rng: np.random.Generator) -> np.ndarray:
    """Crop, flip, two operations of RandAugment, and jitter, frame by frame, each drawn once."""
    import cv2
    from PIL import Image, ImageEnhance, ImageOps

    height, width = frames[0].shape[:2]
    area, aspect = rng.uniform(0.08, 1) * height * width, math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    rows, columns = (min(most, round(math.sqrt(area * f))) for most, f in ((height, 1 / aspect), (width, aspect)))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    turn = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), 27, 1)
    shear, move = np.array([[1, 0.3, 0], [0, 1, 0]]), np.array([[1, 0, 0.18 * side], [0, 1, 0.0]])

    def warped(matrix: Any) -> Callable:
        return lambda image: Image.fromarray(cv2.warpAffine(np.asarray(image), matrix, (side, side)))

    operations = [
        *(warped(matrix) for matrix in (turn, shear, shear, move, move)),
        lambda image: ImageOps.posterize(image, 3),
        lambda image: ImageOps.solarize(image, 230),
        *(
            lambda image, kind=kind: kind(image).enhance(1.72)
            for kind in (ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Brightness, ImageEnhance.Sharpness)
        ),
        ImageOps.autocontrast,
        ImageOps.equalize,
        ImageOps.invert,
    ]
    chosen = rng.choice(len(operations), size=2, replace=False)
    flip, hue = rng.random() < 0.5, rng.uniform(-0.1, 0.1)
    brightness, contrast, saturation = rng.uniform(0.5, 1.5, size=3).tolist()
    out = []
    for frame in frames:
        image = cv2.resize(frame[top : top + rows, left : left + columns], (side, side))
        image = Image.fromarray(np.ascontiguousarray(image[:, ::-1] if flip else image))
        for index in sorted(chosen):
            image = operations[index](image)
        pixels = np.asarray(image).astype(np.float32) * brightness
        pixels = pixels * contrast + (1 - contrast) * cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).mean()
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
        pixels = np.clip(pixels * saturation + (1 - saturation) * grey, 0, 255).astype(np.uint8)
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(np.int32) + round(hue * 255)) % 180
        out.append(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))
    return np.stack(out)
