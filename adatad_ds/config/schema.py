"""The typed configuration: one frozen `Config` with a dataclass per section.

Derived values, such as the strides of the pyramid's levels, are properties.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from adatad_ds.config import numbers
from adatad_ds.config.backbone import BackboneConfig
from adatad_ds.config.head import HeadConfig
from adatad_ds.config.parsing import CLIP_FRAMES

if TYPE_CHECKING:
    import torch

Precision = Literal["bf16", "fp16", "fp32"]
Scaling = Literal["bilinear", "antialias"]  # see data/decoding/scaling.py
Augmentation = Literal[
    "random_resized_crop", "flip", "rand_augment", "rand_augment_n4_m7", "color_jitter", "lighting", "random_erasing"
]  # see data/augmentation/transforms.py


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Videos, and how windows of frames are cut from them."""

    annotations: str = ""  # community JSON: database -> video -> subset, duration, annotations
    videos: str = ""  # folder of VIDEO_NAME.{mp4,mkv,webm,avi,...}
    features: str | tuple[str, ...] = ""  # in their place: folders of VIDEO_NAME.npy (T, C), ...; several side by side
    skip_missing: bool = False  # leave out annotated videos that have no features
    train_subset: str = "training"
    test_subset: str = "validation"
    classes: tuple[str, ...] = ()  # empty: the annotation file's labels, sorted
    exclude: tuple[str, ...] = ()  # names of videos to leave out
    exclude_file: str = ""  # more of them: one name per line, or a JSON list; may name videos not annotated here
    class_agnostic: bool = False  # a single class, any action; a video classifier names it (test.external_*)
    # same pixels; "auto": pyav, and opencv for prepared MJPEG; others hide damage that they conceal; nvdec: on the GPU
    reader: Literal["auto", "torchcodec", "pyav", "decord", "nvdec"] = "auto"

    window_size: numbers.PositiveInt = 768  # feature steps T of one window
    frames_per_feature: numbers.PositiveInt = 1
    feature_stride_frames: numbers.PositiveInt | None = 4  # file frames per feature step; None with sampling=resize
    sampling: Literal["random_trunc", "resize"] = "random_trunc"
    fixed_fps: numbers.FramesPerSec | None = None  # frame rate that strides refer to; None: the file's own
    offset_frames: numbers.Frames = 0  # added to each window's start when grid positions become seconds
    offset_steps: numbers.NonNegativeFloat = 0.0  # features with sampling=resize: likewise, in feature steps
    trunc_thresh: numbers.Fraction = 0.75  # keep a segment if at least this share of it lies in the window
    # training actions may reach so far beyond their window's ends, in feature steps (ActionFormer: the offset)
    margin_steps: numbers.NonNegativeFloat = 0.0
    min_action_share: numbers.ActionShare = 0.0  # drop training actions of at most this share of their video
    # range of the random length that videos shorter than the window are cropped to
    crop_ratio: tuple[numbers.VideoShare, numbers.VideoShare] | None = (0.9, 1.0)
    test_window_overlap: numbers.WindowShare = 0.5
    test_whole_videos: bool = False  # features only: each test video in one pass, however long

    resolution: numbers.Pixels = 160  # side in pixels of the backbone's input frames
    short_side_before_crop: numbers.Pixels = 182  # decoded short side in training; testing decodes at `resolution`
    scaling: Scaling = "antialias"  # how frames are downscaled; "bilinear": as for published checkpoints
    augment: tuple[Augmentation, ...] = ("random_resized_crop", "flip", "rand_augment", "color_jitter")
    augment_on_device: bool = False  # all but the crop, by the rank's device instead of the workers; the same draws

    workers: numbers.NonNegativeInt = 2  # decoding processes per rank
    prefetch: numbers.PositiveInt = 2  # micro batches ahead, per worker
    worker_timeout_sec: numbers.Seconds = 600  # a sample that takes longer ends the run with an error
    max_failed_videos: numbers.NonNegativeInt = 10  # unreadable training videos before the run stops

    @property
    def feature_sources(self) -> tuple[str, ...]:
        """Folders or files of features."""
        return (self.features,) * bool(self.features) if isinstance(self.features, str) else self.features

    @property
    def window_frames(self) -> int:
        """Frames F per window."""
        return self.window_size * self.frames_per_feature

    @property
    def frame_stride(self) -> int:
        """File frames between two consecutive frames of a window (sliding windows only)."""
        assert self.feature_stride_frames is not None
        return self.feature_stride_frames // self.frames_per_feature


