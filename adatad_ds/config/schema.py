"""The typed configuration: one frozen `Config` of sections.

What can be derived, such as levels' strides, is a property.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from adatad_ds.config import numbers as number
from adatad_ds.config.parsing import CLIP_FRAMES

Tuning = Literal["frozen", "full", "tia", "side", "aim"]
AIMAdapter = Literal["spatial", "temporal", "joint"]
Precision = Literal["bf16", "fp16", "fp32"]
REGRESSION_RANGE = ((0.0, 4.0), (4.0, 8.0), (8.0, 16.0), (16.0, 32.0), (32.0, 64.0), (64.0, 10000.0))
Scaling = Literal["bilinear", "antialias"]  # see data/scaling.py
Augmentation = Literal[
    "random_resized_crop", "flip", "rand_augment", "rand_augment_n4_m7", "color_jitter", "lighting", "random_erasing"
]  # see data/transforms.py


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which videos, and how windows of frames are cut from them."""

    annotations: str = ""  # community JSON: database -> video -> subset, duration, annotations
    videos: str = ""  # folder of VIDEO_NAME.{mp4,mkv,webm,avi,...}
    train_subset: str = "training"
    test_subset: str = "validation"
    classes: tuple[str, ...] = ()  # empty: the annotation file's labels, sorted
    exclude: tuple[str, ...] = ()  # video names left out on purpose
    exclude_file: str = ""  # a list of more of them: a name a line, or a JSON list; also of videos not annotated here
    class_agnostic: bool = False  # one class, any action; which one it is, a video classifier says (test.external_*)
    reader: Literal["pyav", "decord"] = "pyav"  # the same pixels; decord does not tell of damage that it patches up

    window_size: number.PositiveInt = 768  # feature steps T of one window
    frames_per_feature: number.PositiveInt = 1
    feature_stride_frames: number.PositiveInt | None = 4  # file frames a feature step; None with sampling=resize
    sampling: Literal["random_trunc", "resize"] = "random_trunc"
    fixed_fps: number.FramesPerSec | None = None  # rate that strides count frames at; None: the file's own
    offset_frames: number.Frames = 0  # added to every window's start when grid positions become seconds
    trunc_thresh: number.Fraction = 0.75  # keep a segment when at least this share of it lies in the window
    min_action_share: number.ActionShare = 0.0  # training actions of at most this share of their video are left out
    # random length that videos shorter than the window are cut to
    crop_ratio: tuple[number.VideoShare, number.VideoShare] | None = (0.9, 1.0)
    test_window_overlap: number.WindowShare = 0.5

    resolution: number.Pixels = 160  # side in pixels of what the backbone sees
    short_side_before_crop: number.Pixels = 182  # decoded short side in training; testing decodes at `resolution`
    scaling: Scaling = "antialias"  # how frames are made smaller; "bilinear": as for published checkpoints
    augment: tuple[Augmentation, ...] = ("random_resized_crop", "flip", "rand_augment", "color_jitter")

    workers: number.NonNegativeInt = 2  # decoding processes a rank
    prefetch: number.PositiveInt = 2  # micro batches ahead, a worker
    worker_timeout_sec: number.Seconds = 600  # a sample that takes longer ends the run with an error
    max_failed_videos: number.NonNegativeInt = 10  # unreadable training videos before the run gives up

    @property
    def window_frames(self) -> int:
        """Frames F of one window."""
        return self.window_size * self.frames_per_feature

    @property
    def frame_stride(self) -> int:
        """File frames between two frames of a window (sliding windows only)."""
        assert self.feature_stride_frames is not None
        return self.feature_stride_frames // self.frames_per_feature


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The video or image transformer, and how it is tuned."""

    name: str = "videomae_s"  # a key of models.vit.VIT_SPECS; `vit_...`: an image transformer by its name in timm
    weights: str | None = None  # pretrained: a file, folder or hub name (docs/weights.md); None: random, for tests only
    tuning: Tuning = "tia"
    adapter: Literal["tia", "plain"] = "tia"
    adapter_blocks: tuple[number.NonNegativeInt, ...] | None = None  # None: all blocks
    adapter_ratio: number.WidthShare = 0.25
    adapter_kernel: number.PositiveInt = 3
    adapter_dilation: number.PositiveInt = 1
    drop_path: number.Probability = 0.0
    activation_checkpointing: bool = True
    clips_per_chunk: number.NonNegativeInt = 8  # clips that run through a block at once; 0: all
    stored_on_device_gb: number.Gigabytes = 0.0  # of the activations that cpu_checkpointing sends to host memory

    # image transformers only (AIM)
    pixel_mean: tuple[number.GreyLevel, number.GreyLevel, number.GreyLevel] | None = None  # RGB; None: of timm's model
    pixel_std: tuple[number.GreyDeviation, number.GreyDeviation, number.GreyDeviation] | None = None  # likewise
    aim_adapters: tuple[AIMAdapter, ...] | None = None  # None: all with tuning=aim, otherwise none
    aim_before_time: bool = False  # one more adapter before the attention over time, for strongly temporal data
    aim_joint_scale: number.NonNegativeFloat = 0.5  # factor of the joint adapters' output
    clip_frames: number.PositiveInt | None = None  # frames of one attention; None: 16, in recognition all T

    @property
    def is_image(self) -> bool:
        """Whether the transformer is one of images."""
        return self.name.startswith("vit_")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """ActionFormer's pyramid and heads."""

    width: number.PositiveInt = 512
    # convolutions, transformer blocks, halving blocks
    arch: tuple[number.NonNegativeInt, number.NonNegativeInt, number.NonNegativeInt] = (2, 2, 5)
    heads: number.PositiveInt = 4
    max_len: number.PositiveInt | None = None  # steps that windows are padded to; None: none
    attn_window: number.Steps | tuple[number.Steps, ...] = -1  # of all levels, or level by level; -1: all
    abs_pos_embed: bool = False
    drop_path: number.Probability = 0.1
    input_dropout: number.Probability = 0.0
    proj_dropout: number.Probability = 0.0  # after the attention's projection and both layers of the MLP
    num_convs: number.PositiveInt = 2
    cls_prior: number.OpenFraction = 0.01
    regression_range: tuple[tuple[number.Reach, number.Reach], ...] = REGRESSION_RANGE
    point_offset: bool = False
    loss_normalizer: number.PositiveFloat = 100.0
    loss_normalizer_momentum: number.Probability = 0.9
    center_radius: number.PositiveFloat = 1.5
    label_smoothing: number.Probability = 0.0
    reg_loss_weight: number.NonNegativeFloat = 1.0
    filter_similar_gt: bool = True
    reset_classifier: bool = False  # new class logits where `backbone.weights` is a detector

    @property
    def levels(self) -> int:
        """Pyramid levels: one at full rate and one for each halving block."""
        return self.arch[2] + 1

    @property
    def attn_windows(self) -> tuple[int, ...]:
        """The attention window of each level."""
        return (self.attn_window,) * self.levels if isinstance(self.attn_window, int) else self.attn_window

    @property
    def strides(self) -> tuple[int, ...]:
        """Feature steps between two points, level by level."""
        return tuple(2**level for level in range(self.levels))


