"""Pretrain the tiny backbone: what moves how, at every token of generated clips.

    python tools/pretrain_tiny.py --out adatad_ds/weights/tiny.safetensors

A 16-frame clip shows a few objects, each with one or two simple motions (eight headings, grow, shrink, two spins,
flicker, rest). Every token is classified: the motion of the object whose centre it covers, or nothing there. None of
the detection classes (orbits, bounces, pulses, ...) is among the labels, and the clips come from the random stream
`pretraining`, which no data set uses. A linear classifier on top is thrown away afterwards.

n clips, N = 8 * 4 * 4 tokens a clip, M motion classes.
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

from adatad_ds.config import CLIP_FRAMES, TUBELET_FRAMES
from adatad_ds.data import synthetic
from adatad_ds.data.synthetic import ANGLE, LIGHT, SCALE, X, Y
from adatad_ds.models.vit import VIT_SPECS, VisionTransformer

SIDE = 64  # pixels
HEADINGS = 8  # 45 degrees each, clockwise from "right"
GROW, SHRINK, CLOCKWISE, COUNTERCLOCKWISE, FLICKER, REST, NOTHING = range(HEADINGS, HEADINGS + 7)
MOTIONS = NOTHING + 1
STEPS = CLIP_FRAMES // TUBELET_FRAMES


# ---- clips -----------------------------------------------------------------------------------------------------------


def make_clip(index: int, *, seed: int, grid_side: int) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """A clip (16, 64, 64, 3) and the motion at each of its tokens (8, h, w)."""
    rng = synthetic.generator("pretraining", seed, index)
    fps = float(rng.choice(synthetic.FRAME_RATES))
    objects = int(rng.integers(3, 7))
    poses = np.empty((objects, CLIP_FRAMES, 5), np.float32)
    kinds = np.empty((objects, CLIP_FRAMES), np.int8)
    for i in range(objects):
        cut = int(rng.integers(4, 13)) if rng.random() < 0.5 else CLIP_FRAMES
        pose = synthetic.random_pose(rng)
        pose[SCALE] = np.exp(rng.uniform(*np.log([0.9, 2.0])))
        for start, stop in ((0, cut), (cut, CLIP_FRAMES)):
            kind = int(rng.choice([rng.integers(HEADINGS), rng.integers(GROW, NOTHING)], p=[0.6, 0.4]))
            poses[i, start:stop] = _move(rng, kind, pose, frames=stop - start, fps=fps)
            kinds[i, start:stop] = kind
            pose = poses[i, stop - 1].copy()
            pose[LIGHT] = 1.0
    scene = synthetic.make_scene(rng, poses=poses, fps=fps)
    side = int(rng.integers(84, synthetic.HEIGHT + 1))
    left = int(rng.integers(synthetic.WIDTH - side + 1))
    top = int(rng.integers(synthetic.HEIGHT - side + 1))
    pictures = np.stack(list(synthetic.render(scene)))[:, top : top + side, left : left + side]
    small = F.interpolate(
        torch.from_numpy(pictures).permute(0, 3, 1, 2).float(), size=SIDE, mode="bilinear", antialias=True
    )
    places = (poses[:, :, [X, Y]] + scene.camera - (left, top)) / side * grid_side  # in patches
    labels = np.full((STEPS, grid_side, grid_side), NOTHING, np.int8)
    for i in range(objects):  # back to front: the object in front names the token
        for step in range(STEPS):
            column, row = np.floor(places[i, TUBELET_FRAMES * step : TUBELET_FRAMES * (step + 1)].mean(axis=0)).astype(int)
            if 0 <= row < grid_side and 0 <= column < grid_side:
                labels[step, row, column] = kinds[i, TUBELET_FRAMES * step + 1]
    return small.round().byte().permute(0, 2, 3, 1).numpy(), labels


def _move(
    rng: np.random.Generator, kind: int, pose: NDArray[np.float32], *, frames: int, fps: float
) -> NDArray[np.float32]:
    """Poses (frames, 5) of one simple motion that continues from `pose`."""
    path = np.repeat(pose[None], frames, axis=0)
    seconds = np.arange(1, frames + 1) / fps
    if kind < HEADINGS:
        angle = 2 * np.pi * (kind + rng.uniform(-0.45, 0.45)) / HEADINGS
        speed = np.exp(rng.uniform(*np.log([8, 60])))
        path[:, X] += speed * np.cos(angle) * seconds
        path[:, Y] += speed * np.sin(angle) * seconds
    elif kind in (GROW, SHRINK):
        rate = np.exp(rng.uniform(*np.log([0.12, 1.2]))) * (1 if kind == GROW else -1)
        path[:, SCALE] *= np.exp(rate * seconds)
    elif kind in (CLOCKWISE, COUNTERCLOCKWISE):
        path[:, ANGLE] += rng.uniform(1.5, 5) * seconds * (1 if kind == CLOCKWISE else -1)
    elif kind == FLICKER:
        path[:, LIGHT] += 0.35 * np.sin(2 * np.pi * rng.uniform(0.7, 2.5) * seconds)
    return path


def make_clips(count: int, *, seed: int, grid_side: int, workers: int) -> tuple[Tensor, Tensor]:
    """Clips (count, 16, 64, 64, 3) uint8 and labels (count, 8, h, w) int64."""
    clips = np.empty((count, CLIP_FRAMES, SIDE, SIDE, 3), np.uint8)
    labels = np.empty((count, STEPS, grid_side, grid_side), np.int64)
    with multiprocessing.get_context("spawn").Pool(workers, _one_thread) as pool:
        jobs = ((index, seed, grid_side) for index in range(count))
        for index, (clip, label) in enumerate(pool.imap(_make_clip, jobs, chunksize=32)):
            clips[index], labels[index] = clip, label
    return torch.from_numpy(clips), torch.from_numpy(labels)


def _make_clip(job: tuple[int, int, int]) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    index, seed, grid_side = job
    return make_clip(index, seed=seed, grid_side=grid_side)


def _one_thread() -> None:
    torch.set_num_threads(1)


# ---- augmentation: mirrors, transposition and reversed time, labels with them ----------------------------------------


def mapped_labels(*, mirror: bool, transpose: bool, reverse: bool) -> Tensor:
    """What each motion class becomes, (M,) int64."""
    table = list(range(MOTIONS))
    for heading in range(HEADINGS):
        turned = HEADINGS // 2 - heading if mirror else heading
        turned = HEADINGS // 4 - turned if transpose else turned
        table[heading] = (turned + (HEADINGS // 2 if reverse else 0)) % HEADINGS
    if mirror ^ transpose ^ reverse:
        table[CLOCKWISE], table[COUNTERCLOCKWISE] = COUNTERCLOCKWISE, CLOCKWISE
    if reverse:
        table[GROW], table[SHRINK] = SHRINK, GROW
    return torch.tensor(table)


def augment(rng: np.random.Generator, clips: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror, transpose, reverse time and permute colours, alike for the whole batch."""
    mirror, transpose, reverse = (bool(coin) for coin in rng.integers(2, size=3))
    if mirror:
        clips, labels = clips.flip(3), labels.flip(3)
    if transpose:
        clips, labels = clips.transpose(2, 3), labels.transpose(2, 3)
    if reverse:
        clips, labels = clips.flip(1), labels.flip(1)
    clips = clips[..., torch.from_numpy(rng.permutation(3))]
    return clips, mapped_labels(mirror=mirror, transpose=transpose, reverse=reverse)[labels]