@dataclass(frozen=True, kw_only=True)
class RecognitionConfig:
    """Classification of short videos instead of detection; of `data`, only the file settings apply.

    Lists have lines of PATH LABEL or PATH,LABEL, relative to `data.videos`; a folder with one subfolder per class also
    works.
    """

    train_list: str  # a list, or a folder of CLASS/VIDEO files
    test_list: str
    class_names: str = ""  # a file of class names by index, one per line; "": data.classes, or the training list's
    frames: numbers.PositiveInt = 8  # T, frames per clip
    sampling: Literal["uniform", "dense"] = "dense"
    stride: numbers.PositiveInt = 16  # file frames between two frames of a dense clip
    test_clips: numbers.PositiveInt = 1
    test_crops: Literal[1, 3] = 1  # per test clip: the centre, or both ends and the centre
    dropout: numbers.Probability = 0.5  # before the classifier
    label_smoothing: numbers.Probability = 0.0
    mixup_alpha: numbers.NonNegativeFloat = 0.0  # 0: off
    cutmix_alpha: numbers.NonNegativeFloat = 0.0  # 0: off
    reset_classifier: bool = False  # newly initialise the classifier if `backbone.weights` is a model of other classes


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation. The batch size is GLOBAL: results do not depend on how ranks and accumulation split it."""

    seed: numbers.Seed = 0
    precision: Precision = "bf16"
    global_batch: numbers.PositiveInt = 2
    micro_batch: numbers.PositiveInt | None = None  # windows per rank and forward pass; None: global_batch / ranks
    lr_head: numbers.LearningRate = 1e-4
    lr_adapter: numbers.LearningRate = 2e-4
    lr_backbone: numbers.LearningRate | None = None  # for tuning=full, or an image model's final norm; None: lr_adapter
    weight_decay: numbers.Fraction = 0.05
    weight_decay_backbone: numbers.Fraction = 0.05
    grad_clip: numbers.NonNegativeFloat = 1.0  # 0: off
    ema_decay: numbers.Probability = 0.999  # 0: off, evaluate the weights themselves
    ema_warmup: bool | None = None  # smaller decay at first; None: only if the run is too short to do without
    warmup_epochs: numbers.Epochs = 5.0
    warmup_start: numbers.Fraction = 0.0  # share of the learning rate at which the warm-up starts
    schedule_epochs: numbers.PositiveInt = 100  # when the cosine would reach its end
    cosine_end: numbers.Fraction = 0.0  # share of the learning rate at which the cosine ends
    cosine: Literal["step", "epoch"] = "step"  # decays per step after the warm-up, or per epoch from the first one
    stop_epoch: numbers.PositiveInt = 60
    repeats: numbers.PositiveInt = 1  # windows drawn per training video and epoch
    eval_from_epoch: numbers.NonNegativeInt = 40
    eval_every: numbers.PositiveInt = 2  # epochs
    eval_pictures: bool = True  # in TensorBoard
    checkpoint_every_steps: numbers.NonNegativeInt = 0  # in addition to the end of each epoch; 0: off
    keep_checkpoints: numbers.PositiveInt = 2  # the newest ones; the best one is always kept
    compact_checkpoints: bool = False  # 9 bytes per trainable parameter instead of 16, see weights/trainable_state.py
    log_every_steps: numbers.PositiveInt = 10
    compile: bool = False  # torch.compile of blocks, adapters and the pyramid's attention; ZeRO-1 and 2
    max_skipped_steps: numbers.PositiveInt = 20  # consecutive steps without a finite gradient norm; then the run stops
    hang_timeout_sec: numbers.Seconds = 1800  # a rank that waits longer for the others ends the job
    stop_timeout_sec: numbers.Seconds = 300  # after a stop request, a rank exits if no step ends within this time

    @property
    def dtype(self) -> torch.dtype:
        """Compute type."""
        import torch  # here, as it takes seconds, and most readers of settings need none

        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[self.precision]


@dataclass(frozen=True, kw_only=True)
class TestConfig:
    """Post-processing of scores into detections, and the metric."""

    batch: numbers.PositiveInt = 1  # windows per rank and forward pass
    pre_nms_thresh: numbers.Probability = 0.001
    pre_nms_topk: numbers.PositiveInt = 2000  # candidates per window, or per level of its pyramid
    topk_per_level: bool = False  # `pre_nms_topk` counts for each level (ActionFormer, TriDet)
    min_duration_steps: numbers.NonNegativeFloat = 0.0  # drop candidates of at most this length, in feature steps
    suppression: Literal["gaussian", "linear", "hard"] = "gaussian"
    sigma: numbers.PositiveFloat = 0.7
    tiou_suppression: numbers.TIoU = 0.5  # linear and hard suppression only
    min_score: numbers.Probability = 0.0
    max_per_video: numbers.PositiveInt = 2000
    per_class: bool = True
    voting_thresh: numbers.Fraction = 0.7  # tIoU from which neighbours vote; class-agnostic suppression only; 0: off
    tiou: tuple[numbers.TIoU, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)
    recall_topk: tuple[numbers.PositiveInt, ...] = ()
    external_scores: str = ""  # video-level class scores for a class-agnostic detector's segments; "": none
    external_layout: Literal["cuhk", "plain", "tcanet"] = "cuhk"  # layout of that file, and how scores are fused
    external_topk: numbers.PositiveInt = 2  # classes assigned to each segment


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How training is spread over ranks; results do not depend on it."""

    temporal: numbers.PositiveInt = 1  # ranks that share the clips of each window; the others take other windows


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a run needs; saved with it, and read back to resume or evaluate."""

    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    test: TestConfig = field(default_factory=TestConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    recognition: RecognitionConfig | None = None  # None: detection

    @property
    def sample_frames(self) -> int:
        """Frames F per training sample: a window, or a clip."""
        return self.recognition.frames if self.recognition else self.data.window_frames

    @property
    def annotation_files(self) -> dict[str, str]:
        """The files that name videos and their labels, by key of the setting."""
        if self.recognition:
            lists = {"train_list": self.recognition.train_list, "test_list": self.recognition.test_list}
            return {f"recognition.{key}": path for key, path in lists.items()}
        return {"data.annotations": self.data.annotations}

    def with_sample_frames(self, frames: int) -> Config:
        """The same with samples of so many frames, at the same frames per feature."""
        if self.recognition:
            return replace(self, recognition=replace(self.recognition, frames=frames))
        window_size = frames // self.data.frames_per_feature
        return replace(self, data=replace(self.data, window_size=window_size))

    @property
    def sample_frames_step(self) -> int:
        """Samples have a multiple of so many frames: complete clips, and in detection the pyramid's halvings."""
        if self.recognition:
            return 1 if self.backbone.is_image else self.clip_frames
        step = self.head.strides[-1] * self.data.frames_per_feature
        while step % self.clip_frames:
            step *= 2
        return step

    @property
    def most_temporal_ranks(self) -> int:
        """How many ranks can share a sample: one per clip of a window; clips of recognition, and features, are not."""
        if self.recognition or self.backbone.reads_features:
            return 1
        return self.data.window_frames // self.clip_frames

    @property
    def clip_frames(self) -> int:
        """Frames per clip, within which attention stays."""
        if self.backbone.is_features:
            return 1
        if not self.backbone.is_image:
            return self.backbone.clip_frames or CLIP_FRAMES
        if not self.backbone.is_aim:
            return 1
        return self.backbone.clip_frames or (self.recognition.frames if self.recognition else CLIP_FRAMES)

    @property
    def reset_classifier(self) -> bool:
        """Whether the layer of class logits is newly initialised where `backbone.weights` is a trained model."""
        return (self.recognition or self.head).reset_classifier

    @property
    def pyramid_steps(self) -> int:
        """Feature steps of the pyramid's input: the window's, plus padding."""
        return self.head.max_len or self.data.window_size

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dict, JSON-ready, without absent sections."""
        tree = json.loads(json.dumps(dataclasses.asdict(self)))
        return {section: values for section, values in tree.items() if values is not None}
