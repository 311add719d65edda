"""Pretrain the recognition quickstart's image transformer on single generated pictures: what they show, and where.

    python tools/pretrain_image.py --out adatad_ds/weights/tiny_image.safetensors

A picture looks like a frame of `adatad-ds generate clips`: an acting object, a dimmer one behind it, a background.
From the class token, linear maps tell the acting object's place, size and opacity; from each patch, how much of it the
object covers (a dense target, which a transformer picks up far sooner than one a picture). There are no
two pictures of one scene, so the weights know of no motion. The pictures come from the random stream `pretraining`,
which no data set uses. What is on top is thrown away.

The weights in the repository are from these defaults: 17 minutes, on two cores with much else to do. On held-out
pictures the object's place is off by 2.1 px, its size by 11 %, its opacity by 7 %.

n pictures, N = 1 + 4 * 4 tokens each, C channels.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a fresh clone, without installing

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from adatad_ds.data.generated.clips import DIMMED, SIDE, generator, show
from adatad_ds.data.generated.scenery import random_background, random_look
from adatad_ds.models.backbones.image_vit import GENERATED, build_image_transformer
from adatad_ds.system.utf8 import use_utf8
from adatad_ds.training.optim import schedule
from tools.pretrain_tiny import adamw

PLACE_X, PLACE_Y, SIZE, OPACITY, RADIUS = range(5)  # what is shown, one row a picture
MEASURED = ("x", "y", "size", "opacity")  # the first of these, of about unit size
Shown = NDArray[np.float32]


# ---- pictures --------------------------------------------------------------------------------------------------------


def make_picture(rng: np.random.Generator) -> tuple[NDArray[np.uint8], Shown]:
    """A picture (64, 64, 3) and what it shows (5,): place from -1 to 1, log size, opacity from -1 to 1, radius."""
    x, y = rng.uniform(0.04, 0.96, size=2)
    scale = float(np.exp(rng.uniform(np.log(0.55), np.log(2.4))))
    opacity = 1.0 if rng.random() < 0.6 else float(rng.random())
    look, other = random_look(rng), random_look(rng)
    actor = np.array([x * SIDE, y * SIDE, scale, rng.uniform(0, 2 * np.pi), 1.0])
    behind = np.array([*rng.uniform(0.2, 0.8, size=2) * SIDE, rng.uniform(0.5, 1.0), rng.uniform(0, 2 * np.pi), DIMMED])
    background = random_background(rng, height=SIDE, width=SIDE) * DIMMED
    picture = show(background, looks=(look, other), poses=(actor, behind), opacity=opacity, rng=rng)
    radius = look.radius * scale / SIDE * 2
    return picture, np.array([2 * x - 1, 2 * y - 1, np.log(radius) + 1, 2 * opacity - 1, radius], np.float32)


def make_pictures(count: int, *, seed: int, workers: int) -> tuple[Tensor, Tensor]:
    """Pictures (count, 64, 64, 3) uint8 and what they show (count, 5) float32."""
    pictures, shown = np.empty((count, SIDE, SIDE, 3), np.uint8), np.empty((count, 5), np.float32)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        made = pool.imap(_make_picture, ((seed, index) for index in range(count)), chunksize=256)
        for index, (picture, row) in enumerate(made):
            pictures[index], shown[index] = picture, row
    return torch.from_numpy(pictures), torch.from_numpy(shown)


def _make_picture(job: tuple[int, int]) -> tuple[NDArray[np.uint8], Shown]:
    seed, index = job
    return make_picture(generator("pretraining", seed, 0, index))


def augment(rng: np.random.Generator, pictures: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror, transpose and permute colours, alike for the whole batch."""
    shown = shown.clone()
    for axis, column in ((2, PLACE_X), (1, PLACE_Y)):
        if rng.random() < 0.5:
            pictures = pictures.flip(axis)
            shown[:, column] *= -1
    if rng.random() < 0.5:
        pictures = pictures.transpose(1, 2)
        shown[:, [PLACE_X, PLACE_Y]] = shown[:, [PLACE_Y, PLACE_X]]
    return pictures[..., torch.from_numpy(rng.permutation(3))], shown


