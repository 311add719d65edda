"""Pretrain the tiny backbone on generated clips: what moves where, and how.

    python tools/pretrain_tiny.py --out adatad_ds/weights/tiny.safetensors

A 16-frame clip shows a few resting objects and one that makes one or two simple motions (eight headings, grow, shrink,
two spins, flicker, rest). Every token learns the rates of change of what it shows (a dense target, which a transformer
picks up far sooner than a label a clip), and each time step's mean over positions learns the motion's class, because
that mean is what a detector pools. The motions are simpler and of more kinds than the quickstart's actions (repeated
strokes left, right, up, growing, blinking), and the clips come from the random stream `pretraining`, which no data set
uses. Clips grow harder (camera, background, clutter) in the course of training, but stay calmer than the data sets:
what is left to adapt to is the unrest of real footage. What is on top is thrown away.

The weights in the repository are from `--bf16`: 18 minutes on 2 busy cores, 59 % of held-out time steps named right.

n clips, N = 8 * 4 * 4 tokens a clip, O objects of a clip, M motion classes, R rates.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a fresh clone, without installing

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from adatad_ds.config.parsing import CLIP_FRAMES, TUBELET_FRAMES
from adatad_ds.data.generated import videos
from adatad_ds.data.generated.scenery import ANGLE, HEIGHT, LIGHT, SCALE, WIDTH, X, Y, render
from adatad_ds.models.backbones.vit import VIT_SPECS, VisionTransformer
from adatad_ds.system.utf8 import use_utf8

SIDE = 64  # pixels
HEADINGS = 8  # 45 degrees each, clockwise from "right"
GROW, SHRINK, CLOCKWISE, COUNTERCLOCKWISE, FLICKER, REST = range(HEADINGS, HEADINGS + 6)
MOTIONS = REST + 1
STEPS = CLIP_FRAMES // TUBELET_FRAMES
OBJECTS = 5  # at most
FINE = 16  # cells a side in which objects are drawn to find what a token shows
RATE_SCALE = (8.0, 8.0, 8.0, 2.0, 5.0)  # of x, y, log size, angle, brightness: to about unit size
Clip = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]


# ---- clips -----------------------------------------------------------------------------------------------------------


def make_clip(index: int, *, seed: int, difficulty: float) -> Clip:
    """A clip (16, 64, 64, 3), the motion (8,) and the objects (5, 8, 8) at each of its time steps.

    An object is its place on the picture (x, y from -1 to 1, radius; 0 for none), and its place without the camera's
    shaking, logarithm of its size, angle and brightness, of which the changes are trainable.

    Args:
        index: which clip.
        seed: of all clips.
        difficulty: 0 (one object, still camera, plain background) to 1 (as in the data sets).
    """
    rng = videos.generator("pretraining", seed, index)
    fps = float(rng.choice(videos.FRAME_RATES))
    count = 1 + int(rng.integers(0, 1 + round((OBJECTS - 1) * difficulty)))
    poses = np.empty((count, CLIP_FRAMES, 5), np.float32)
    for i in range(count):
        poses[i] = videos.random_pose(rng)
    actor = poses[int(rng.integers(count))]
    kinds = np.empty(CLIP_FRAMES, np.int64)
    cut = int(rng.integers(2, 7)) * TUBELET_FRAMES if rng.random() < 0.5 else CLIP_FRAMES
    pose = actor[0].copy()
    for start, stop in ((0, cut), (cut, CLIP_FRAMES)):
        kind = int(rng.choice([rng.integers(HEADINGS), rng.integers(GROW, MOTIONS)], p=[0.6, 0.4]))
        actor[start:stop] = _move(rng, kind, pose, frames=stop - start, fps=fps)
        kinds[start:stop] = kind
        pose = actor[stop - 1].copy()
        pose[LIGHT] = 1.0
    scene = videos.make_scene(rng, poses=poses, fps=fps)
    plain = scene.canvas.mean(axis=(0, 1))
    scene = replace(
        scene,
        canvas=plain + difficulty * (scene.canvas - plain),
        camera=difficulty * scene.camera,
        view=scene.view[:1] + difficulty * (scene.view - scene.view[:1]),
    )
    top, left = int(rng.integers(HEIGHT - 84 + 1)), int(rng.integers(WIDTH - 96 + 1))
    side = int(rng.integers(84, HEIGHT - top + 1))
    pictures = np.stack(list(render(scene)))[:, top : top + side, left : left + side]
    small = F.interpolate(
        torch.from_numpy(pictures).permute(0, 3, 1, 2).float(), size=SIDE, mode="bilinear", antialias=True
    )
    objects = np.zeros((OBJECTS, CLIP_FRAMES, 8), np.float32)
    still = (poses[:, :, [X, Y]] - (left, top)) / side * 2 - 1
    radius = [[look.radius] for look in scene.looks] * poses[:, :, SCALE] / side * 2
    objects[:count, :, :2] = still + scene.camera / side * 2
    objects[:count, :, 2] = radius
    objects[:count, :, 3:5] = still
    objects[:count, :, 5:] = np.stack([np.log(poses[:, :, SCALE]), poses[:, :, ANGLE], poses[:, :, LIGHT]], axis=-1)
    steps = slice(None, None, TUBELET_FRAMES)
    return small.round().byte().permute(0, 2, 3, 1).numpy(), kinds[steps], objects[:, steps]


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


def make_clips(count: int, *, seed: int, hardest: float, workers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clips (count, 16, 64, 64, 3) uint8, ever harder, motions (count, 8) int64, objects (count, 5, 8, 8) float32."""
    clips = np.empty((count, CLIP_FRAMES, SIDE, SIDE, 3), np.uint8)
    motions = np.empty((count, STEPS), np.int64)
    objects = np.empty((count, OBJECTS, STEPS, 8), np.float32)
    with multiprocessing.get_context("spawn").Pool(workers, _one_thread) as pool:
        jobs = ((index, seed, hardest * index / count) for index in range(count))
        for index, made in enumerate(pool.imap(_make_clip, jobs, chunksize=32)):
            clips[index], motions[index], objects[index] = made
    return torch.from_numpy(clips), torch.from_numpy(motions), torch.from_numpy(objects)


