"""Features of whole videos of any length by a backbone, in bounded memory.

B clips at once, F frames, S pixels of a side, N tokens in time, T features of a video, C channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Event

import torch
from torch import Tensor

from adatad_ds.config.schema import Config
from adatad_ds.data.annotations import Video
from adatad_ds.data.decoding.damage import Damage
from adatad_ds.data.decoding.video import probe
from adatad_ds.data.features.plan import CLIPS_AT_ONCE, Piece, Snippet, num_features, snippet_pieces, span_pieces
from adatad_ds.data.window_stream import ahead, stream_rows
from adatad_ds.data.windows import Timing, frames_shown
from adatad_ds.models.backbones.adapted_video import AdaptedBackbone
from adatad_ds.models.backbones.kinds import Backbone
from adatad_ds.weights.loading import tensor_hash

CONTEXT_SHARE = 4  # a piece is at least so many times as long as its context on either side


class FeatureExtractor:
    """A backbone that turns whole videos into features.

    Args:
        backbone: in evaluation mode, on its device.
        config: how frames are read; without a snippet also how features lie in time.
        snippet: the clip that each feature is computed of; None: features as evaluation windows have them.
        device: the backbone's.
    """

    def __init__(self, *, backbone: Backbone, config: Config, snippet: Snippet | None, device: torch.device) -> None:
        self._backbone, self._config, self._snippet, self._device = backbone, config, snippet, device
        self._frames_per_token = config.backbone.frames_per_token
        self.context_clips = 0 if snippet else _context_clips(backbone)

    def length(self, timing: Timing) -> int:
        """T of a video."""
        return num_features(timing, self._config.data, self._snippet)

    def features(self, video: Video, path: Path, timing: Timing) -> Iterator[tuple[Tensor, Damage]]:
        """A video's features in order, some at a time.

        Yields:
            (n, C) float32 on the CPU; and what is missing in the file, as far as it has been read.

        Raises:
            VideoError: nothing in the file can be decoded.
        """
        pieces = self._pieces(video, timing)
        rows = [frames_shown(piece.frames, piece.frame_sec, path, self._config.data) for piece in pieces]
        closed, lost = Event(), set[int]()
        damage = probe(path).damage
        pictures = ahead(stream_rows(path, rows, config=self._config.data, closed=closed, lost=lost), closed)
        steps = None if self._snippet else self._steps(self.length(timing), pieces)
        with closing(pictures):
            for piece, frames in zip(pieces, pictures, strict=True):
                tokens = self._tokens(frames.unflatten(0, (piece.clips, -1)))  # (B, N, C)
                if steps is None:
                    yield tokens.mean(dim=1).cpu(), damage.with_lost(lost)
                else:
                    kept = slice(piece.first // self._frames_per_token, piece.last // self._frames_per_token)
                    yield steps.add(tokens[0, kept].cpu()), damage.with_lost(lost)

    def _pieces(self, video: Video, timing: Timing) -> list[Piece]:
        if self._snippet is not None:
            at_once = max(1, CLIPS_AT_ONCE * self._config.clip_frames // self._snippet.frames)
            return list(snippet_pieces(timing, self._snippet, clips_at_once=at_once))
        return list(
            span_pieces(
                video,
                timing,
                self._config.data,
                clip_frames=self._config.clip_frames,
                context_clips=self.context_clips,
                clips_at_once=max(CLIPS_AT_ONCE, CONTEXT_SHARE * self.context_clips),
            )
        )

    def _steps(self, count: int, pieces: list[Piece]) -> Interpolation | Averages:
        tokens = sum(piece.last - piece.first for piece in pieces) // self._frames_per_token
        per_step = self._config.data.frames_per_feature
        if isinstance(self._backbone, AdaptedBackbone):
            return Interpolation(steps=count, tokens=tokens, ratio=per_step / self._frames_per_token)
        return Averages(steps=count, tokens=per_step)

    @torch.inference_mode()
    def _tokens(self, frames: Tensor) -> Tensor:
        """Features of each token in time: (B, F, S, S, 3) uint8 to (B, N, C) float32."""
        frames = frames.to(self._device, non_blocking=True)
        if isinstance(self._backbone, AdaptedBackbone):
            return self._backbone.tubelet_features(frames).transpose(1, 2).float()
        return self._backbone.frame_features(frames).float()


class Interpolation:
    """Tokens to steps, as a window's are interpolated, of a video whose tokens come one part after another.

    Args:
        steps: T of the video.
        tokens: N of the video.
        ratio: tokens per step.
    """

    def __init__(self, *, steps: int, tokens: int, ratio: float) -> None:
        self._places = ((torch.arange(steps, dtype=torch.float64) + 0.5) * ratio - 0.5).clamp(0, tokens - 1)
        self._tokens = tokens
        self._step, self._first = 0, 0  # next step; token that `_held` begins with
        self._held: Tensor | None = None

    def add(self, tokens: Tensor) -> Tensor:
        """The steps (n, C) that can be told with the next tokens (N, C)."""
        held = tokens if self._held is None else torch.cat([self._held, tokens])
        places = self._places[self._step :]
        below = places.floor().long()
        above = (below + 1).clamp(max=self._tokens - 1)
        ready = int((above < self._first + len(held)).sum())
        share = (places - below)[:ready, None].float()
        before, after = held[below[:ready] - self._first], held[above[:ready] - self._first]
        self._step += ready
        start = int(below[ready]) if ready < len(below) else self._first + len(held)
        start = min(start, self._first + len(held))
        self._held, self._first = held[start - self._first :], start
        return torch.lerp(before, after, share)


class Averages:
    """Tokens to steps, each the mean of as many, of a video whose tokens come one part after another.

    Args:
        steps: T of the video.
        tokens: of each step.
    """

    def __init__(self, *, steps: int, tokens: int) -> None:
        self._left, self._tokens = steps, tokens
        self._held: Tensor | None = None

    def add(self, tokens: Tensor) -> Tensor:
        """The steps (n, C) that can be told with the next tokens (N, C)."""
        held = tokens if self._held is None else torch.cat([self._held, tokens])
        ready = min(len(held) // self._tokens, self._left)
        self._left -= ready
        self._held = held[ready * self._tokens :]
        return held[: ready * self._tokens].unflatten(0, (ready, self._tokens)).mean(dim=1)


def backbone_hash(backbone: Backbone) -> str:
    """One hash of all of a backbone's weights, rounded to bf16."""
    hashes = "".join(f"{name}{tensor_hash(parameter)}" for name, parameter in backbone.named_parameters())
    return hashlib.blake2b(hashes.encode(), digest_size=8).hexdigest()


def _context_clips(backbone: Backbone) -> int:
    """Clips on each side that a clip's features depend on.

    Inside the transformer an adapter reaches into the next clip, and attention spreads that over the clip before the
    next adapter reaches further; beside it, adapters do not follow one another.
    """
    if not isinstance(backbone, AdaptedBackbone):
        return 0
    adapters = (*backbone.adapters.values(), *backbone.long_adapters.values())
    reaches = [int(adapter.reach) for adapter in adapters]  # pyright: ignore[reportArgumentType]
    clips = [-(-reach // backbone.vit.clip_tubelets) for reach in reaches]
    return max(clips, default=0) if backbone.beside else sum(clips)
