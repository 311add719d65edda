"""The settings of a backbone: which transformer, and how it is tuned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adatad_ds.config import numbers
from adatad_ds.config.parsing import TUBELET_FRAMES

Tuning = Literal[
    "frozen",
    "full",
    "tia",
    "plain",
    "side",
    "side_plain",
    "ladder",
    "lora",
    "bitfit",
    "norm",
    "tia+lora",
    "plain+lora",
    "aim",
]
BESIDE: tuple[Tuning, ...] = ("side", "side_plain", "ladder")  # ways whose gradients do not enter the transformer
Inside = Literal["lora", "bitfit", "norm"]  # ways to tune a block from within
LoRATarget = Literal["qkv", "proj", "fc1", "fc2"]
AIMAdapter = Literal["spatial", "temporal", "joint"]
FEATURES = "features"  # the backbone's name where data.features are read


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Video or image transformer, and how it is tuned."""

    # a key of VIDEO_SPECS (models/transformers.py); `vit_...`: of timm; `features`: data.features
    name: str = "videomae_s"
    weights: str | None = None  # a file, folder or hub name (docs/guides/weights.md); None: random, for tests only
    tuning: Tuning = "tia"
    adapter_blocks: tuple[numbers.NonNegativeInt, ...] | None = None  # blocks that are tuned; None: all
    adapter_ratio: numbers.WidthShare = 0.25
    adapter_kernel: numbers.PositiveInt = 3
    adapter_dilation: numbers.PositiveInt = 1
    ladder_dilations: tuple[numbers.PositiveInt, ...] = (4, 16, 64)  # of a long-range adapter's convolutions
    lora_rank: numbers.PositiveInt = 8
    lora_alpha: numbers.PositiveFloat = 16.0  # updates are scaled by lora_alpha / lora_rank
    lora_targets: tuple[LoRATarget, ...] = ("qkv", "proj", "fc1", "fc2")
    lora_dora: bool = False  # train the size of each output's weights, too (DoRA)
    # of all but VideoMAE: frames that attend to one another; None: 16, image models in recognition: all
    clip_frames: numbers.PositiveInt | None = None
    drop_path: numbers.Probability = 0.0
    activation_checkpointing: bool = True
    # C of data.features, of each source or of all together; None: as they have
    feature_channels: numbers.PositiveInt | tuple[numbers.PositiveInt, ...] | None = None
    cache_features: bool = False  # a frozen backbone runs once over all videos, before the training
    # clips that run through a block at once; 0: all; None: 8, on a GPU as many as keep it busy
    clips_per_chunk: numbers.NonNegativeInt | None = None
    activation_memory_gb: numbers.Gigabytes | Literal["auto"] | None = None  # see planning/activations.py
    stored_on_device_gb: numbers.Gigabytes = 0.0  # stored activations kept on the device under cpu_checkpointing

    # image transformers only (AIM)
    pixel_mean: tuple[numbers.GreyLevel, numbers.GreyLevel, numbers.GreyLevel] | None = None  # RGB; None: as in timm
    pixel_std: tuple[numbers.GreyDeviation, numbers.GreyDeviation, numbers.GreyDeviation] | None = None  # as above
    aim_adapters: tuple[AIMAdapter, ...] | None = None  # None: all with tuning=aim, else none
    aim_before_time: bool = False  # another adapter before temporal attention, for strongly temporal data
    aim_joint_scale: numbers.NonNegativeFloat = 0.5  # factor on the joint adapters' output

    @property
    def is_features(self) -> bool:
        """Whether features are read, and there is no transformer."""
        return self.name == FEATURES

    @property
    def source_channels(self) -> tuple[int, ...]:
        """`feature_channels` as a tuple; () if not known."""
        known = self.feature_channels
        return () if known is None else (known,) if isinstance(known, int) else known

    @property
    def reads_features(self) -> bool:
        """Whether a training's steps read features, and no transformer runs in them."""
        return self.is_features or self.cache_features

    @property
    def is_image(self) -> bool:
        """Whether this is an image transformer."""
        return self.name.startswith("vit_")

    @property
    def is_aim(self) -> bool:
        """Whether an image transformer runs as AIM has it: by clips of frames that are apart from end to end."""
        return self.is_image and self.tuning in ("aim", "frozen", "full")

    @property
    def frames_per_token(self) -> int:
        """Frames that a token covers: a video transformer's tubelet, or one frame of an image transformer's clip."""
        single = self.is_image or self.is_features or self.name.startswith("internvideo2")
        return 1 if single else TUBELET_FRAMES

    @property
    def takes_clip_frames(self) -> bool:
        """Whether clips may have another length than 16: not those of VideoMAE, whose positions are for 16 frames."""
        return self.is_image or self.name.startswith(("vjepa2", "internvideo2"))

    @property
    def has_adapters(self) -> bool:
        """Whether there are adapters after the transformer's blocks or next to them."""
        ways = ("tia", "plain", "tia+lora", "plain+lora", *BESIDE)
        return not self.is_features and self.tuning in ways

    @property
    def has_time_convolution(self) -> bool:
        """Whether those adapters look beyond their own tubelet."""
        return self.has_adapters and self.tuning not in ("plain", "side_plain", "plain+lora")

    @property
    def tuned_inside(self) -> Inside | None:
        """What is trained inside the transformer's tuned blocks."""
        if self.tuning in ("lora", "tia+lora", "plain+lora"):
            return "lora"
        return self.tuning if self.tuning in ("bitfit", "norm") else None

    @property
    def adapter_reach(self) -> int:
        """Tokens in time that adapters look back and ahead; an image transformer's stay within their clip."""
        return self.adapter_dilation * (self.adapter_kernel // 2) if self.has_time_convolution else 0
