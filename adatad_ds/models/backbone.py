"""The adapted backbone: a window of frames in, one feature a step out.

B windows, F frames a window, n = F / 16 clips a window, T' = F / 2 tubelets, S = h * w positions, N = 8 * S tokens a
clip, C channels, T feature steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adatad_ds.config import CLIP_FRAMES, TUBELET_FRAMES, Tuning
from adatad_ds.models.noise import SampleNoise
from adatad_ds.models.recompute import Segment
from adatad_ds.models.vit import VisionTransformer
from adatad_ds.models.window import Window


class AdaptedBackbone(nn.Module):
    """A video transformer over the clips of a window, tuned in one of four ways (AdaTAD, section 3).

    - `frozen`: no gradient, no adapters.
    - `full`: every weight learns, no adapters.
    - `tia`: adapters follow chosen blocks; the frozen blocks above the first adapter pass gradients to their inputs.
    - `side`: adapters read chosen blocks' outputs and are summed onto the last; no gradient enters the transformer.

    Blocks run over a few clips at a time, because attention never leaves a clip: what one block needs in memory does
    not grow with F. Adapters see the whole window.

    Args:
        vit: the transformer; its parameters are frozen here unless `tuning` is `full`.
        adapters: block index to adapter.
        tuning: one of the four ways above.
        feature_steps: T, to which the T' pooled tubelets are interpolated.
        drop_path: stochastic depth rate of the last block, falling linearly to 0 at the first.
        activation_checkpointing: keep only the inputs of blocks and adapters for the backward pass.
        clips_per_chunk: clips that run through a block at once, at most; 0: all.
        window: this rank's share of a window in time.
    """

    def __init__(
        self,
        *,
        vit: VisionTransformer,
        adapters: dict[int, nn.Module],
        tuning: Tuning,
        feature_steps: int,
        drop_path: float,
        activation_checkpointing: bool,
        clips_per_chunk: int,
        window: Window,
    ) -> None:
        super().__init__()
        self.vit = vit.requires_grad_(tuning == "full")
        self.adapters = nn.ModuleDict({str(index): adapters[index] for index in sorted(adapters)})
        self.adapted_blocks = sorted(adapters)
        self.tuning = tuning
        self.feature_steps = feature_steps
        self.activation_checkpointing = activation_checkpointing
        self.clips_per_chunk = clips_per_chunk
        self.drop_path = drop_path
        self._window = window

    @property
    def grad_free_blocks(self) -> int:
        """Leading blocks that need no gradient: all below and including the first adapted one."""
        if self.tuning == "full":
            return 0
        return self.adapted_blocks[0] + 1 if self.tuning == "tia" else self.vit.spec.depth

    def forward(self, frames: Tensor, noise: SampleNoise | None = None) -> Tensor:
        """Features of each window.

        Args:
            frames: (B, F, H, W, 3) uint8, F a multiple of 16; only this rank's clips, where a window is shared.
            noise: per-sample randomness of drop path in training; None: every branch is kept.

        Returns:
            (B, C, T) float32, of the whole window.
        """
        windows, count = frames.shape[0], frames.shape[1] // CLIP_FRAMES
        clips = frames.reshape(windows * count, CLIP_FRAMES, *frames.shape[2:])
        keep = self._drop_path_factors(noise, windows=windows, clips=count)
        pieces = self._pieces(windows=windows, clips=count)

        split = self.grad_free_blocks
        if split:
            with torch.no_grad():
                tokens, taps = self._run_leading_blocks(clips.tensor_split(pieces), keep, until=split)
        else:
            tokens, taps = torch.cat([self.vit.embed(chunk) for chunk in clips.tensor_split(pieces)]), []

        if self.tuning == "side":
            tokens = self._window_view(tokens, windows)
            for index, tap in zip(self.adapted_blocks, taps, strict=True):
                tokens = tokens + self._stored_once(self.adapters[str(index)], self._window_view(tap, windows))
        elif self.tuning == "tia" and self.activation_checkpointing:
            for segment in self._segments(keep, windows=windows, pieces=pieces):
                tokens = segment(tokens)
            tokens = self._window_view(tokens, windows)
        else:
            tokens = self._adapt(split - 1, tokens, windows)
            for index in range(split, self.vit.spec.depth):
                tokens = self._adapt(index, self._block(index, tokens, keep, pieces), windows)
            tokens = self._window_view(tokens, windows)

        features = tokens.mean(dim=2, dtype=torch.float32).transpose(1, 2)  # (B, C, T') of the clips here
        features = self._window.gather_time(features)
        return F.interpolate(features, size=self.feature_steps, mode="linear", align_corners=False)

    def _run_leading_blocks(
        self, chunks: Sequence[Tensor], keep: Tensor | None, *, until: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Embed and run blocks 0 .. until - 1, a chunk of clips all the way up before the next.

        Returns the last block's tokens (B * n, N, C) and, for `side`, those of each adapted block.
        """
        wanted = self.adapted_blocks if self.tuning == "side" else []
        outputs: list[Tensor] = []
        taps: list[list[Tensor]] = [[] for _ in wanted]
        keeps = (None,) * len(chunks) if keep is None else keep.tensor_split(len(chunks))
        for chunk, chunk_keep in zip(chunks, keeps, strict=True):
            tokens = self.vit.embed(chunk)
            for index in range(until):
                tokens = self.vit.blocks[index](tokens, None if chunk_keep is None else chunk_keep[:, index])
                if index in wanted:
                    taps[wanted.index(index)].append(tokens)
            outputs.append(tokens)
        return torch.cat(outputs), [torch.cat(tap) for tap in taps]

    def _segments(self, keep: Tensor | None, *, windows: int, pieces: int) -> Iterator[Segment]:
        """From each adapted block's output to the next one's; the last one's reaches the top."""
        for first, last in pairwise([*self.adapted_blocks, self.vit.spec.depth]):
            blocks = range(first + 1, min(last + 1, self.vit.spec.depth))

            def run(tokens: Tensor, start: int, blocks: range = blocks) -> Tensor:
                for index in blocks:
                    kept = None if keep is None else keep[start : start + len(tokens), index]
                    tokens = self.vit.blocks[index](tokens, kept)
                return tokens

            yield Segment(
                adapt=lambda tokens, index=first: self._adapt(index, tokens, windows),
                run=run if blocks else None,
                pieces=pieces,
            )

    def _block(self, index: int, tokens: Tensor, keep: Tensor | None, pieces: int) -> Tensor:
        """Block `index` over all clips, chunk by chunk: (B * n, N, C) to the same."""
        block = self.vit.blocks[index]
        chunks = tokens.tensor_split(pieces)
        keeps = (None,) * pieces if keep is None else keep[:, index].tensor_split(pieces)
        return torch.cat([self._stored_once(block, chunk, kept) for chunk, kept in zip(chunks, keeps, strict=True)])

    def _adapt(self, index: int, tokens: Tensor, windows: int) -> Tensor:
        """Add the adapter of block `index`, if it has one: (B * n, N, C) to the same."""
        if index not in self.adapted_blocks:
            return tokens
        whole = self._window_view(tokens, windows)
        return (whole + self.adapters[str(index)](whole)).view_as(tokens)

    def _stored_once(self, module: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        """Run a module, keeping only its inputs for the backward pass when checkpointing is on.

        Not the reentrant kind: it loses gradients silently where a block's input needs none.
        """
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False)
        return module(*inputs)

    def _window_view(self, tokens: Tensor, windows: int) -> Tensor:
        """(B * n, N, C) to (B, T', S, C): the clips of a window, end to end."""
        steps = tokens.shape[0] // windows * (CLIP_FRAMES // TUBELET_FRAMES)
        return tokens.view(windows, steps, -1, tokens.shape[-1])

    def _pieces(self, *, windows: int, clips: int) -> int:
        """In how many pieces the clips run through a block: as many on every rank, where ZeRO-3 may gather for each."""
        _, _, most = self._window.clips(clips)
        return -(-windows * most // self.clips_per_chunk) if self.clips_per_chunk else 1

    def _drop_path_factors(self, noise: SampleNoise | None, *, windows: int, clips: int) -> Tensor | None:
        """(B * n, depth, 2), drawn once a forward pass so that chunks, recomputation and ranks share them."""
        if noise is None or self.drop_path == 0:
            return None
        depth = self.vit.spec.depth
        rate = torch.linspace(0, self.drop_path, depth)[:, None]  # the reference's rule, block by block
        first, total, _ = self._window.clips(clips)
        factors = noise.keep(total, depth, 2, rate=rate)[:, first : first + clips]
        return factors.reshape(windows * clips, depth, 2)