def _make_clip(job: tuple[int, int, float]) -> Clip:
    index, seed, difficulty = job
    return make_clip(index, seed=seed, difficulty=difficulty)


def _one_thread() -> None:
    torch.set_num_threads(1)


def dense_rates(objects: Tensor, *, grid_side: int) -> Tensor:
    """What tokens show: objects (n, O, 8, 8) to (n, 8, h, w, 1 + R), share of the token covered and rates of change."""
    place, radius = objects[..., :2], objects[..., 2]
    (rates,) = torch.gradient(objects[..., 3:], dim=2)
    values = torch.cat([torch.ones_like(rates[..., :1]), rates * torch.tensor(RATE_SCALE)], dim=-1)
    axis = (torch.arange(FINE) + 0.5) / FINE * 2 - 1
    maps = objects.new_zeros(objects.shape[0], STEPS, FINE, FINE, values.shape[-1])
    for i in range(objects.shape[1]):  # back to front
        across = axis - place[:, i, :, :1]  # (n, 8, FINE)
        down = axis - place[:, i, :, 1:]
        inside = across[:, :, None, :] ** 2 + down[:, :, :, None] ** 2 < radius[:, i, :, None, None] ** 2
        maps = torch.where(inside[..., None], values[:, i, :, None, None], maps)
    cells = FINE // grid_side
    return maps.unflatten(3, (grid_side, cells)).unflatten(2, (grid_side, cells)).mean(dim=(3, 5))


# ---- augmentation: mirrors, transposition and reversed time, targets with them ---------------------------------------


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