# ---- training --------------------------------------------------------------------------------------------------------


class TokenClassifier(nn.Module):
    """The backbone with a linear classifier on every token."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = VisionTransformer(spec=VIT_SPECS["tiny"], resolution=SIDE)
        self.norm = nn.LayerNorm(self.vit.spec.width)
        self.head = nn.Linear(self.vit.spec.width, MOTIONS)

    def forward(self, clips: Tensor) -> Tensor:
        """(n, 16, H, W, 3) uint8 to logits (n, N, M)."""
        tokens = self.vit.embed(clips)
        for block in self.vit.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens))


def accuracy(model: TokenClassifier, clips: Tensor, labels: Tensor) -> float:
    """Share of tokens with an object whose motion is named right."""
    with torch.no_grad():
        named = torch.cat([model(chunk).argmax(-1) for chunk in clips.split(32)]).flatten()
    target = labels.flatten()
    return float((named == target)[target != NOTHING].float().mean())


def train(model: TokenClassifier, clips: Tensor, labels: Tensor, args: argparse.Namespace) -> None:
    """AdamW with warm-up and cosine over `args.steps` batches; the last `args.held_out` clips only measure."""
    rng = np.random.default_rng(args.seed)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / 50, 0.5 * (1 + np.cos(np.pi * min(1.0, step / args.steps)))),
    )
    weight = torch.ones(MOTIONS)
    weight[NOTHING] = 0.2  # most tokens
    held_out = slice(len(clips) - args.held_out, len(clips))
    began = time.monotonic()
    for step in range(args.steps):
        chosen = torch.from_numpy(rng.integers(len(clips) - args.held_out, size=args.batch))
        batch, target = augment(rng, clips[chosen], labels[chosen])
        loss = F.cross_entropy(model(batch).flatten(0, 1), target.flatten(), weight=weight)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == args.steps - 1:
            right = accuracy(model, clips[held_out], labels[held_out])
            seconds = time.monotonic() - began
            print(f"step {step:5d}  loss {loss.item():.3f}  held-out tokens right {right:.1%}  {seconds:.0f} s", flush=True)


def main() -> None:
    """Make clips, train, write the backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("adatad_ds/weights/tiny.safetensors"))
    parser.add_argument("--clips", type=int, default=6000)
    parser.add_argument("--held-out", type=int, default=128)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes that draw clips, then threads that train")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.workers)
    model = TokenClassifier()
    began = time.monotonic()
    clips, labels = make_clips(args.clips, seed=args.seed, grid_side=model.vit.grid_side, workers=args.workers)
    print(f"{args.clips} clips drawn in {time.monotonic() - began:.0f} s", flush=True)
    train(model, clips, labels, args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half().contiguous() for name, tensor in model.vit.state_dict().items()}
    save_file(weights, args.out, metadata={"spec": "tiny", "resolution": str(SIDE), "clip_seed": str(args.seed)})
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
