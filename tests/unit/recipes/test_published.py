"""Every key of every published experiment's config, against the resolved recipe.

published.json holds OpenTAD's 51 configs of AdaTAD, resolved, in its own keys: by family, what its experiments share,
and each one's own; without dataset.val, which is not used (workflow.val_loss_interval is -1). A key that is neither
said by our config nor set aside by name fails. `python -m tests.unit.recipes.test_published CHECKOUT` writes it anew
from a checkout of OpenTAD.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from adatad_ds.config.loading import from_dict, override
from adatad_ds.config.parsing import CLIP_FRAMES
from adatad_ds.config.schema import Config
from adatad_ds.models.backbones.patch_embed import PIXEL_MEAN, PIXEL_STD
from adatad_ds.models.backbones.vit import VIT_SPECS
from adatad_ds.models.factory import adapted_blocks
from adatad_ds.recipes.catalog import Recipe, all_recipes, find_recipe, recipe_table
from adatad_ds.train import main
from tests.support.opentad_configs import ASIDE_IN_BOTH, DEFAULTS_IN_BOTH, differences, flat, in_opentads_keys, resolved

REPOSITORY = Path(__file__).resolve().parents[3]
FACTS = Path(__file__).with_name("published.json")
SOURCE = "OpenTAD 3dd7b03, configs/adatad"
PUBLISHED = {recipe.published_id: recipe for recipe in all_recipes().values() if recipe.published_id}

SET_ASIDE = ASIDE_IN_BOTH | {  # keys that no config of ours says, and why
    r"(chunk_num|scale_factor)": "more variables of the config files",
    r"dataset\.(train|test)\.class_map": "Recipe.class_order",
    r"evaluation\.blocked_videos": "a list that comes with the authors' annotations; here data.exclude",
    r"model\.backbone\.custom\.pretrain": "the user's file",
    r"solver\.(amp|fp16_compress|static_graph|\w+\.num_workers|(val|test)\.batch_size)": "how it is computed",
}
DEFAULTS = DEFAULTS_IN_BOTH | {  # of OpenTAD's code, for keys that only some of its configs give
    "dataset.test.offset_frames": 0,
    "dataset.train.offset_frames": 0,
    "model.backbone.backbone.adapter_mlp_ratio": 0.25,
    "model.backbone.backbone.drop_path_rate": 0.0,
    "model.rpn_head.prior_generator.use_offset": False,
    "post_processing.nms.min_score": 0.0,
}
DATASETS = {"anet": "Anet", "charades": "EpicKitchens", "epic": "EpicKitchens", "ego4d": "Ego4D"}  # rest: Thumos
CLASSES = {"thumos": 20, "multi_thumos": 65, "charades": 157, "ego4d": 110, "anet": 200}
CLASSES |= {"noun": 293, "verb": 97}  # of EPIC
BACKBONES = {"tia": "VisionTransformerAdapter", "side": "VisionTransformerLadder"}  # rest: VisionTransformerCP
LEAST_SHARE = 0.01  # AnetResizeDataset's threshold where filter_gt is set


def said_by(config: Config, published_id: str) -> dict[str, Any]:
    """What a config says, in the tree of the authors' keys."""
    family = published_id.split("/")[0]
    data, train = config.data, config.train
    blocks, tuning = adapted_blocks(config.backbone), config.backbone.tuning
    sliding = data.sampling == "random_trunc"
    agnostic = {} if sliding else {"class_agnostic": data.class_agnostic}
    num_classes = 1 if data.class_agnostic else CLASSES[published_id.split("_")[-1] if family == "epic" else family]

    def dataset(kind: str, load: dict[str, Any], pictures: list[Any], keys: list[str]) -> dict[str, Any]:
        grid = {"feature_stride": data.feature_stride_frames, "fps": data.fixed_fps or -1}
        grid |= {"offset_frames": data.offset_frames, "sample_stride": 1}
        return {
            "type": DATASETS.get(family, "Thumos") + (kind if sliding else "Resize") + "Dataset",
            **(grid if sliding else {"resize_length": data.window_size}),
            **agnostic,
            "pipeline": [
                {"type": "PrepareVideoInfo", "format": "mp4"} | ({} if sliding else {"prefix": "v_"}),
                {"type": "mmaction.DecordInit", "num_threads": 4},
                {"type": "LoadFrames", "num_clips": 1, "scale_factor": data.frames_per_feature, **load},
                {"type": "mmaction.DecordDecode"},
                *pictures,
                {"type": "mmaction.FormatShape", "input_format": "NCTHW"},
                {"type": "ConvertToTensor", "keys": ["imgs", *keys]},
                {"type": "Collect", "inputs": "imgs", "keys": ["masks", *keys]},
            ],
        }

    side = data.resolution
    crop = [{"type": "mmaction.CenterCrop", "crop_size": side}]
    square = {"type": "mmaction.Resize", "scale": [side, side], "keep_ratio": False}
    augmentations = {
        "random_resized_crop": [{"type": "mmaction.RandomResizedCrop"}, square],
        "flip": [{"type": "mmaction.Flip", "flip_ratio": 0.5}],
        "rand_augment": [{"type": "mmaction.ImgAug", "transforms": "default"}],
        "color_jitter": [{"type": "mmaction.ColorJitter"}],
    }
    augmented = [step for kind in data.augment for step in augmentations[kind]]
    assert data.scaling == "bilinear"
    trunc = {"trunc_len": data.window_size, "trunc_thresh": data.trunc_thresh, "crop_ratio": data.crop_ratio}
    training = dataset(
        "Padding",
        {"method": "random_trunc", **trunc} if sliding else {"method": "resize"},
        [{"type": "mmaction.Resize", "scale": [-1, data.short_side_before_crop]}, *(augmented or crop)],
        ["gt_segments", "gt_labels"],
    )
    # EPIC's threshold is a length of 0, which we leave out of every dataset.
    training["filter_gt"] = {LEAST_SHARE: True, 0.0: family == "epic"}[data.min_action_share]
    testing = dataset(
        "Sliding",
        {"method": "sliding_window" if sliding else "resize"},
        [{"type": "mmaction.Resize", "scale": [-1, side]}, *crop],
        [],
    )
    testing |= {"filter_gt": False, "test_mode": True}
    testing |= {"window_size": data.window_size, "window_overlap_ratio": data.test_window_overlap} if sliding else {}

    adapters = {"total_frames": data.window_frames, "adapter_index": blocks}
    adapters |= {"adapter_mlp_ratio": config.backbone.adapter_ratio}
    backbone_rates = {
        "full": {"lr": train.lr_backbone, "weight_decay": train.weight_decay_backbone},
        "tia": {
            "lr": 0,
            "weight_decay": 0,
            "custom": [{"name": "adapter", "lr": train.lr_adapter, "weight_decay": train.weight_decay}],
            "exclude": ["backbone"],
        },
    }
    backbone_rates["side"] = backbone_rates["tia"]
    spec, clips = VIT_SPECS[config.backbone.name], data.window_frames // CLIP_FRAMES
    said = in_opentads_keys(config, in_channels=spec.width, num_classes=num_classes)
    said["dataset"] = {"train": training, "test": testing}
    said["model"]["backbone"] = {
        "type": "mmaction.Recognizer3D",
        "backbone": {
            "type": BACKBONES.get(tuning, "VisionTransformerCP"),
            "img_size": spec.pretrained_side,
            "patch_size": spec.patch,
            "embed_dims": spec.width,
            "depth": spec.depth,
            "num_heads": spec.heads,
            "mlp_ratio": spec.mlp_hidden / spec.width,
            "qkv_bias": True,
            "num_frames": CLIP_FRAMES,
            "norm_cfg": {"type": "LN", "eps": 1e-6},
            "return_feat_map": True,
            "with_cp": config.backbone.activation_checkpointing,
            "drop_path_rate": config.backbone.drop_path,
            **(adapters if blocks else {}),
        },
        "data_preprocessor": {
            "type": "mmaction.ActionDataPreprocessor",
            "mean": PIXEL_MEAN,
            "std": PIXEL_STD,
            "format_shape": "NCTHW",
        },
        "custom": {
            "pre_processing_pipeline": [
                {
                    "type": "Rearrange",
                    "keys": ["frames"],
                    "ops": "b n c (t1 t) h w -> (b t1) n c t h w",
                    "t1": clips,
                }
            ],
            "post_processing_pipeline": [
                {"type": "Reduce", "keys": ["feats"], "ops": "b n c t h w -> b c t", "reduction": "mean"},
                {"type": "Rearrange", "keys": ["feats"], "ops": "(b t1) c t -> b c (t1 t)", "t1": clips},
                {"type": "Interpolate", "keys": ["feats"], "size": data.window_size},
            ],
            "norm_eval": tuning == "frozen",
            "freeze_backbone": tuning == "frozen",
        },
    }
    if tuning in backbone_rates:
        said["optimizer"]["backbone"] = backbone_rates[tuning]
    said["workflow"]["val_loss_interval"] = -1
    return said


