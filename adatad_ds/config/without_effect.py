"""Settings that change nothing beside a config's other values, such as LoRA's with adapters alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

from adatad_ds.config.backbone import BackboneConfig
from adatad_ds.config.head import HeadConfig
from adatad_ds.config.schema import Config, TestConfig

_ON_FEATURES = ("name", "weights", "feature_channels", "cache_features")  # of the backbone: what acts without one
_LORA = ("lora_rank", "lora_alpha", "lora_targets", "lora_dora")
_FRAMES = (
    *("reader", "resolution", "short_side_before_crop", "scaling", "augment", "augment_on_device"),
    "frames_per_feature",
)
_TRIDET = (
    *("sgp_window", "sgp_scale", "sgp_mlp_width", "sgp_init_std", "num_bins", "boundary_kernel", "iou_weight_power"),
)
_WINDOWS = (
    *("annotations", "train_subset", "test_subset", "class_agnostic", "window_size", "frames_per_feature", "sampling"),
    *("feature_stride_frames", "fixed_fps", "offset_frames", "min_action_share", "crop_ratio", "trunc_thresh"),
    "test_window_overlap",
)
Rule = tuple[str, Sequence[str], bool, str]  # a section, keys of it, whether they act, what they are for


def without_effect(config: Config) -> dict[str, str]:
    """What each setting is for that changes nothing in a config's training and evaluation, by `section.key`.

    Left out are those that change speed or memory alone, and those that depend on the machine or the ds_config.
    """
    detection = _of_recognition(config) if config.recognition else [*_of_windows(config), *_of_head(config)]
    rules = [*detection, *_of_backbone(config), *_of_training(config)]
    return {f"{section}.{key}": purpose for section, keys, acts, purpose in rules if not acts for key in keys}


def described(config: Config, assignments: Sequence[str]) -> list[str]:
    """A line for each setting of `--set section.key=value` that changes nothing."""
    idle = without_effect(config)
    keys = dict.fromkeys(assignment.partition("=")[0].strip() for assignment in assignments)
    return [f"--set {key} changes nothing here: it is for {idle[key]}" for key in keys if key in idle]


def _of_backbone(config: Config) -> Iterator[Rule]:
    backbone = config.backbone
    if backbone.is_features:
        keys = [field.name for field in fields(BackboneConfig) if field.name not in _ON_FEATURES]
        yield "backbone", keys, False, "a transformer, and data.features are read"
        yield "data", _FRAMES, False, "frames, and data.features are read"
        return
    tuned, lora = backbone.tuning not in ("frozen", "full", "aim"), backbone.tuned_inside == "lora"
    yield "backbone", ("adapter_blocks",), tuned, f"other ways than backbone.tuning={backbone.tuning}"
    yield "backbone", ("adapter_ratio",), backbone.has_adapters or _has_aim(config), "adapters"
    taps = "adapter_kernel", "adapter_dilation"
    yield "backbone", taps, backbone.has_time_convolution, "adapters with a convolution over time"
    yield "backbone", ("ladder_dilations",), backbone.tuning == "ladder", "backbone.tuning=ladder"
    yield "backbone", _LORA, lora, "backbone.tuning=lora, tia+lora and plain+lora"
    yield "backbone", ("aim_before_time", "aim_joint_scale"), _has_aim(config), "the adapters of backbone.tuning=aim"
    yield "backbone", ("feature_channels",), False, "data.features"


def _of_windows(config: Config) -> Iterator[Rule]:
    data, features = config.data, config.backbone.reads_features
    windows = "data.sampling=random_trunc"
    yield "data", ("skip_missing",), config.backbone.is_features, "data.features"
    yield "data", ("test_whole_videos",), features and data.sampling == "random_trunc", f"features with {windows}"
    yield "data", ("offset_steps",), features and data.sampling == "resize", "features with data.sampling=resize"
    taken = "offset_frames", "trunc_thresh", "test_window_overlap"
    yield "data", taken, data.sampling == "random_trunc", windows
    strides = ("feature_stride_frames",) if features else ("feature_stride_frames", "crop_ratio")
    yield "data", strides, features or data.sampling == "random_trunc", windows
    test = config.test
    yield "test", ("sigma",), test.suppression == "gaussian", "test.suppression=gaussian"
    yield "test", ("tiou_suppression",), test.suppression != "gaussian", "test.suppression=linear and hard"
    yield "test", ("voting_thresh",), not test.per_class, "test.per_class=false"
    yield "test", ("external_layout", "external_topk"), bool(test.external_scores), "test.external_scores"


def _of_head(config: Config) -> Iterator[Rule]:
    name = config.head.name
    yield "head", ("heads", "proj_dropout"), name == "actionformer", "head.name=actionformer"
    yield "head", ("attn_window",), name != "tridet", "head.name=actionformer"
    yield "head", _TRIDET, name == "tridet", "head.name=tridet"
    yield "head", ("drop_path",), name != "temporalmaxer", "head.name=actionformer and tridet"
    yield "head", ("reset_classifier",), config.backbone.weights is not None, "the backbone.weights of a detector"


def _of_recognition(config: Config) -> Iterator[Rule]:
    settings = config.recognition
    assert settings is not None
    yield "head", [field.name for field in fields(HeadConfig)], False, "detection"
    yield "test", [field.name for field in fields(TestConfig) if field.name != "batch"], False, "detection"
    yield "data", (*_WINDOWS, "skip_missing", "test_whole_videos", "offset_steps"), False, "detection"
    yield "recognition", ("stride",), settings.sampling == "dense", "recognition.sampling=dense"
    weights = "the backbone.weights of a recogniser"
    yield "recognition", ("reset_classifier",), config.backbone.weights is not None, weights


def _of_training(config: Config) -> Iterator[Rule]:
    backbone, train = config.backbone, config.train
    itself = not backbone.is_features and (backbone.tuning in ("full", "bitfit", "norm") or backbone.is_aim)
    beside = backbone.has_adapters or backbone.tuned_inside == "lora" or _has_aim(config)
    adapters = (itself and train.lr_backbone is None) or (beside and not backbone.is_features)
    yield "train", ("lr_adapter",), adapters, "adapters and LoRA"
    yield "train", ("lr_backbone", "weight_decay_backbone"), itself, "parameters of the transformer itself"
    yield "train", ("warmup_start",), train.warmup_epochs > 0, "train.warmup_epochs above 0"
    yield "train", ("ema_warmup",), train.ema_decay > 0, "train.ema_decay above 0"


def _has_aim(config: Config) -> bool:
    """Whether an image transformer has AIM's adapters: by default with tuning=aim alone."""
    backbone = config.backbone
    return backbone.is_aim and bool(
        backbone.tuning == "aim" if backbone.aim_adapters is None else backbone.aim_adapters
    )
