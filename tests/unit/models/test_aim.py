"""The AIM video transformer: switches, freezing, drop path, checkpointing, other image transformers, errors."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import ParallelScalingBlock
from torch import nn

from adatad_ds.errors import ConfigError
from adatad_ds.models.backbones import image_blocks
from adatad_ds.models.backbones.adapted_image import ALL_ADAPTERS, AIMTransformer
from adatad_ds.models.backbones.image_vit import build_image_transformer
from adatad_ds.models.shapes import shapes_only
from tests.support.image_models import build, gradients, image_features, noise, timm_vit, video

SUBSETS = [(), ("temporal",), ("spatial",), ("joint",), ("spatial", "temporal"), ALL_ADAPTERS]


def learning(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("adapt", SUBSETS)
def test_at_the_start_it_is_the_image_model(adapt):
    """timm's features, frame by frame: the adapters' outputs are zero, and the spatial one has a skip."""
    expected = image_features(timm_vit(), video())
    features = build(adapt=adapt, awake=False).frame_features(video())
    assert features.shape == (2, 8, 48)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adapt", SUBSETS)
def test_each_adapter_does_something_and_learns(adapt):
    model = build(adapt=adapt)
    if adapt:
        assert (model.frame_features(video()) - image_features(timm_vit(), video())).abs().max() > 1e-2
    own = {name.split(".")[2] for name in learning(model) if name.startswith("adapters.")}
    assert own == set(adapt)
    assert ("temporal_embedding" in learning(model)) == ("temporal" in adapt)
    assert {name for name in learning(model) if name.startswith("vit.")} == {"vit.norm.weight", "vit.norm.bias"}
    assert all(gradient.abs().max() > 0 for gradient in gradients(model, video()).values())


def test_learning_gets_under_way_from_the_zeros():
    """At the first step W_2 has a gradient; W_1 has none yet, but is not zero."""
    model = build(awake=False)
    found = gradients(model, video())
    for block in range(3):
        for adapter in ALL_ADAPTERS:
            name = f"adapters.{block}.{adapter}"
            assert found[f"{name}.fc2.weight"].abs().max() > 0
            assert model.get_parameter(f"{name}.fc1.weight").std().item() == pytest.approx(0.02, rel=0.2)
            assert not model.get_parameter(f"{name}.fc2.weight").any()


def test_full_tuning_learns_everything():
    for adapt in ((), ALL_ADAPTERS):
        model = build(adapt=adapt, tuning="full")
        assert learning(model) == {name for name, _ in model.named_parameters()}
        gradients(model, video())


def test_only_temporal_adapters_let_frames_see_each_other_and_only_within_their_clip():
    frames = video(frames=8)
    changed = frames.clone()
    changed[:, 1] = 255 - changed[:, 1]
    for adapt in SUBSETS:
        model = build(adapt=adapt)
        moved = (model.frame_features(frames) - model.frame_features(changed)).abs().amax(dim=(0, 2)) > 1e-6
        expected = [True] * 4 + [False] * 4 if "temporal" in adapt else [False, True] + [False] * 6
        assert moved.tolist() == expected, adapt


def test_clips_of_a_long_window_are_as_if_alone():
    model = build()
    whole = model.frame_features(video(frames=12))
    parts = torch.cat([model.frame_features(video(frames=12)[:, i : i + 4]) for i in (0, 4, 8)], dim=1)
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_the_temporal_embedding_tells_a_clips_frames_apart():
    still = video(frames=1).expand(-1, 4, -1, -1, -1)
    apart = build(adapt=("temporal",)).frame_features(still)
    assert (apart[:, 0] - apart[:, 1]).abs().max() > 1e-3
    same = build(adapt=("temporal",), awake=False).frame_features(still)
    torch.testing.assert_close(same[:, 0], same[:, 1])


def test_an_adapter_before_time():
    model = build(adapter_before_time=True)
    assert any(".temporal_in." in name for name in learning(model))
    assert all(gradient.abs().max() > 0 for gradient in gradients(model, video()).values())
    silent = build(adapter_before_time=True)
    for name, parameter in silent.named_parameters():
        if ".temporal_in.fc2" in name:
            nn.init.zeros_(parameter)
    without = build()
    without.load_state_dict({k: v for k, v in silent.state_dict().items() if "temporal_in" not in k})
    torch.testing.assert_close(silent.frame_features(video()), without.frame_features(video()))
    assert (model.frame_features(video()) - without.frame_features(video())).abs().max() > 1e-3


def test_drop_path_belongs_to_the_sample():
    model = build(drop_path=0.9)
    frames = video(videos=3)
    together = model.frame_features(frames, noise(5, 6, 7))
    torch.testing.assert_close(together, model.frame_features(frames, noise(5, 6, 7)))
    alone = torch.cat([model.frame_features(frames[i : i + 1], noise(5 + i)) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert (together[0] - model.frame_features(frames, noise(8, 6, 7))[0]).abs().max() > 1e-3
    torch.testing.assert_close(model.frame_features(frames), build().frame_features(frames))


def test_drop_path_drops_positions_in_all_frames_of_a_clip():
    """The authors' CLIP model has its tokens first: what is dropped is a position, not a frame or a whole clip."""
    model = build(drop_path=0.5)
    keep = model._drop_path_factors(noise(1, 2), clips=2)
    assert keep is not None
    assert keep.shape == (4, 3, 2, 5)  # clips, blocks, branches, tokens
    assert (keep[:, 0] == 1).all()  # the first block's rate is 0
    assert set(keep[:, 2].flatten().tolist()) == {0.0, 2.0}
    assert len({tuple(row) for row in keep[:, 2].flatten(0, 1).tolist()}) > 4
    tokens = torch.randn(1, 4, 5, 48)
    only = torch.zeros(1, 2, 5)
    only[:, :, 3] = 1.0
    block, adapters = model.vit.blocks[2], model.adapters[2]
    changed = (adapters.run(block, tokens, only) - adapters.run(block, tokens, torch.zeros(1, 2, 5))).abs()
    assert (changed[0, :, 3].amax(-1) > 1e-4).all()


