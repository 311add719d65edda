"""Build a config's model: an adapted backbone, with a detector's pyramid and heads or a recogniser's classifier.

Pretrained weights are not loaded here. A transformer whose weights come from a file (`backbone.weights`) is left on the
meta device, without memory.

T feature steps, K classes.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import nn

from adatad_ds.config.schema import BackboneConfig, Config, HeadConfig
from adatad_ds.errors import ConfigError
from adatad_ds.models.backbones.adapted_video import AdaptedBackbone
from adatad_ds.models.backbones.clips import CLIPS_PER_CHUNK
from adatad_ds.models.backbones.contract import ViTSpec
from adatad_ds.models.backbones.features import FeatureBackbone
from adatad_ds.models.backbones.kinds import AnyBackbone, Backbone
from adatad_ds.models.detector import Detector, step_multiple
from adatad_ds.models.execution.activation_store import Storage, StoragePolicy
from adatad_ds.models.execution.retention import Retention
from adatad_ds.models.execution.segment_timer import Stopwatch
from adatad_ds.models.execution.window_share import TimeShard, WholeWindow
from adatad_ds.models.heads.actionformer import ActionFormerHead
from adatad_ds.models.heads.tridet import TriDetHead
from adatad_ds.models.pyramid import MaxPooling, Pyramid, PyramidBlock, SourceProjections
from adatad_ds.models.recogniser import Classifier, Recogniser
from adatad_ds.models.sgp import SGPBlock
from adatad_ds.models.shapes import shapes_only
from adatad_ds.models.transformers import backbone_spec, build_configured_image, build_video_transformer
from adatad_ds.models.tuning.adapters import TIA, PlainAdapter
from adatad_ds.models.tuning.inside import InsideTuning, stored_outputs
from adatad_ds.models.tuning.ladder import LongRange
from adatad_ds.models.tuning.lora import LoRASettings

Model: TypeAlias = Detector | Recogniser


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A rank's share of the windows, and the tools that its backbone runs with; by default those of a single rank.

    Attributes:
        window: its share of a window in time.
        storage: stores activations until the backward pass. Unused by image transformers.
        retention: which activations are kept until then; None: as `backbone.activation_checkpointing` has it.
        clips_per_chunk: None: as `backbone.clips_per_chunk` has it.
        stopwatch: times recomputed segments. Unused by image transformers.
    """

    window: TimeShard = field(default_factory=WholeWindow)
    storage: Storage = field(default_factory=lambda: Storage(StoragePolicy()))
    retention: Retention | None = None
    clips_per_chunk: int | None = None
    stopwatch: Stopwatch = field(default_factory=Stopwatch)


def build_model(config: Config, *, num_classes: int, runtime: Runtime | None = None) -> Model:
    """Build a config's detector or recogniser.

    Args:
        config: config of the run.
        num_classes: K.
        runtime: of this rank; None: of a single rank.

    Raises:
        ConfigError: unknown backbone, or adapters that do not fit it.
    """
    if config.recognition is None:
        return build_detector(config, num_classes=num_classes, runtime=runtime)
    return build_recogniser(config, num_classes=num_classes, runtime=runtime)


def build_detector(
    config: Config, *, num_classes: int, spec: ViTSpec | None = None, runtime: Runtime | None = None
) -> Detector:
    """`build_model` for a config of detection; `spec`: as for `build_backbone`."""
    backbone: AnyBackbone
    if config.backbone.is_features:
        backbone = FeatureBackbone(channels=sum(_source_channels(config)))
    else:
        backbone = build_backbone(config, feature_steps=config.data.window_size, spec=spec, runtime=runtime)
    pyramid, heads = build_heads(config, in_channels=backbone.width, num_classes=num_classes)
    return Detector(backbone=backbone, pyramid=pyramid, head=heads)