def differing(pinned: Mapping[str, Any], config: Config, published_id: str) -> dict[str, tuple[Any, Any]]:
    """See `differences`."""
    return differences(pinned, said_by(config, published_id), aside=SET_ASIDE, defaults=DEFAULTS)


def pinned_configs() -> dict[str, dict[str, Any]]:
    """All of the authors' configs, flat, by the authors' names."""
    families = json.loads(FACTS.read_text())["families"]
    return {name: family["all"] | own for family in families.values() for name, own in family["each"].items()}


def test_all_are_there():
    assert len(pinned_configs()) == 51
    assert set(pinned_configs()) == set(PUBLISHED)


@pytest.mark.parametrize("published_id", sorted(PUBLISHED))
def test_each_key(published_id):
    assert differing(pinned_configs()[published_id], PUBLISHED[published_id].config, published_id) == {}


def test_what_is_noticed():
    """A key that nobody knows, a value that differs, and a setting of ours that the authors do not have."""
    name = "ego4d/ego4d_internvideo_1800x4_192_adapter_lr4e-4"
    pinned, config = pinned_configs()[name], PUBLISHED[name].config
    unknown = pinned | {"model.projection.attn_cfg.attn_pdrop": 0.1}
    assert differing(unknown, config, name) == {"model.projection.attn_cfg.attn_pdrop": (0.1, None)}
    dry = override(config, ["head.proj_dropout=0"])
    assert differing(pinned, dry, name) == {"model.projection.conv_cfg.proj_pdrop": (0.1, 0.0)}
    del pinned["model.projection.conv_cfg.proj_pdrop"]
    assert differing(pinned, config, name) == {"model.projection.conv_cfg.proj_pdrop": (None, 0.1)}