@dataclass(frozen=True, kw_only=True)
class RecognitionConfig:
    """Recognition: a label for each short video, in the place of detection. Of `data`, what is about files counts too.

    Lists have lines of PATH LABEL or PATH,LABEL, below the folder `data.videos`; a folder of one folder a class will
    do as well.
    """

    train_list: str  # a list, or a folder of CLASS/VIDEO files
    test_list: str
    class_names: str = ""  # a file of class names by index, one a line; "": data.classes, or what the training list has
    frames: number.PositiveInt = 8  # T of a clip
    sampling: Literal["uniform", "dense"] = "dense"
    stride: number.PositiveInt = 16  # frames of the file between two frames of a dense clip
    test_clips: number.PositiveInt = 1
    test_crops: Literal[1, 3] = 1  # of each test clip: the centre, or both ends and the centre
    dropout: number.Probability = 0.5  # before the classifier
    label_smoothing: number.Probability = 0.0
    mixup_alpha: number.NonNegativeFloat = 0.0  # 0: off
    cutmix_alpha: number.NonNegativeFloat = 0.0  # 0: off
    reset_classifier: bool = False  # start the classifier anew where `backbone.weights` is a model of other classes


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation. The batch is GLOBAL: results do not depend on how ranks and accumulation split it."""

    seed: number.Seed = 0
    precision: Precision = "bf16"
    global_batch: number.PositiveInt = 2
    micro_batch: number.PositiveInt | None = None  # windows a rank and forward pass; None: global_batch / ranks
    lr_head: number.LearningRate = 1e-4
    lr_adapter: number.LearningRate = 2e-4
    lr_backbone: number.LearningRate | None = None  # of tuning=full, or an image model's final norm; None: lr_adapter
    weight_decay: number.Fraction = 0.05
    weight_decay_backbone: number.Fraction = 0.05
    grad_clip: number.NonNegativeFloat = 1.0  # 0: off
    ema_decay: number.Probability = 0.999  # 0: off, evaluate the raw weights
    ema_warmup: bool | None = None  # follow more closely at first; None: where the run is too short to do without
    warmup_epochs: number.Epochs = 5.0
    warmup_start: number.Fraction = 0.0  # share of the rate that the warm-up begins with
    schedule_epochs: number.PositiveInt = 100  # where the cosine would reach 0
    cosine: Literal["step", "epoch"] = "step"  # falls by the step after the warm-up, or by the epoch from the first on
    stop_epoch: number.PositiveInt = 60
    repeats: number.PositiveInt = 1  # windows drawn from every training video in an epoch
    eval_from_epoch: number.NonNegativeInt = 40
    eval_every: number.PositiveInt = 2  # epochs
    checkpoint_every_steps: number.NonNegativeInt = 0  # besides the end of every epoch; 0: off
    keep_checkpoints: number.PositiveInt = 2  # the newest; the best one is kept besides
    compact_checkpoints: bool = False  # 9 bytes a trainable parameter instead of 16, see weights/trainable_state.py
    log_every_steps: number.PositiveInt = 10
    max_skipped_steps: number.PositiveInt = 20  # in a row, of gradients without a finite norm; then the run gives up
    hang_timeout_sec: number.Seconds = 1800  # a rank that waits longer for the others ends the job
    stop_timeout_sec: number.Seconds = 300  # asked to stop, a rank ends when no step has within this time

    @property
    def dtype(self) -> torch.dtype:
        """The compute type."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[self.precision]