def covered(shown: Tensor, *, grid: tuple[int, int]) -> Tensor:
    """How much of each patch the acting object covers, times its opacity: (n, 5) to (n, h * w) in 0..1."""
    fine = 8  # points a side of a patch
    down, across = ((torch.arange(cells * fine) + 0.5) / (cells * fine) * 2 - 1 for cells in grid)
    far = (across - shown[:, PLACE_X, None])[:, None] ** 2 + (down - shown[:, PLACE_Y, None])[:, :, None] ** 2
    inside = (far < shown[:, RADIUS, None, None] ** 2).float() * (shown[:, OPACITY, None, None] + 1) / 2
    return F.avg_pool2d(inside, fine).flatten(1)


# ---- training --------------------------------------------------------------------------------------------------------


class PictureModel(nn.Module):
    """The image transformer with linear maps of what it gives to what is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = build_image_transformer(GENERATED, resolution=SIDE)
        self.measures = nn.Linear(self.vit.width, len(MEASURED))
        self.cover = nn.Linear(self.vit.width, 1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """(n, H, W, 3) uint8 to measures (n, 4) of the picture and the cover of its patches (n, N - 1)."""
        tokens = self.vit(pictures)
        for block in self.vit.blocks:
            tokens = block(tokens)
        patches = self.vit.norm(tokens[:, self.vit.prefix_tokens :])
        return self.measures(self.vit.pool(tokens)), self.cover(patches)[..., 0]


def loss_of(model: PictureModel, pictures: Tensor, shown: Tensor) -> Tensor:
    """The sum of all targets' losses; what can hardly be seen counts as little."""
    measures, cover = model(pictures)
    seen = (shown[:, OPACITY] + 1) / 2
    errors = (measures - shown[:, : len(MEASURED)]).square()
    place_and_size = (seen[:, None] * errors[:, :OPACITY]).sum(1)
    dense = (cover - covered(shown, grid=model.vit.grid)).square().mean(1)
    return (4 * place_and_size + errors[:, OPACITY] + 10 * dense).mean()


@torch.no_grad()
def errors_of(model: PictureModel, pictures: Tensor, shown: Tensor) -> str:
    """Mean distance in pixels and mean errors of what is opaque enough to see."""
    measures = torch.cat([model(chunk)[0] for chunk in pictures.split(256)])
    off = (measures - shown[:, : len(MEASURED)]).abs()
    seen = shown[:, OPACITY] > 0
    place = off[seen][:, [PLACE_X, PLACE_Y]].square().sum(1).sqrt().mean() * SIDE / 2
    return (
        f"held out: place off by {place:.2f} px, size by {off[seen, SIZE].mean():.1%}, "
        f"opacity by {off[:, OPACITY].mean() / 2:.1%}"
    )


def train(model: PictureModel, pictures: Tensor, shown: Tensor, args: argparse.Namespace) -> None:
    """AdamW with warm-up and cosine over `args.steps` batches; the last `args.held_out` pictures only measure."""
    rng = np.random.default_rng(args.seed)
    optimizer = adamw(model, lr=args.lr)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule(step + 1, warmup_steps=args.steps // 20, total_steps=args.steps)
    )
    learning = len(pictures) - args.held_out
    began = time.monotonic()
    for step in range(args.steps):
        chosen = torch.from_numpy(rng.integers(learning, size=args.batch))
        batch, rows = augment(rng, pictures[chosen], shown[chosen])
        loss = loss_of(model, batch, rows)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
        if (step + 1) % 200 == 0 or step == args.steps - 1:
            said = errors_of(model, pictures[learning:], shown[learning:])
            print(f"step {step + 1:5d}  loss {loss.item():.3f}  {said}  {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    """Make pictures, train, write the image transformer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("adatad_ds/weights/tiny_image.safetensors"))
    parser.add_argument("--pictures", type=int, default=30000)
    parser.add_argument("--held-out", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes that draw pictures, then threads that train")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.workers)
    model = PictureModel()
    began = time.monotonic()
    pictures, shown = make_pictures(args.pictures, seed=args.seed, workers=args.workers)
    print(f"{args.pictures} pictures drawn in {time.monotonic() - began:.0f} s", flush=True)
    train(model, pictures, shown, args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.bfloat16().contiguous() for name, tensor in model.vit.state_dict().items()}
    save_file(weights, args.out, metadata={"model": GENERATED, "resolution": str(SIDE), "seed": str(args.seed)})
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    use_utf8()
    main()
