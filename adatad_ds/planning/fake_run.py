"""Peak memory of model code, found by running it on the meta device, whose tensors have shapes but no memory.

Their storages are counted as they are created and freed, so the code itself determines the peak: of one span of a
recomputed backbone, of a backbone under plain autograd, of the head.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad_ds.config.parsing import CLIP_FRAMES
from adatad_ds.config.schema import BackboneConfig, Config, DataConfig, ParallelConfig, Precision, TrainConfig
from adatad_ds.models.backbones.adapted_video import AdaptedBackbone
from adatad_ds.models.execution.graphs import OnceAccumulated, build_graph
from adatad_ds.models.execution.segments import Segment
from adatad_ds.models.factory import build_backbone, build_heads
from adatad_ds.models.live_bytes import LiveBytes, live_bytes
from adatad_ds.models.shapes import shapes_only
from adatad_ds.models.transformers import backbone_spec
from adatad_ds.models.tuning.ladder import long_range_sum


class SegmentKind(NamedTuple):
    """What a segment costs by.

    Attributes:
        adapter: whether it has an adapter.
        blocks: for each of its blocks, in order, whether it is tuned inside.
        last: whether it leads to the top.
    """

    adapter: bool
    blocks: tuple[bool, ...]
    last: bool


class SegmentBytes(NamedTuple):
    """Bytes of one span in a segment.

    Attributes:
        run: peak of running it without a graph.
        build: peak of running it with one.
        graph: what the graph holds then.
        backward: peak of its backward pass, the graph included.
    """

    run: int
    build: int
    graph: int
    backward: int


@cache
def span_bytes(
    backbone: BackboneConfig,
    precision: Precision,
    resolution: int,
    windows: int,
    clips: int,
    kinds: tuple[SegmentKind, ...],
) -> tuple[int, dict[SegmentKind, SegmentBytes]]:
    """Bytes of processing one span of time, given its input and the gradient of its output.

    Returns:
        Peak of embedding it and running a frozen block; bytes of a segment by its kind.
    """
    config = Config(
        data=DataConfig(resolution=resolution),
        backbone=replace(backbone, weights=None, adapter_blocks=(0,)),
        train=TrainConfig(precision=precision),
    )
    spec, dtype = replace(backbone_spec(backbone.name), depth=2), config.train.dtype
    with shapes_only():  # initialisation reads values, which there are none of
        model = build_backbone(config, feature_steps=1, spec=spec)
    assert isinstance(model, AdaptedBackbone)
    with meta_tensors(model, dtype):
        vit = model.vit
        tuned, frozen = 0, 1
        frames = torch.empty(windows * clips, vit.clip_frames, resolution, resolution, 3, dtype=torch.uint8)

        def embed() -> None:
            with torch.no_grad():
                vit.run_block(frozen, vit.embed(frames))

        steps, rest = clips * vit.clip_tubelets, (vit.positions, spec.width)
        gradient = torch.empty(windows, steps, *rest, dtype=dtype)

        def segment_of(kind: SegmentKind) -> Segment:
            adapter = model.adapters["0"] if kind.adapter else None
            blocks = [tuned if inside else frozen for inside in kind.blocks]

            def run(tokens: Tensor, start: int) -> Tensor:
                by_clip = vit.by_clip(tokens)
                for index in blocks:
                    by_clip = vit.run_block(index, by_clip)
                tokens = vit.by_tubelet(by_clip, windows=windows)
                return vit.finish(tokens) if kind.last else tokens

            parts = [*([] if adapter is None else [adapter]), *(vit.blocks[index] for index in blocks)]
            return Segment(
                name="",
                adapter=adapter,
                reach=0 if adapter is None else adapter.reach,  # pyright: ignore[reportArgumentType]
                trainable=tuple(p for part in parts for p in part.parameters() if p.requires_grad),
                run=run,
            )

        def measured(segment: Segment) -> SegmentBytes:
            reach = segment.reach
            # As in a stored tensor: contiguous for a single window alone.
            context = torch.empty(windows, 1 + reach + steps + reach, *rest, dtype=dtype)[:, 1:]
            with torch.no_grad():
                run = live_bytes(lambda: segment(context, (reach, reach), 0))
            with LiveBytes() as count:
                graph, out = build_graph(segment, (0, steps), context, (reach, reach))
                del out
                build, held = count.peak, count.held
                count.peak = held
                OnceAccumulated(segment.trainable).differentiate(graph.root, gradient, graph.tokens, last=False)
                return SegmentBytes(run, build, held, count.peak)

        return live_bytes(embed), {kind: measured(segment_of(kind)) for kind in kinds}


class LadderBytes(NamedTuple):
    """Bytes of long-range adapters.

    Attributes:
        means: what they read.
        graph: that and what their graph holds, until the backward pass.
        backward: peak of the backward pass, the graph included.
    """

    means: int = 0
    graph: int = 0
    backward: int = 0


@cache
def ladder_bytes(backbone: BackboneConfig, precision: Precision, windows: int, tubelets: int) -> LadderBytes:
    """Bytes of a rank's long-range adapters, which run over whole windows of so many tubelets."""
    config = Config(backbone=replace(backbone, weights=None), train=TrainConfig(precision=precision))
    with shapes_only():
        model = build_backbone(config, feature_steps=1)
    assert isinstance(model, AdaptedBackbone)
    with meta_tensors(model, config.train.dtype), LiveBytes() as count:
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        count.held = count.peak = 0  # gradients are counted elsewhere
        adapters = model.long_adapters.values()
        means = torch.empty(len(adapters), windows, model.width, tubelets, dtype=config.train.dtype)
        held = count.held
        out = long_range_sum(adapters, means)
        del means
        graph, count.peak = count.held, count.held
        out.backward(torch.empty_like(out))
        return LadderBytes(held, graph, count.peak)