def test_drop_path_spares_the_frozen_branches_and_the_spatial_adapter():
    """At a rate of almost 1 the last block is left with what has no drop path."""
    vit = timm_vit(depth=2)
    model, spared = build(vit, drop_path=1 - 1e-7), build(timm_vit(depth=2))
    last = spared.adapters[1]
    for bottleneck in (last.temporal, last.joint):
        for parameter in bottleneck.fc2.parameters():
            nn.init.zeros_(parameter)
    torch.testing.assert_close(model.frame_features(video(), noise(1, 2)), spared.frame_features(video()))


@pytest.mark.parametrize("adapt", [ALL_ADAPTERS, ("spatial",)])
@pytest.mark.parametrize("tuning", ["aim", "full"])
def test_checkpointing_changes_no_gradient(adapt, tuning):
    settings = {"adapt": adapt, "tuning": tuning, "drop_path": 0.5}
    plain = gradients(build(**settings), video(), 3, 4)
    recomputed = gradients(build(activation_checkpointing=True, **settings), video(), 3, 4)
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(gradient, recomputed[name])


def test_checkpointing_keeps_nothing_of_the_blocks():
    def kept(*, depth: int, activation_checkpointing: bool) -> int:
        model = build(timm_vit(depth=depth), activation_checkpointing=activation_checkpointing)
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if not isinstance(tensor, nn.Parameter):
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            features = model.frame_features(video())
        assert features.requires_grad
        return sum(sizes.values())

    whole = kept(depth=6, activation_checkpointing=True)
    assert whole == kept(depth=2, activation_checkpointing=True)
    assert whole < kept(depth=6, activation_checkpointing=False) / 20


def test_frozen_builds_no_graph_in_the_blocks():
    model = build(adapt=(), activation_checkpointing=True)
    tokens = []
    model.vit.norm.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].requires_grad))
    assert model.frame_features(video()).requires_grad
    assert tokens == [False]


def test_features_are_means_of_frames():
    model = build()
    expected = model.frame_features(video()).unflatten(1, (4, 2)).mean(dim=2).transpose(1, 2)
    torch.testing.assert_close(model(video()), expected)
    assert build(feature_steps=8)(video()).shape == (2, 48, 8)
    assert model.bfloat16()(video()).dtype == torch.float32
    with pytest.raises(ValueError, match="8 frames do not make 3 features"):
        build(feature_steps=3)(video())


@pytest.mark.parametrize("clips_per_chunk", [1, 3])
def test_pieces_change_nothing(clips_per_chunk):
    settings = {"drop_path": 0.5, "activation_checkpointing": True}
    whole, pieces = build(**settings), build(clips_per_chunk=clips_per_chunk, **settings)
    torch.testing.assert_close(whole(video()), pieces(video()))
    expected, found = gradients(whole, video(), 3, 4), gradients(pieces, video(), 3, 4)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_bf16_stays_near_fp32():
    exact = build().frame_features(video())
    rounded = build().bfloat16().frame_features(video())
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_many_sequences_go_through_attention_in_pieces(monkeypatch):
    whole = build().frame_features(video())
    monkeypatch.setattr(image_blocks, "MOST_SEQUENCES", 3)
    torch.testing.assert_close(build().frame_features(video()), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"class_token": False, "global_pool": "avg"},  # its norm comes after the mean
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        {"global_pool": "avg"},
        {"pre_norm": False, "act_layer": None},
        {"reg_tokens": 2, "init_values": 0.1},
        {"no_embed_class": True, "reg_tokens": 1},
        {"img_size": (32, 48)},
    ],
    ids=str,
)
def test_other_image_transformers(changes):
    frames = torch.randint(0, 256, (2, 4, *changes.get("img_size", (32, 32)), 3), dtype=torch.uint8)
    expected = image_features(timm_vit(**changes), frames)
    torch.testing.assert_close(
        build(timm_vit(**changes), awake=False).frame_features(frames), expected, rtol=1e-4, atol=1e-5
    )
    model = build(timm_vit(**changes))
    norm = "fc_norm" if changes.get("global_pool") == "avg" and changes.get("fc_norm") is None else "norm"
    assert {name for name in learning(model) if name.startswith("vit.")} == {f"vit.{norm}.weight", f"vit.{norm}.bias"}
    assert all(gradient.abs().max() > 0 for gradient in gradients(model, frames).values())