def build_heads(config: Config, *, in_channels: int, num_classes: int) -> tuple[Pyramid, ActionFormerHead | TriDetHead]:
    """A detector's pyramid and heads, on features of `in_channels` channels.

    Raises:
        ConfigError: a pyramid without convolutions is not as wide as the features.
    """
    head = config.head
    if not head.arch[0] and not head.source_widths and in_channels != head.width:
        raise ConfigError(
            f"head.arch = {list(head.arch)} has no convolution that takes the {in_channels} channels of the features "
            f"to head.width = {head.width}: use --set head.arch=[1,{head.arch[1]},{head.arch[2]}]"
        )
    sources = None
    if head.source_widths:
        sources = SourceProjections(channels=_source_channels(config), widths=head.source_widths)
    pyramid = Pyramid(
        in_channels=in_channels,
        sources=sources,
        width=head.width,
        arch=head.arch,
        make_block=lambda level, stride: _pyramid_block(head, level=level, stride=stride),
        steps=config.pyramid_steps,
        step_multiple=step_multiple(head),
        abs_pos_embed=head.abs_pos_embed,
        input_dropout=head.input_dropout,
        input_noise=head.input_noise,
        actionformer_norms=head.actionformer_norms,
    )
    tower_width = head.tower_width or head.width
    if head.name == "tridet":
        return pyramid, TriDetHead(
            width=head.width,
            tower_width=tower_width,
            kernel=head.tower_kernel,
            boundary_kernel=head.boundary_kernel,
            num_classes=num_classes,
            levels=head.levels,
            num_convs=head.num_convs,
            num_bins=head.num_bins,
            cls_prior=head.cls_prior,
            actionformer_norms=head.actionformer_norms,
        )
    return pyramid, ActionFormerHead(
        width=head.width,
        tower_width=tower_width,
        kernel=head.tower_kernel,
        num_classes=num_classes,
        levels=head.levels,
        num_convs=head.num_convs,
        cls_prior=head.cls_prior,
        actionformer_norms=head.actionformer_norms,
    )


def _pyramid_block(head: HeadConfig, *, level: int, stride: int) -> PyramidBlock | MaxPooling | SGPBlock:
    if head.name == "temporalmaxer":
        return MaxPooling(stride=stride)
    if head.name == "tridet":
        return SGPBlock(
            width=head.width,
            window=head.sgp_window if level else 1,
            scale=head.sgp_scale,
            stride=stride,
            mlp_width=head.sgp_mlp_width or 4 * head.width,
            drop_path=head.drop_path if level else None,
            init_std=head.sgp_init_std,
        )
    return PyramidBlock(
        width=head.width,
        heads=head.heads,
        attn_window=head.attn_windows[level],
        stride=stride,
        drop_path=head.drop_path,
        proj_dropout=head.proj_dropout,
    )


def build_recogniser(config: Config, *, num_classes: int, runtime: Runtime | None = None) -> Recogniser:
    """`build_model` for a config of recognition."""
    settings = config.recognition
    assert settings is not None
    steps = settings.frames // config.backbone.frames_per_token
    backbone = build_backbone(config, feature_steps=steps, runtime=runtime)
    head = Classifier(width=backbone.width, num_classes=num_classes, dropout=settings.dropout)
    return Recogniser(backbone=backbone, head=head)


def build_backbone(
    config: Config, *, feature_steps: int, spec: ViTSpec | None = None, runtime: Runtime | None = None
) -> Backbone:
    """Build a config's adapted backbone.

    Args:
        config: config of the run.
        feature_steps: T.
        spec: shape of a video transformer; None: that of `backbone.name`.
        runtime: of this rank; None: of a single rank.

    Raises:
        ConfigError: unknown backbone, or adapters that do not fit it.
    """
    backbone, resolution, runtime = config.backbone, config.data.resolution, runtime or Runtime()
    memory = shapes_only() if backbone.weights is not None else contextlib.nullcontext()
    if backbone.is_aim:
        from adatad_ds.models.backbones.adapted_image import (  # here, as timm takes seconds to import
            ALL_ADAPTERS,
            AIMTransformer,
        )

        adapt = backbone.aim_adapters
        if adapt is None:
            adapt = ALL_ADAPTERS if backbone.tuning == "aim" else ()
        with memory:
            image = build_configured_image(backbone, resolution=resolution)
        return AIMTransformer(
            vit=image,
            clip_frames=config.clip_frames,
            feature_steps=feature_steps,
            adapt=adapt,
            tuning=backbone.tuning,
            adapter_before_time=backbone.aim_before_time,
            adapter_ratio=backbone.adapter_ratio,
            joint_scale=backbone.aim_joint_scale,
            drop_path=backbone.drop_path,
            activation_checkpointing=backbone.activation_checkpointing,
            clips_per_chunk=CLIPS_PER_CHUNK if backbone.clips_per_chunk is None else backbone.clips_per_chunk,
            window=runtime.window,
        )
    with memory:
        if backbone.is_image:
            vit = build_configured_image(backbone, resolution=resolution, depth=spec.depth if spec else None)
        else:
            spec = spec or backbone_spec(backbone.name)
            vit = build_video_transformer(spec, clip_frames=config.clip_frames, resolution=resolution)
    spec = vit.spec
    return AdaptedBackbone(
        vit=vit,
        adapters=_adapters(backbone, spec),
        long_adapters=_long_adapters(backbone, spec),
        inside=_inside(backbone, spec),
        window=runtime.window,
        tuning=backbone.tuning,
        feature_steps=feature_steps,
        drop_path=backbone.drop_path,
        activation_checkpointing=backbone.activation_checkpointing,
        retention=runtime.retention or (Retention() if backbone.activation_checkpointing else Retention(graphs=None)),
        clips_per_chunk=backbone.clips_per_chunk if runtime.clips_per_chunk is None else runtime.clips_per_chunk,
        storage=runtime.storage,
        stopwatch=runtime.stopwatch,
    )


