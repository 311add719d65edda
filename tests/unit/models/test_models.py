"""What the golden numerics do not reach: randomness, tuning modes, masks, edges."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adatad_ds.config.loading import override
from adatad_ds.config.schema import BackboneConfig, Config, DataConfig, HeadConfig
from adatad_ds.errors import ConfigError
from adatad_ds.models import pyramid
from adatad_ds.models.backbones.contract import ViTSpec
from adatad_ds.models.backbones.patch_embed import PIXEL_MEAN, PIXEL_STD
from adatad_ds.models.backbones.vit import VIT_SPECS, VisionTransformer
from adatad_ds.models.detector import Detector, detector_points, valid_points
from adatad_ds.models.factory import build_detector, build_heads
from adatad_ds.models.heads.parts import JoinedLevels, tower
from adatad_ds.models.pyramid import ConvAttention, PyramidBlock
from adatad_ds.models.sample_noise import SampleNoise
from adatad_ds.models.shapes import shapes_only
from adatad_ds.models.tuning.adapters import TIA, DepthwiseTimeConv
from adatad_ds.models.tuning.ladder import LongRange
from adatad_ds.training.optim import parameter_groups

SPEC = ViTSpec(width=24, depth=4, heads=2, mlp_hidden=48, pretrained_side=32)
CONFIG = Config(
    data=DataConfig(window_size=32, resolution=32, short_side_before_crop=32),
    backbone=BackboneConfig(clips_per_chunk=0, activation_checkpointing=False, drop_path=0.5),
    head=HeadConfig(width=16, arch=(1, 1, 2), heads=2, input_dropout=0.3, regression_range=((0, 4), (4, 8), (8, 99))),
)


def detector(seed: int = 0, **backbone) -> Detector:
    torch.manual_seed(seed)
    config = replace(CONFIG, backbone=replace(CONFIG.backbone, **backbone))
    model = build_detector(config, spec=SPEC, num_classes=3)
    for adapter in model.backbone.adapters.values():  # leave the identity of the start
        torch.nn.init.normal_(adapter.up_proj.weight, std=0.1)
    return model


def window(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    frames = torch.randint(0, 256, (batch, 32, 32, 32, 3), dtype=torch.uint8, generator=generator)
    valid = torch.ones(batch, 32, dtype=torch.bool)
    valid[-1, 20:] = False
    return frames, valid


@pytest.mark.slow
def test_published_sizes():
    millions = {}
    for name, spec in VIT_SPECS.items():
        with shapes_only():
            vit = VisionTransformer(spec=spec, resolution=224 if name != "tiny" else 64)
        millions[name] = round(sum(p.numel() for p in vit.parameters()) / 1e6)
    assert {name: millions[name] for name in ("videomae_s", "videomae_b", "videomae_l", "videomae_h")} == {
        "videomae_s": 22,
        "videomae_b": 86,
        "videomae_l": 304,
        "videomae_h": 632,
    }
    assert 1005 <= millions["videomaev2_g"] <= 1020


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (5, 1), (3, 2)])
def test_time_convolution_is_conv1d_over_the_window(kernel, dilation):
    convolution = DepthwiseTimeConv(width=6, kernel=kernel, dilation=dilation)
    torch.nn.init.normal_(convolution.bias)
    tokens = torch.randn(2, 11, 4, 6)
    series = tokens.permute(0, 2, 3, 1).flatten(0, 1)  # (B * S, C, T)
    padding = dilation * (kernel // 2)
    expected = F.conv1d(series, convolution.weight, convolution.bias, padding=padding, dilation=dilation, groups=6)
    torch.testing.assert_close(convolution(tokens), expected.view(2, 4, 6, 11).permute(0, 3, 1, 2))


def test_a_long_range_adapter_is_its_formula():
    adapter = LongRange(width=8, ratio=0.5, dilations=(1, 2, 4))
    for tensor in adapter.parameters():
        nn.init.normal_(tensor)
    means = torch.randn(2, 11, 8)
    hidden = F.gelu(adapter.down_proj(means))
    for conv, dilation in zip(adapter.convs, (1, 2, 4), strict=True):
        series = hidden.transpose(1, 2)
        found = F.conv1d(series, conv.weight, conv.bias, padding=dilation, dilation=dilation, groups=4)
        hidden = hidden + F.gelu(found).transpose(1, 2)
    torch.testing.assert_close(adapter(means), adapter.gamma * adapter.up_proj(hidden), rtol=1e-4, atol=1e-4)
    assert adapter.reach == 7


def test_the_embedding_is_a_convolution_of_whole_patches():
    """As published, on normalised pixels; those beyond the last whole patch are dropped."""
    torch.manual_seed(0)
    embed = VisionTransformer(spec=SPEC, resolution=32).patch_embed
    torch.nn.init.normal_(embed.proj.bias)
    frames = torch.randint(256, (2, 16, 41, 50, 3), dtype=torch.uint8)
    pixels = (frames.float() - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    maps = F.conv3d(pixels.permute(0, 4, 1, 2, 3), embed.proj.weight, embed.proj.bias, stride=(2, 16, 16))
    torch.testing.assert_close(embed(frames), maps.flatten(2).transpose(1, 2))


def test_untrained_adapter_adds_nothing():
    tia = TIA(width=8, ratio=0.25, kernel=3, dilation=1)
    assert tia(torch.randn(1, 6, 4, 8)).abs().max() == 0
    wide = TIA(width=2048, ratio=0.25, kernel=3, dilation=1)  # the published deviations
    assert wide.dwconv.weight.std().item() == pytest.approx((2 / 3) ** 0.5, rel=0.1)
    assert wide.conv.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.1)


def test_adapter_sees_across_clip_borders():
    model = detector(drop_path=0.0)
    frames, _ = window(1)
    other = frames.clone()
    other[:, 16:] = 0  # the second clip only
    with torch.no_grad():
        change = (model.backbone(frames) - model.backbone(other)).abs().amax(1)[0]
    assert change[13] > 0  # in the first clip: through the time convolution
    plain = detector(drop_path=0.0, tuning="plain")
    with torch.no_grad():
        change = (plain.backbone(frames) - plain.backbone(other)).abs().amax(1)[0]
    assert change[13] == 0


@pytest.mark.parametrize(
    ("tuning", "learning"),
    [("frozen", set()), ("full", {"vit"}), ("tia", {"adapters"}), ("side", {"adapters"})],
)
def test_what_learns_and_gets_a_gradient(tuning, learning):
    model = detector(tuning=tuning, adapter_blocks=(1, 3))
    output = model(*window())
    (output.class_logits.sum() + output.distances.sum()).backward()
    for name, parameter in model.named_parameters():
        part = name.split(".")[1] if name.startswith("backbone.") else "head"
        assert (parameter.grad is not None) == (part in learning | {"head", "pyramid"}), name
    in_optimizer = sum(len(group["params"]) for group in parameter_groups(model, CONFIG.train))
    assert in_optimizer == sum(p.requires_grad for p in model.parameters())


def test_leading_blocks_store_nothing():
    model = detector(tuning="tia", adapter_blocks=(2, 3), drop_path=0.0)
    assert model.backbone.grad_free_blocks == 3
    calls = []
    for index, block in enumerate(model.backbone.vit.blocks):
        block.register_forward_hook(lambda *_, index=index: calls.append((index, torch.is_grad_enabled())))
    model(*window())
    assert calls == [(0, False), (1, False), (2, False), (3, True)]


AUTHORS_GROUPS = {  # by tuning: pattern of the learning parameters' names -> the authors' group
    "tia": {r"backbone\.adapters\..+": "adapter"},
    "side": {r"backbone\.adapters\..+": "adapter"},
    "ladder": {r"backbone\.(long_)?adapters\..+": "adapter"},
    "frozen": {},
    "full": {r"backbone\.vit\..+": "backbone"},
}
AUTHORS_HEAD_GROUPS = {  # OpenTAD's ActionFormer.get_optim_groups
    r".*\.bias": "head_no_decay",
    r".*(norm|norms|ln)\w*(\.\d+)?\.weight": "head_no_decay",
    r"pyramid\..*_branch\.scale": "head_no_decay",
    r"head\.scales\.\d+\.weight": "head_no_decay",
    r".*(conv|query|key|value|proj|fc1|fc2|cls_head|reg_head)\.weight": "head",
}


@pytest.mark.parametrize("tuning", AUTHORS_GROUPS)
def test_weights_decay_as_the_authors_decay_them(tuning):
    """All of the adapters and, in full fine-tuning, of the transformer; the head's biases, norms and scales do not."""
    config = override(CONFIG, [f"backbone.tuning={tuning}", "train.lr_backbone=1e-5", "train.weight_decay=0.07"])
    model = build_detector(config, spec=SPEC, num_classes=1)
    names = {parameter: name for name, parameter in model.named_parameters()}
    rates = {"adapter": config.train.lr_adapter, "backbone": 1e-5, "head": config.train.lr_head}
    decays = {"adapter": 0.07, "backbone": config.train.weight_decay_backbone, "head": 0.07, "head_no_decay": 0.0}
    patterns, counted = AUTHORS_GROUPS[tuning] | AUTHORS_HEAD_GROUPS, 0
    for group in parameter_groups(model, config.train):
        assert group["base_lr"] == rates[group["name"].removesuffix("_no_decay")]
        assert group["weight_decay"] == decays[group["name"]]
        for parameter in group["params"]:
            name, counted = names[parameter], counted + 1
            expected = next((kind for pattern, kind in patterns.items() if re.fullmatch(pattern, name)), None)
            assert group["name"] == expected, name
    assert counted == sum(parameter.requires_grad for parameter in names)