def augment(rng: np.random.Generator, clips: Tensor, motions: Tensor, objects: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mirror, transpose, reverse time and permute colours, alike for the whole batch."""
    mirror, transpose, reverse = (bool(coin) for coin in rng.integers(2, size=3))
    if mirror:
        clips, objects = clips.flip(3), objects * torch.tensor([-1.0, 1, 1, -1, 1, 1, -1, 1])
    if transpose:
        clips, objects = clips.transpose(2, 3), objects[..., [1, 0, 2, 4, 3, 5, 6, 7]]
        objects = objects * torch.tensor([1.0, 1, 1, 1, 1, 1, -1, 1])
    if reverse:
        clips, motions, objects = clips.flip(1), motions.flip(1), objects.flip(2)
    clips = clips[..., torch.from_numpy(rng.permutation(3))]
    return clips, mapped_labels(mirror=mirror, transpose=transpose, reverse=reverse)[motions], objects


# ---- training --------------------------------------------------------------------------------------------------------


class MotionModel(nn.Module):
    """The backbone with linear maps of tokens to rates, and of each time step's mean to motion classes."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = VisionTransformer(spec=VIT_SPECS["tiny"], resolution=SIDE)
        self.norm = nn.LayerNorm(self.vit.spec.width)
        self.pooled_norm = nn.LayerNorm(self.vit.spec.width)
        self.rates = nn.Linear(self.vit.spec.width, 1 + len(RATE_SCALE))
        self.motion = nn.Linear(self.vit.spec.width, MOTIONS)
        filters = self.vit.patch_embed.get_parameter("proj.weight")
        filters.data.copy_(cosine_filters(*filters.shape))

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 16, H, W, 3) uint8 to rates (n, 8, h, w, 1 + R) and motion logits (n, 8, M)."""
        tokens = self.vit.embed(clips)
        for block in self.vit.blocks:
            tokens = block(tokens)
        side = self.vit.grid_side
        tokens = tokens.unflatten(1, (STEPS, side, side))
        return self.rates(self.norm(tokens)), self.motion(self.pooled_norm(tokens.mean(dim=(2, 3))))


def cosine_filters(width: int, channels: int, frames: int, patch: int, _: int) -> Tensor:
    """Patch-embedding weights to start from, (width, 3, 2, p, p): low cosines of sum and difference of the two frames.

    Random filters see little but a patch's mean brightness; learning to see shape and change takes them long.
    """
    wave = np.cos(np.pi * (np.arange(patch) + 0.5) * np.arange(patch)[:, None] / patch)
    wave /= np.linalg.norm(wave, axis=1, keepdims=True)
    colors = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    each = width // (channels * frames)
    order = sorted(np.ndindex(patch, patch), key=lambda uv: (uv[0] ** 2 + uv[1] ** 2, uv))[:each]
    filters = []
    for color in colors:
        for moment, gain in (((1, 1), 0.2), ((1, -1), 0.6)):
            for u, v in order:
                constant = u == v == 0 and moment == (1, 1)
                strength = gain * (0.1 if constant else 1.0) / np.sqrt(2)
                filters.append(strength * np.einsum("c,t,h,w->cthw", color, moment, wave[u], wave[v]))
    return torch.from_numpy(np.stack(filters)).float()


def accuracy(model: MotionModel, clips: Tensor, motions: Tensor) -> float:
    """Share of time steps whose motion is named right."""
    with torch.no_grad():
        named = torch.cat([model(chunk)[1].argmax(-1) for chunk in clips.split(32)])
    return float((named == motions).float().mean())


def adamw(model: nn.Module, *, lr: float) -> torch.optim.AdamW:
    """Weight decay on matrices alone."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}], lr=lr, betas=(0.9, 0.98)
    )


def train(model: MotionModel, clips: Tensor, motions: Tensor, objects: Tensor, args: argparse.Namespace) -> None:
    """AdamW with warm-up and cosine over `args.steps` batches; the last, hardest `args.held_out` clips only measure."""
    rng = np.random.default_rng(args.seed)
    optimizer = adamw(model, lr=args.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / 30, 0.5 * (1 + np.cos(np.pi * min(1.0, step / args.steps)))),
    )
    learning = len(clips) - args.held_out
    began = time.monotonic()
    for step in range(args.steps):
        reached = min(1.0, 0.15 + 1.1 * step / args.steps)  # of the clips, which are sorted by difficulty
        chosen = torch.from_numpy(rng.integers(int(reached * learning), size=args.batch))
        batch, motion, shown = augment(rng, clips[chosen], motions[chosen], objects[chosen])
        target = dense_rates(shown, grid_side=model.vit.grid_side)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
            rates, logits = model(batch)
        errors = (rates.float() - target).square().mean(dim=(0, 1, 2, 3))
        naming = F.cross_entropy(logits.float().flatten(0, 1), motion.flatten())
        loss = 2 * errors.sum() + naming
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == args.steps - 1:
            unexplained = errors.detach() / target.square().mean(dim=(0, 1, 2, 3)).clamp(min=1e-6)
            shares = " ".join(f"{share:.2f}" for share in unexplained.tolist())
            right = accuracy(model, clips[learning:], motions[learning:])
            seconds = time.monotonic() - began
            print(
                f"step {step:5d}  unexplained: cover, x, y, size, angle, light {shares}  motion {naming.item():.2f}  "
                f"held-out right {right:.1%}  {seconds:.0f} s",
                flush=True,
            )


def main() -> None:
    """Make clips, train, write the backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("adatad_ds/weights/tiny.safetensors"))
    parser.add_argument("--clips", type=int, default=4800)
    parser.add_argument("--held-out", type=int, default=128)
    parser.add_argument("--hardest", type=float, default=0.6, help="difficulty of the last clips, 0 to 1")
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="faster on CPUs that compute in bf16")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw clips, then threads that train")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.workers)
    model = MotionModel()
    began = time.monotonic()
    clips, motions, objects = make_clips(args.clips, seed=args.seed, hardest=args.hardest, workers=args.workers)
    print(f"{args.clips} clips drawn in {time.monotonic() - began:.0f} s", flush=True)
    train(model, clips, motions, objects, args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half().contiguous() for name, tensor in model.vit.state_dict().items()}
    save_file(weights, args.out, metadata={"spec": "tiny", "resolution": str(SIDE), "clip_seed": str(args.seed)})
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    use_utf8()
    main()