@cache
def whole_bytes(backbone: BackboneConfig, precision: Precision, resolution: int, windows: int, clips: int) -> int:
    """Peak bytes of a backbone's forward and backward pass under autograd or its checkpoints, given its gradients.

    Blocks are alike: each from the third on adds what it keeps until the backward pass, and no other peak.
    """
    depth = backbone_spec(backbone.name).depth
    few, more = min(2, depth), min(3, depth)
    first = bytes_of_blocks(few, backbone, precision, resolution, windows, clips)
    if more == few:
        return first
    another = bytes_of_blocks(more, backbone, precision, resolution, windows, clips)
    return another + (depth - more) * (another - first)


def bytes_of_blocks(
    depth: int, backbone: BackboneConfig, precision: Precision, resolution: int, windows: int, clips: int
) -> int:
    """`whole_bytes` of a transformer of so many blocks."""
    frames = clips * (backbone.clip_frames or CLIP_FRAMES)
    config = Config(
        data=DataConfig(resolution=resolution, window_size=frames),
        backbone=replace(backbone, weights=None),
        train=TrainConfig(precision=precision),
    )
    with shapes_only():
        model = build_backbone(config, feature_steps=frames, spec=replace(backbone_spec(backbone.name), depth=depth))
    with meta_tensors(model, config.train.dtype):
        window = torch.empty(windows, frames, resolution, resolution, 3, dtype=torch.uint8)

        def run() -> None:
            features = model(window)
            if features.requires_grad:
                features.sum().backward()

        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        return live_bytes(run)


def head_bytes(config: Config, *, in_channels: int, num_classes: int, windows: int) -> int:
    """Peak bytes of the pyramid's and the heads' forward and backward pass.

    Args:
        config: config of the run.
        in_channels: channels of the backbone's features.
        num_classes: K.
        windows: windows per forward pass.
    """
    return _head_bytes(_head_alone(config), in_channels, num_classes, windows)


def head_flop(config: Config, *, in_channels: int, num_classes: int, windows: int) -> int:
    """FLOPs of the same passes; arguments: see `head_bytes`."""
    return _head_flop(_head_alone(config), in_channels, num_classes, windows)


def shapes_of(config: Config) -> Config:
    """The config without settings that change no tensor of a model: the same for all layouts over ranks."""
    backbone = replace(config.backbone, weights=None, clips_per_chunk=0, activation_memory_gb=None)
    train = TrainConfig(precision=config.train.precision)
    return replace(config, backbone=backbone, parallel=ParallelConfig(), train=train)


def _head_alone(config: Config) -> Config:
    backbone = BackboneConfig(feature_channels=config.backbone.feature_channels)  # the rest is irrelevant to the head
    return replace(shapes_of(config), backbone=backbone)


@cache
def _head_bytes(config: Config, in_channels: int, num_classes: int, windows: int) -> int:
    with _head_passes(config, in_channels, num_classes, windows) as run:
        return live_bytes(run)


@cache
def _head_flop(config: Config, in_channels: int, num_classes: int, windows: int) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # Triton, which no rank needs

    with (
        _head_passes(config, in_channels, num_classes, windows) as run,
        FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter,
    ):
        run()
    return counter.get_total_flops()


@contextlib.contextmanager
def _head_passes(config: Config, in_channels: int, num_classes: int, windows: int) -> Iterator[Callable[[], None]]:
    """Both passes, to be run inside."""
    with shapes_only():  # initialisation reads values, which there are none of
        pyramid, head = build_heads(config, in_channels=in_channels, num_classes=num_classes)
    with meta_tensors(nn.ModuleList([pyramid, head]), config.train.dtype):
        features = torch.empty(windows, config.pyramid_steps, in_channels, dtype=config.train.dtype, requires_grad=True)
        valid = torch.ones(windows, config.pyramid_steps, dtype=torch.bool)

        def run() -> None:
            levels, masks = pyramid(features, valid, None)
            outputs = [output for output in head(levels, masks) if output.requires_grad]
            torch.stack([output.float().sum() for output in outputs]).sum().backward()

        yield run


def _attention_flop(query: torch.Size, key: torch.Size, *_: object, **__: object) -> int:
    return 4 * math.prod(query) * key[-2]


def _attention_backward_flop(gradient: torch.Size, query: torch.Size, key: torch.Size, *_: object, **__: object) -> int:
    return 2 * _attention_flop(query, key)


# Attention is counted as the CPU's, which PyTorch's table of FLOPs lacks.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flop,
}


@contextlib.contextmanager
def meta_tensors(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Context in which new tensors are on the meta device, as the model is, whose parameters get this type."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(parameter.to(dtype), parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, buffer.to("meta"), persistent=False)
    written_out = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _fused_attention  # a mode of PyTorch's would not reach into backward passes
    try:
        with torch.device("meta"):
            yield
    finally:
        F.scaled_dot_product_attention = written_out


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Attention as a device runs it; on the meta device PyTorch would write out its matrices."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.where(attn_mask, 0.0, -math.inf).to(query.dtype)
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
