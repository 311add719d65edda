"""Clips of a window, as every backbone runs them: in chunks, with recomputation and drop path.

B windows, n clips of each on this rank.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from adatad_ds.models.backbones.contract import ViTSpec
from adatad_ds.models.execution.window_share import TimeShard
from adatad_ds.models.sample_noise import SampleNoise

CLIPS_PER_CHUNK = 8
# Of a block's forward pass: with less, a GPU is thought to be done before the host has launched the next one's kernels.
# On an H200 a chunk took 4.7 ms for a block's three passes; the published code, on whole windows, as long for 49 clips
# of VideoMAE-S at 160 px (docs/reference/gpu.md; tools/gpu_parts/launches.py measures it).
LAUNCHED_FLOP = 2e11


def chunk_size(chosen: int | None, *, spec: ViTSpec, clip_tokens: int, cuda: bool) -> int:
    """How many clips run through a block at once; 0: all.

    Args:
        chosen: `backbone.clips_per_chunk`.
        spec: of the transformer.
        clip_tokens: N, of one clip.
        cuda: whether on a GPU, which is to be kept busy.
    """
    if chosen is not None:
        return chosen
    clips = CLIPS_PER_CHUNK
    while cuda and clips * spec.block_flop(clip_tokens, attended=clip_tokens) < LAUNCHED_FLOP:
        clips *= 2
    return clips


def clip_chunks(clips: int, *, most: int, at_once: int) -> list[tuple[int, int]]:
    """First clip of each chunk, and one past its last: the same number of chunks on every rank, as ZeRO-3 gathers
    weights for each.

    Args:
        clips: clips on this rank.
        most: the most that any rank holds.
        at_once: maximum number of clips per chunk; 0: all.
    """
    chunks = -(-most // at_once) if at_once else 1
    return list(pairwise(clips * chunk // chunks for chunk in range(chunks + 1)))


def recomputed(run: Callable[..., Tensor], *inputs: object) -> Tensor:
    """Run, keeping only the inputs for the backward pass.

    Checkpointing is non-reentrant: the reentrant kind silently loses gradients where no input needs one.
    """
    output = checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(output, Tensor)
    return output


def drop_path_factors(
    noise: SampleNoise, *, rate: float, depth: int, branches: tuple[int, ...], window: TimeShard, clips: int
) -> Tensor:
    """Factors of every block's branches, (B, n, depth, *branches).

    They are drawn for the whole window, once per forward pass, so that chunks, recomputation and ranks share them.

    Args:
        noise: per-sample randomness.
        rate: of the last block, decreasing linearly to 0 at the first, as in the reference.
        depth: blocks.
        branches: shape of what is dropped in a block of one clip.
        window: this rank's share of a window in time.
        clips: n.
    """
    rates = torch.linspace(0, rate, depth).view(depth, *(1 for _ in branches))
    share = window.share(clips)
    return noise.keep(share.total, depth, *branches, rate=rates)[:, share.first : share.first + clips]