@pytest.mark.parametrize("tuning", ["frozen", "full", "tia", "side"])
@pytest.mark.parametrize(
    "changes", [{"clips_per_chunk": 1}, {"clips_per_chunk": 3}, {"activation_checkpointing": True}]
)
def test_execution_does_not_change_the_numbers(tuning, changes):
    """Chunks, recomputation: the same outputs and gradients, drop path and dropout included."""

    def run(**settings):
        model = detector(tuning=tuning, adapter_blocks=(1, 2), **settings)
        output = model(*window(), torch.tensor([7, 8]))
        (output.class_logits.square().sum() + output.distances.sum()).backward()
        return output.class_logits, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    logits, gradients = run()
    other_logits, other_gradients = run(**changes)
    torch.testing.assert_close(logits, other_logits)
    assert gradients.keys() == other_gradients.keys()
    for name, gradient in gradients.items():
        rounding = 1e-6 * float(gradient.abs().max())  # of sums whose terms are as large as that
        torch.testing.assert_close(gradient, other_gradients[name], rtol=1e-4, atol=1e-5 + rounding, msg=name)


def test_a_sample_is_dropped_alike_in_any_batch():
    model = detector()
    frames, valid = window()
    with torch.no_grad():
        both = model(frames, valid, torch.tensor([7, 8])).class_logits
        second = model(frames[1:], valid[1:], torch.tensor([8])).class_logits
        reseeded = model(frames[1:], valid[1:], torch.tensor([9])).class_logits
        undropped = model(frames[1:], valid[1:]).class_logits
    torch.testing.assert_close(both[1:], second)
    assert not torch.allclose(second, reseeded)
    assert not torch.allclose(second, undropped)