def adapted_blocks(backbone: BackboneConfig) -> tuple[int, ...]:
    """Indices of a transformer's tuned blocks; () with AIM's ways.

    Raises:
        ConfigError: unknown backbone, or blocks that it does not have.
    """
    if backbone.is_aim or backbone.is_features:
        return ()
    return _adapted_blocks(backbone, backbone_spec(backbone.name))


def stored_outputs_of(backbone: BackboneConfig) -> list[int]:
    """Blocks whose outputs wait for the backward pass (`stored_outputs`); [] with AIM's ways.

    Raises:
        ConfigError: as for `adapted_blocks`.
    """
    blocks = adapted_blocks(backbone)
    return stored_outputs(
        adapters=blocks if backbone.has_adapters else (), inside=blocks if backbone.tuned_inside else ()
    )


def _source_channels(config: Config) -> tuple[int, ...]:
    if not config.backbone.source_channels:
        raise ConfigError("backbone.feature_channels is not known before data.features are read; --set it")
    return config.backbone.source_channels


def _adapted_blocks(backbone: BackboneConfig, spec: ViTSpec) -> tuple[int, ...]:
    if backbone.tuning in ("frozen", "full"):
        return ()
    blocks = backbone.adapter_blocks if backbone.adapter_blocks is not None else tuple(range(spec.depth))
    outside = [block for block in blocks if not 0 <= block < spec.depth]
    if outside or not blocks:
        raise ConfigError(
            f"backbone.adapter_blocks={list(blocks)} must name blocks 0..{spec.depth - 1} of {backbone.name}; "
            f"not there: {outside}"
        )
    return blocks


def _adapters(backbone: BackboneConfig, spec: ViTSpec) -> dict[int, nn.Module]:
    def adapter() -> nn.Module:
        if not backbone.has_time_convolution:
            return PlainAdapter(width=spec.width, ratio=backbone.adapter_ratio)
        return TIA(
            width=spec.width,
            ratio=backbone.adapter_ratio,
            kernel=backbone.adapter_kernel,
            dilation=backbone.adapter_dilation,
        )

    return {block: adapter() for block in _adapted_blocks(backbone, spec)} if backbone.has_adapters else {}


def _long_adapters(backbone: BackboneConfig, spec: ViTSpec) -> dict[int, nn.Module]:
    def adapter() -> nn.Module:
        return LongRange(width=spec.width, ratio=backbone.adapter_ratio, dilations=backbone.ladder_dilations)

    return {block: adapter() for block in _adapted_blocks(backbone, spec)} if backbone.tuning == "ladder" else {}


def _inside(backbone: BackboneConfig, spec: ViTSpec) -> InsideTuning | None:
    if backbone.tuned_inside is None:
        return None
    lora = LoRASettings(
        rank=backbone.lora_rank, alpha=backbone.lora_alpha, targets=backbone.lora_targets, dora=backbone.lora_dora
    )
    return InsideTuning(way=backbone.tuned_inside, blocks=_adapted_blocks(backbone, spec), lora=lora)
