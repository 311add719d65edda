"""timm's image transformers, taken apart so that a video model can run them block by block.

Parameters keep the names of timm's VisionTransformer, also for DINOv3 and Perception Encoder, which timm builds as Eva
models, from other blocks.

n frames of H x W pixels, patch side p, N = prefix tokens (class token, registers) + (H // p) * (W // p) patches,
C channels.
"""

from __future__ import annotations

import timm
import torch
from timm.layers import (
    AttentionRope,
    DropPath,
    PatchEmbed,
    RotaryEmbeddingCat,
    RotaryEmbeddingDinoV3,
    to_2tuple,
)
from timm.models import is_model_in_modules
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torch import Tensor, nn

from adatad_ds.errors import ConfigError
from adatad_ds.models.backbones.contract import VideoTransformer, ViTSpec
from adatad_ds.models.backbones.image_blocks import ImageBlock
from adatad_ds.models.backbones.patch_embed import pixel_scale

GENERATED = "vit_tiny_generated"  # ours, for the quickstart's 64 px frames; tools/pretrain_image.py trains it


class ImageTransformer(VideoTransformer):
    """The parts of a timm VisionTransformer; `forward` embeds frames, the caller runs the blocks.

    As a `VideoTransformer` its clips are single frames.

    This module owns the class token and the positions itself, rather than reading timm's, so that ZeRO-3 gathers them
    when it is called.

    Args:
        vit: timm's plain vision transformer, or an Eva model with rotary positions (DINOv3, Perception Encoder),
            without classifier; it is taken apart and must not be used afterwards.
        pixel_mean: RGB, on the scale 0..255.
        pixel_std: RGB, on the scale 0..255.
        antialias_positions: downscale the position table with antialiasing (`fit_image_weights`).

    Attributes:
        width: C.
        patch: p.
        grid: H // p, W // p.
        frame_size: H, W.
        tokens: N.

    Raises:
        ConfigError: unsupported blocks, dropout or pooling.
    """

    def __init__(
        self,
        *,
        vit: TimmTransformer | Eva,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        antialias_positions: bool = True,
    ) -> None:
        _check(vit)
        height, width = to_2tuple(vit.patch_embed.img_size)
        super().__init__(spec=_spec(vit, side=int(height)), clip_frames=1, resolution=int(height))
        self.antialias_positions = antialias_positions
        self.pixel_mean = pixel_mean
        self.pixel_std = pixel_std
        self.pixel_scale: Tensor
        self.register_buffer("pixel_scale", pixel_scale(mean=pixel_mean, std=pixel_std), persistent=False)
        self.width = vit.embed_dim
        self.patch = int(vit.patch_embed.patch_size[0])
        self.grid = int(vit.patch_embed.grid_size[0]), int(vit.patch_embed.grid_size[1])
        self.frame_size = int(height), int(width)
        self.prefix_tokens = vit.num_prefix_tokens
        self.tokens = self.prefix_tokens + self.grid[0] * self.grid[1]
        self.prefix_has_position = not vit.no_embed_class
        self.pools_class_token = vit.cls_token is not None and vit.global_pool in ("", "token")
        self.patch_embed = vit.patch_embed
        self.cls_token: nn.Parameter | None = vit.cls_token
        self.reg_token: nn.Parameter | None = vit.reg_token
        self.pos_embed: nn.Parameter | None = vit.pos_embed
        self.norm_pre = vit.norm_pre
        self.blocks = nn.ModuleList(ImageBlock(block) for block in vit.blocks)  # pyright: ignore[reportArgumentType]
        self.norm = vit.norm
        self.fc_norm = vit.fc_norm
        self.rotary: Tensor | None
        self.register_buffer("rotary", None)
        if isinstance(vit, Eva):
            self.register_buffer("rotary", _rotary_table(vit.rope, grid=self.grid), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (n, H, W, 3), 0..255, to tokens (n, N, C) with positions, before `norm_pre`.

        Raises:
            ValueError: frames of the wrong size.
        """
        if tuple(frames.shape[1:3]) != self.frame_size:
            raise ValueError(f"frames are {tuple(frames.shape[1:3])} pixels, the model takes {self.frame_size}")
        mean, std = self.pixel_scale.view(torch.float32)
        pixels = ((frames.float() - mean) / std).to(self.dtype)
        patches = self.patch_embed(pixels.permute(0, 3, 1, 2))
        if self.pos_embed is not None and not self.prefix_has_position:
            patches = patches + self.pos_embed
        prefix = [token.expand(len(frames), -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        tokens = torch.cat([*prefix, patches], dim=1)
        return tokens + self.pos_embed if self.pos_embed is not None and self.prefix_has_position else tokens

    @property
    def positions(self) -> int:
        """N."""
        return self.tokens

    @property
    def pooled(self) -> slice:
        """The class token, or without one the patches."""
        return slice(0, 1) if self.pools_class_token else slice(self.prefix_tokens, None)

    def embed(self, frames: Tensor) -> Tensor:
        """Frames (n, 1, H, W, 3), 0..255, to tokens (n, N, C)."""
        return self.norm_pre(self(frames.flatten(0, 1)))

    def run_block(self, index: int, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Run a block on tokens (n, N, C)."""
        return self.blocks[index](tokens, keep, self.rotary)

    def finish(self, tokens: Tensor) -> Tensor:
        """The final norm: (..., C) to the same."""
        return self.norm(tokens)

    def pool(self, tokens: Tensor) -> Tensor:
        """One feature per frame, (..., N, C) to (..., C): class token or mean of the patches, after the final norm."""
        if self.pools_class_token:
            class_token = tokens[..., 0, :].contiguous()  # so that the norm's backward pass keeps no other token
            return self.fc_norm(self.norm(class_token))
        return self.fc_norm(self.norm(tokens[..., self.prefix_tokens :, :]).mean(dim=-2))


def build_image_transformer(
    name: str,
    *,
    resolution: int | None,
    pixel_mean: tuple[float, ...] | None = None,
    pixel_std: tuple[float, ...] | None = None,
    depth: int | None = None,
) -> ImageTransformer:
    """A plain vision transformer by its name in timm, with random weights.

    Args:
        name: for example `vit_base_patch16_clip_quickgelu_224`. CLIP's own weights need the `quickgelu` models; those
            without it in their names are for CLIP models trained with the ordinary GELU. A tag, as in
            `vit_base_patch16_224.dino`, selects the mean and standard deviation of pixels. `vit_tiny_generated` is the
            quickstart's own model, which timm does not have.
        resolution: side in pixels of the frames; None: the model's.
        pixel_mean: RGB, on the scale 0..255; None: timm's for this name.
        pixel_std: RGB, on the scale 0..255; None: timm's for this name.
        depth: number of blocks; None: the model's.

    Raises:
        ConfigError: timm has no plain vision transformer of that name, or the side is not a multiple of its patch.
    """
    if name == GENERATED:
        resolution = resolution or 64
        _check_resolution(name, resolution=resolution, patch=16)
        ours = TimmTransformer(
            img_size=resolution, patch_size=16, embed_dim=128, depth=depth or 4, num_heads=4, num_classes=0
        )
        return ImageTransformer(vit=ours, pixel_mean=pixel_mean or (127.5,) * 3, pixel_std=pixel_std or (127.5,) * 3)
    architecture, _, tag = name.partition(".")
    if not is_model_in_modules(architecture, ["vision_transformer", "eva"]):
        known = ", ".join(timm.list_models("vit_*_clip_quickgelu_*")[:4])
        raise ConfigError(
            f"timm has no plain vision transformer named {name}; it has, for example, {known}, "
            "vit_base_patch14_dinov2, vit_base_patch16_dinov3, vit_base_patch16_siglip_224.v2_webli, "
            "vit_pe_core_base_patch16_224"
        )
    vit = timm.create_model(  # where None is as not given
        name, pretrained=False, num_classes=0, img_size=resolution, depth=depth, dynamic_img_size=False
    )
    if not isinstance(vit, TimmTransformer | Eva):
        raise ConfigError(f"{name} of timm is a {type(vit).__name__}, not a plain vision transformer")
    if resolution is not None:
        _check_resolution(name, resolution=resolution, patch=int(vit.patch_embed.patch_size[0]))
    if vit.attn_pool is not None or "dinov3" in architecture:  # timm averages DINOv3's patches, its authors do not
        vit.reset_classifier(0, "avg" if vit.cls_token is None else "token")
    published = timm.get_pretrained_cfg(name)
    assert published is not None
    mean, std = (tuple(255.0 * value for value in values) for values in (published.mean, published.std))
    # As their authors resize them: DINO, MAE and DINOv2 (without registers) without antialiasing, the others with it.
    nearest = tag in ("dino", "mae") or ("dinov2" in architecture and "_reg" not in architecture)
    return ImageTransformer(
        vit=vit, pixel_mean=pixel_mean or mean, pixel_std=pixel_std or std, antialias_positions=not nearest
    )


def _spec(vit: TimmTransformer | Eva, *, side: int) -> ViTSpec:
    """The shape of its blocks; `mlp_hidden` is that of a plain MLP with as many weights."""
    block = vit.blocks[0]
    weights = sum(parameter.numel() for parameter in block.get_submodule("mlp").parameters() if parameter.dim() == 2)
    return ViTSpec(
        width=vit.embed_dim,
        depth=len(vit.blocks),
        heads=block.attn.num_heads,  # pyright: ignore
        mlp_hidden=weights // (2 * vit.embed_dim),
        patch=int(vit.patch_embed.patch_size[0]),
        pretrained_side=side,
        family="timm",
        tubelet_frames=1,
        prefix_tokens=vit.num_prefix_tokens,
    )


def _rotary_table(rope: nn.Module | None, *, grid: tuple[int, int]) -> Tensor:
    """Sines and cosines of the patch positions, (patches, 2 * C / heads); real even if the model is on meta."""
    with torch.device("cpu"):
        if isinstance(rope, RotaryEmbeddingDinoV3):
            return RotaryEmbeddingDinoV3(rope.dim, temperature=rope.temperature, feat_shape=list(grid)).get_embed()
        assert isinstance(rope, RotaryEmbeddingCat)
        table = RotaryEmbeddingCat(
            rope.dim,
            temperature=rope.temperature,
            in_pixels=rope.in_pixels,
            feat_shape=list(grid),
            ref_feat_shape=rope.ref_feat_shape,
            grid_offset=rope.grid_offset,
            grid_indexing=rope.grid_indexing,
        )
        return table.get_embed()


def _has_plain_attention(block: nn.Module) -> bool:
    attention = block.attn
    assert isinstance(attention, EvaAttention | AttentionRope)
    norms = (attention.q_norm, attention.k_norm, attention.norm)
    gate = getattr(attention, "gate", None)  # not in older versions
    return attention.qkv is not None and gate is None and all(isinstance(norm, nn.Identity) for norm in norms)


def _check_resolution(name: str, *, resolution: int, patch: int) -> None:
    if resolution % patch:
        raise ConfigError(f"frames of {resolution} px are not a multiple of the {patch} px patches of {name}")


def _check(vit: TimmTransformer | Eva) -> None:
    plain = EvaBlock if isinstance(vit, Eva) else Block
    odd = {type(block).__name__ for block in vit.blocks if type(block) is not plain}
    if odd:
        raise ConfigError(
            f"the image transformer's blocks are {', '.join(sorted(odd))}; only timm's plain {plain.__name__} works"
        )
    if isinstance(vit, Eva):
        if not isinstance(vit.rope, RotaryEmbeddingDinoV3 | RotaryEmbeddingCat):
            found = "none" if vit.rope is None else type(vit.rope).__name__
            raise ConfigError(
                "of timm's Eva models, those with the rotary positions of DINOv3 or Perception Encoder are supported, "
                f"the same in all blocks; this one's are {found}"
            )
        if not all(_has_plain_attention(block) for block in vit.blocks):
            raise ConfigError(
                "the image transformer's attention has norms, gates, or other projections than one for query, key and "
                "value, which are not supported"
            )
    if vit.dynamic_img_size or not isinstance(vit.patch_embed, PatchEmbed):
        raise ConfigError("the image transformer must take frames of one size, cut into patches by timm's PatchEmbed")
    if any(isinstance(part, nn.Dropout) and part.p > 0 for part in vit.modules()) or any(
        isinstance(part, DropPath) and part.drop_prob for part in vit.modules()
    ):
        raise ConfigError("the image transformer has dropout or drop path of its own; build it with rates of 0")
    if vit.attn_pool is not None or vit.global_pool not in ("", "token", "avg"):
        raise ConfigError(
            f"the image transformer pools by '{vit.global_pool}'; frames get their features from the class token or "
            "from the patches' mean: build it with global_pool='token' or 'avg'"
        )
    if not isinstance(vit.head, nn.Identity):
        raise ConfigError("the image transformer has an image classifier; build it with num_classes=0")