def test_dropout_keeps_the_mean():
    noise = SampleNoise(seeds=[1, 2], device=torch.device("cpu"))
    factors = noise.keep(10000, rate=0.3)
    assert factors.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert factors.mean().item() == pytest.approx(1, abs=0.02)


def test_what_is_dropped_together_and_what_has_noise_of_its_own():
    """Of inputs channels, at all steps; of a block its branches, at all steps and channels; noise is of each number."""
    noise = SampleNoise(seeds=[1, 2, 3, 4, 5, 6], device=torch.device("cpu"))

    def found(**settings: float) -> torch.Tensor:
        built = pyramid.Pyramid(
            in_channels=9, width=9, arch=(0, 0, 0), make_block=PyramidBlock, steps=20, abs_pos_embed=False, **settings
        )
        built.norms[0] = nn.Identity()
        return built(torch.ones(6, 20, 9), torch.ones(6, 20, dtype=torch.bool), noise)[0][0]

    channels = found(input_dropout=0.5)
    assert torch.equal(channels, channels[:, :1].expand_as(channels))
    assert channels[:, 0].unique().tolist() == [0, 2]
    numbers = found(input_noise=0.5)
    assert numbers.std(dim=(1, 2)).tolist() == pytest.approx([0.5] * 6, rel=0.2)
    assert numbers.std(dim=1).min() > 0.25
    branches = pyramid.ScaledDropPath(width=9, rate=0.5)(torch.full((6, 20, 9), 1e4), noise)
    assert torch.equal(branches, branches[:, :1, :1].expand_as(branches))
    assert branches.unique().tolist() == pytest.approx([0, 2])