@dataclass(frozen=True, kw_only=True)
class TestConfig:
    """From scores to detections, and the metric."""

    batch: number.PositiveInt = 1  # windows a rank and forward pass
    pre_nms_thresh: number.Probability = 0.001
    pre_nms_topk: number.PositiveInt = 2000
    suppression: Literal["gaussian", "linear", "hard"] = "gaussian"
    sigma: number.PositiveFloat = 0.7
    tiou_suppression: number.TIoU = 0.5  # linear and hard suppression only
    min_score: number.Probability = 0.0
    max_per_video: number.PositiveInt = 2000
    per_class: bool = True
    voting_thresh: number.Fraction = 0.7  # tIoU of the neighbours that vote; class-agnostic suppression only; 0: off
    tiou: tuple[number.TIoU, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)
    recall_topk: tuple[number.PositiveInt, ...] = ()
    external_scores: str = ""  # video-level class scores that a class-agnostic detector's segments take; "": none
    external_layout: Literal["cuhk", "plain", "tcanet"] = "cuhk"  # of that file, and with it how scores are fused
    external_topk: number.PositiveInt = 2  # classes that each segment takes


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the work of training is spread over ranks; results do not depend on it."""

    temporal: number.PositiveInt = 1  # ranks that share each window's clips; the other ranks take other windows


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a run needs; saved with it and read back to resume or evaluate."""

    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    test: TestConfig = field(default_factory=TestConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    recognition: RecognitionConfig | None = None  # None: detection

    @property
    def sample_frames(self) -> int:
        """Frames F of a training sample: a window, or a clip."""
        return self.recognition.frames if self.recognition else self.data.window_frames

    @property
    def clip_frames(self) -> int:
        """Frames that attend to one another."""
        if not self.backbone.is_image:
            return CLIP_FRAMES
        return self.backbone.clip_frames or (self.recognition.frames if self.recognition else CLIP_FRAMES)

    @property
    def reset_classifier(self) -> bool:
        """Whether the layer of class logits is newly initialised where `backbone.weights` is a trained model."""
        return (self.recognition or self.head).reset_classifier

    @property
    def pyramid_steps(self) -> int:
        """Feature steps that the pyramid sees: the window's, and padding."""
        return self.head.max_len or self.data.window_size

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dict, JSON-ready, without sections that are not there."""
        tree = json.loads(json.dumps(dataclasses.asdict(self)))
        return {section: values for section, values in tree.items() if values is not None}

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