def test_nothing_is_set_aside_or_assumed_in_vain():
    keys = {key for pinned in pinned_configs().values() for key in pinned}
    assert not [pattern for pattern in SET_ASIDE if not any(re.fullmatch(pattern, key) for key in keys)]
    never = {key for key in DEFAULTS if all(key in pinned for pinned in pinned_configs().values())}
    assert not never


@pytest.mark.parametrize("name", ["activitynet_videomae_b", "hacs_videomae_b", "fineaction_videomae_b"])
def test_short_actions_are_left_out_where_the_authors_do(name):
    assert find_recipe(name).config.data.min_action_share == 0.01


@pytest.mark.parametrize("name", all_recipes())
def test_recipes_can_be_saved_and_read(name):
    recipe = find_recipe(name)
    assert isinstance(recipe, Recipe)
    assert from_dict(recipe.config.to_dict()) == recipe.config


def test_the_list_names_all():
    lines = recipe_table().splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(all_recipes())
    assert recipe_table() in (REPOSITORY / "docs/reference/recipes.md").read_text()


def test_recipes_are_diffed(capsys):
    assert main(["--recipe", "thumos14_videomaev2_g_1536", "--diff", "thumos14_videomaev2_g"]) == 0
    lines = capsys.readouterr().out.splitlines()
    keys = ["data.frames_per_feature", "data.resolution", "data.short_side_before_crop", "backbone.adapter_blocks"]
    keys += ["train.lr_adapter", "train.stop_epoch", "train.eval_from_epoch"]
    assert [line.split()[0] for line in lines] == keys
    assert lines[0].split()[1:] == ["2", "->", "1"]


def write_facts(checkout: Path) -> None:
    """Write published.json from OpenTAD."""
    families: dict[str, dict[str, Any]] = {}
    for path in sorted((checkout / "configs/adatad").glob("*/e2e_*.py")):
        config = resolved(path)
        del config["dataset"]["val"]
        name = f"{path.parent.name}/{path.stem.removeprefix('e2e_')}"
        families.setdefault(path.parent.name, {})[name] = json.loads(json.dumps(dict(flat(config))))
    parts = []
    for family, each in families.items():
        first, *rest = each.values()
        shared = {k: v for k, v in first.items() if all(k in other and other[k] == v for other in rest)}
        own = {name: {k: v for k, v in config.items() if k not in shared} for name, config in each.items()}
        lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(config)}" for name, config in own.items())
        parts.append(f'  "{family}": {{"all": {json.dumps(shared)},\n   "each": {{\n{lines}}}}}')
    FACTS.write_text(f'{{"source": "{SOURCE}", "families": {{\n' + ",\n".join(parts) + "}}\n")


if __name__ == "__main__":
    write_facts(Path(sys.argv[1]))