def test_untrained_heads_give_the_prior_and_segments_of_a_stride():
    config = override(CONFIG, ["head.cls_prior=0.02"])
    head = build_heads(config, in_channels=5, num_classes=3)[1]
    levels, masks = zip(*((torch.zeros(1, n, 16), torch.ones(1, n, dtype=torch.bool)) for n in (8, 4, 2)), strict=True)
    found = head(list(levels), list(masks))
    torch.testing.assert_close(found.class_logits.sigmoid(), torch.full((1, 14, 3), 0.02))
    assert (found.distances == 1).all()


def test_dropout_of_a_pyramid_block_by_hand():
    """Single values, after the attention's projection and after both layers of the MLP; testing drops nothing."""
    torch.manual_seed(0)
    block = PyramidBlock(width=8, heads=2, attn_window=-1, stride=2, drop_path=0.0, proj_dropout=0.4)
    x, valid = torch.randn(1, 12, 8), torch.ones(1, 12, dtype=torch.bool)
    out_valid = valid[:, ::2]
    drawn = SampleNoise(seeds=[7], device=torch.device("cpu"))
    with torch.no_grad():
        for drops in (True, False):
            mixed = block.attn(block.ln1(x), valid, out_valid)
            mixed = mixed * drawn.keep(6, 8, rate=0.4) if drops else mixed
            pooled = F.max_pool1d(x.transpose(1, 2), kernel_size=3, stride=2, padding=1).transpose(1, 2)
            between = pooled + block.attn_branch.scale * mixed
            hidden = F.gelu(block.fc1(block.ln2(between)))
            hidden = block.fc2(hidden * drawn.keep(6, 32, rate=0.4) if drops else hidden)
            hidden = hidden * drawn.keep(6, 8, rate=0.4) if drops else hidden
            noise = SampleNoise(seeds=[7], device=torch.device("cpu")) if drops else None
            torch.testing.assert_close(block(x, valid, noise)[0], between + block.mlp_branch.scale * hidden)


def test_the_config_sets_the_pyramids_dropout():
    config = override(CONFIG, ["head.proj_dropout=0.25"])
    built = build_detector(config, spec=SPEC, num_classes=3).pyramid
    assert {block.proj_dropout for block in (*built.stem, *built.branch)} == {0.25}


@pytest.mark.parametrize("at_once", [1024, 5])
@pytest.mark.parametrize("attn_window", [3, 5, 9, -1])
def test_local_attention_by_hand(attn_window, at_once, monkeypatch):
    monkeypatch.setattr(pyramid, "ATTENDED_AT_ONCE", at_once)
    torch.manual_seed(0)
    attention = ConvAttention(width=8, heads=2, window=attn_window, stride=1)
    valid = torch.ones(1, 12, dtype=torch.bool)
    valid[:, 9:] = False
    x = torch.randn(1, 12, 8) * valid[..., None]
    with torch.no_grad():
        actual = attention(x, valid, valid)
        first = x.transpose(1, 2)
        query, key, value = (
            linear(norm(conv(first).transpose(1, 2) * valid[..., None]))[0].view(12, 2, 4)
            for linear, norm, conv in (
                (attention.query, attention.query_norm, attention.query_conv),
                (attention.key, attention.key_norm, attention.key_conv),
                (attention.value, attention.value_norm, attention.value_conv),
            )
        )
        for step in range(9):
            reach = attn_window // 2 if attn_window > 1 else 12
            seen = [other for other in range(9) if abs(other - step) <= reach]
            mixed = []
            for head in range(2):
                weight = torch.softmax(torch.stack([query[step, head] @ key[o, head] / 2 for o in seen]), 0)
                mixed.append(sum(w * value[o, head] for w, o in zip(weight, seen, strict=True)))
            torch.testing.assert_close(actual[0, step], attention.proj(torch.cat(mixed)))
        assert actual[0, 9:].abs().max() == 0