def test_models_by_name():
    with shapes_only():
        clip = build_image_transformer("vit_base_patch16_clip_quickgelu_224", resolution=224)
        plain = build_image_transformer("vit_base_patch16_224.dino", resolution=160)
        siglip = build_image_transformer("vit_base_patch16_siglip_224", resolution=224)
    assert type(clip.blocks[0].mlp.act).__name__ == "QuickGELU"
    assert clip.blocks[0].norm1.eps == clip.norm_pre.eps == clip.norm.eps == 1e-5
    assert clip.pixel_mean == pytest.approx((122.771, 116.746, 104.094), abs=1e-3)
    assert isinstance(plain.norm_pre, nn.Identity)
    assert plain.pixel_mean == pytest.approx((123.675, 116.28, 103.53))
    assert (plain.grid, plain.frame_size) == ((10, 10), (160, 160))
    assert siglip.cls_token is None
    assert not siglip.pools_class_token


@pytest.mark.parametrize(
    ("name", "learns", "whole"),
    [("vit_base_patch16_clip_quickgelu_224", 11, 97), ("vit_large_patch14_clip_quickgelu_224", 38, 341)],
)
def test_the_published_parameter_counts(name, learns, whole):
    """In millions, with the classifier of Kinetics-400."""
    with shapes_only():
        vit = build_image_transformer(name, resolution=224)
        model = AIMTransformer(
            vit=vit,
            clip_frames=8,
            feature_steps=8,
            adapt=ALL_ADAPTERS,
            tuning="aim",
        )
        classifier = nn.Linear(model.width, 400)
    parameters = [*model.parameters(), *classifier.parameters()]
    assert round(sum(p.numel() for p in parameters if p.requires_grad) / 1e6) == learns
    assert round(sum(p.numel() for p in parameters) / 1e6) == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapt": ("temporal", "sideways")}, "no adapter sideways; known: spatial, temporal, joint"),
        ({"tuning": "half"}, "backbone.tuning is one of frozen, aim, full, not half"),
        ({"adapt": (), "tuning": "aim"}, "at least one of backbone.aim_adapters"),
        ({"tuning": "frozen"}, "asks for joint, spatial, temporal"),
        ({"adapt": ("joint",), "adapter_before_time": True}, "needs the temporal adapter"),
        ({"clip_frames": 0}, "at least 1 frame"),
        ({"drop_path": 1.0}, r"must be in \[0, 1\)"),
    ],
)
def test_combinations_that_make_no_sense(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_fn": ParallelScalingBlock}, "blocks are ParallelScalingBlock"),
        ({"dynamic_img_size": True}, "frames of one size"),
        ({"drop_path_rate": 0.1}, "dropout or drop path of its own"),
        ({"proj_drop_rate": 0.1}, "dropout or drop path of its own"),
        ({"global_pool": "map"}, "pools by 'map'"),
        ({"global_pool": "max"}, "pools by 'max'"),
        ({"num_classes": 10}, "num_classes=0"),
    ],
)
def test_image_transformers_that_will_not_do(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(timm_vit(**changes))


def test_names_that_will_not_do():
    for name in ("resnet50", "vit_huge_patch99", "convnext_base"):
        with pytest.raises(ConfigError, match=f"no plain vision transformer named {name}; it has, for example, vit_"):
            build_image_transformer(name, resolution=224)
    with shapes_only(), pytest.raises(ConfigError, match="230 px are not a multiple of the 16 px patches"):
        build_image_transformer("vit_base_patch16_224", resolution=230)


def test_frames_that_will_not_do():
    with pytest.raises(ValueError, match="6 frames are not a multiple of the clips' 4"):
        build().frame_features(video(frames=6))
    with pytest.raises(ValueError, match="0 frames"):
        build().frame_features(video(frames=0))
    with pytest.raises(ValueError, match=r"frames are \(48, 48\) pixels, the model takes \(32, 32\)"):
        build().frame_features(video(side=48))