def test_a_window_without_one_valid_step_is_finite():
    model = detector(drop_path=0.0)
    frames, valid = window()
    valid[1] = False
    output = model(frames, valid)
    assert output.class_logits.isfinite().all()
    (output.class_logits.sum() + output.distances.sum()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_wrong_names_and_blocks():
    with pytest.raises(ConfigError, match=r"videomae_xl.*known: tiny"):
        build_detector(replace(CONFIG, backbone=BackboneConfig(name="videomae_xl")), num_classes=2)
    with pytest.raises(ConfigError, match=r"must name blocks 0\.\.3"):
        detector(adapter_blocks=(2, 4))


def test_padded_windows_see_what_unpadded_ones_see():
    """Windows that the pyramid's strides do not divide: padding changes nothing where there is video."""
    config = replace(CONFIG, head=replace(CONFIG.head, abs_pos_embed=True))
    padded = replace(config, head=replace(config.head, max_len=64))
    assert padded.pyramid_steps == 64
    torch.manual_seed(0)
    model = build_detector(config, spec=SPEC, num_classes=3).eval()
    longer = build_detector(padded, spec=SPEC, num_classes=3).eval()
    longer.load_state_dict(model.state_dict())
    frames = torch.randint(0, 256, (2, config.data.window_frames, 32, 32, 3), dtype=torch.uint8)
    valid = torch.arange(32) < torch.tensor([[32], [20]])
    with torch.no_grad():
        short, long = model(frames, valid), longer(frames, valid)
    inside = valid_points(valid, padded)
    assert inside.sum() == valid_points(valid, config).sum()
    assert torch.equal(long.valid, inside)
    times = [detector_points(each, device=torch.device("cpu")) for each in (config, padded)]
    for item in range(2):
        ours, theirs = valid_points(valid, config)[item], inside[item]
        assert torch.equal(times[0][ours], times[1][theirs])
        assert torch.allclose(short.class_logits[item][ours], long.class_logits[item][theirs], atol=1e-5)
        assert torch.allclose(short.distances[item][ours], long.distances[item][theirs], atol=1e-5)


def test_attention_windows_level_by_level():
    levels = CONFIG.head.levels
    config = replace(CONFIG, head=replace(CONFIG.head, attn_window=(5,) * (levels - 1) + (-1,)))
    pyramid = build_detector(config, spec=SPEC, num_classes=3).pyramid
    assert {block.attn.window for block in pyramid.stem} == {5}
    assert [block.attn.window for block in pyramid.branch] == [5] * (levels - 2) + [-1]
    assert override(CONFIG, [f"head.attn_window={list(config.head.attn_window)}"]) == config
    assert override(CONFIG, ["head.attn_window=9"]).head.attn_windows == (9,) * levels
    with pytest.raises(ConfigError, match=f"has 2 windows for {levels} levels"):
        override(CONFIG, ["head.attn_window=[5,-1]"])


@pytest.mark.parametrize("actionformer_norms", [False, True])
def test_levels_side_by_side_are_convolved_as_each_by_itself(actionformer_norms):
    torch.manual_seed(0)
    convs = tower(8, 12, kernel=5, num_convs=3, actionformer_norms=actionformer_norms)
    for conv in convs:  # whose bias then fills what is masked
        nn.init.normal_(conv.norm.bias)
    output = nn.Conv1d(12, 3, kernel_size=5, padding=2)
    levels = [torch.randn(2, steps, 8) for steps in (16, 8, 4)]
    masks = [torch.arange(level.shape[1]) < torch.tensor([[level.shape[1]], [level.shape[1] // 2]]) for level in levels]
    joined = JoinedLevels(levels, masks, gap=2)
    for level, mask, found in zip(levels, masks, joined.split(joined.run(convs, output, joined.features)), strict=True):
        for conv in convs:
            level = conv(level, mask)
        torch.testing.assert_close(found, output(level.transpose(1, 2)).transpose(1, 2))
    assert joined.first_steps == [0, 18, 28]
