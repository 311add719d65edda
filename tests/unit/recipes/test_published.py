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
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
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

REPOSITORY = Path(__file__).resolve().parents[3]
FACTS = Path(__file__).with_name("published.json")
SOURCE = "OpenTAD 3dd7b03, configs/adatad"
PUBLISHED = {recipe.published_id: recipe for recipe in all_recipes().values() if recipe.published_id}

SET_ASIDE = {  # keys that no config of ours says, and why
    r"(annotation_path|block_list|chunk_num|class_map|data_path|dataset_type|resize_length|scale_factor|window_size)": (
        "variables of the config files; what they set is below"
    ),
    r"dataset\.(train|test)\.(ann_file|block_list|data_path|subset_name)": "the user's files; our names of subsets",
    r"dataset\.(train|test)\.class_map": "Recipe.class_order",
    r"evaluation\.(ground_truth_filename|subset)": "the user's files; our names of subsets",
    r"evaluation\.blocked_videos": "a list that comes with the authors' annotations; here data.exclude",
    r"model\.backbone\.custom\.pretrain": "the user's file",
    r"post_processing\.external_cls\.path": "the user's file",
    r"(inference\..+|post_processing\.save_dict|work_dir)": "what is written, and where",
    r"solver\.(amp|fp16_compress|static_graph|\w+\.num_workers|(val|test)\.batch_size)": "how it is computed",
    r"workflow\.(checkpoint|logging)_interval": "how often it is saved and said",
}
DEFAULTS = {  # of OpenTAD's code, for keys that only some of its configs give
    "dataset.test.fps": -1,
    "dataset.test.offset_frames": 0,
    "dataset.train.fps": -1,
    "dataset.train.offset_frames": 0,
    "evaluation.top_k": [],
    "model.backbone.backbone.adapter_mlp_ratio": 0.25,
    "model.backbone.backbone.drop_path_rate": 0.0,
    "model.projection.input_pdrop": 0.0,
    "model.rpn_head.filter_similar_gt": True,
    "model.rpn_head.loss_weight": 1.0,
    "model.rpn_head.prior_generator.use_offset": False,
    "post_processing.nms.min_score": 0.0,
    "post_processing.pre_nms_thresh": 0.001,
    "post_processing.pre_nms_topk": 2000,
}
DATASETS = {"anet": "Anet", "charades": "EpicKitchens", "epic": "EpicKitchens", "ego4d": "Ego4D"}  # rest: Thumos
CLASSES = {"thumos": 20, "multi_thumos": 65, "charades": 157, "ego4d": 110, "anet": 200}
CLASSES |= {"noun": 293, "verb": 97}  # of EPIC
CLASSIFIERS = {"cuhk": "CUHKANETClassifier", "plain": "StandardClassifier"}
BACKBONES = {"tia": "VisionTransformerAdapter", "side": "VisionTransformerLadder"}  # rest: VisionTransformerCP
LEAST_SHARE = 0.01  # AnetResizeDataset's threshold where filter_gt is set


def said_by(config: Config, published_id: str) -> dict[str, Any]:
    """What a config says, in the tree of the authors' keys."""
    family = published_id.split("/")[0]
    data, head, train, test = config.data, config.head, config.train, config.test
    blocks, tuning = adapted_blocks(config.backbone), config.backbone.tuning
    sliding = data.sampling == "random_trunc"
    external = bool(test.external_scores)
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
    return {
        "dataset": {"train": training, "test": testing},
        "model": {
            "type": "ActionFormer",
            "backbone": {
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
            },
            "projection": {
                "type": "Conv1DTransformerProj",
                "in_channels": spec.width,
                "out_channels": head.width,
                "arch": head.arch,
                "conv_cfg": {"kernel_size": 3, "proj_pdrop": head.proj_dropout},
                "norm_cfg": {"type": "LN"},
                "attn_cfg": {"n_head": head.heads, "n_mha_win_size": head.attn_window},
                "path_pdrop": head.drop_path,
                "use_abs_pe": head.abs_pos_embed,
                "max_seq_len": config.pyramid_steps,
                "input_pdrop": head.input_dropout,
            },
            "neck": {
                "type": "FPNIdentity",
                "in_channels": head.width,
                "out_channels": head.width,
                "num_levels": head.levels,
            },
            "rpn_head": {
                "type": "ActionFormerHead",
                "num_classes": num_classes,
                "in_channels": head.width,
                "feat_channels": head.width,
                "num_convs": head.num_convs,
                "cls_prior_prob": head.cls_prior,
                "prior_generator": {
                    "type": "PointGenerator",
                    "strides": head.strides,
                    "regression_range": head.regression_range,
                    "use_offset": head.point_offset,
                },
                "loss_normalizer": head.loss_normalizer,
                "loss_normalizer_momentum": head.loss_normalizer_momentum,
                "center_sample": "radius",
                "center_sample_radius": head.center_radius,
                "label_smoothing": head.label_smoothing,
                "loss": {"cls_loss": {"type": "FocalLoss"}, "reg_loss": {"type": "DIOULoss"}},
                "loss_weight": head.reg_loss_weight,
                "filter_similar_gt": head.filter_similar_gt,
            },
        },
        "solver": {
            "train": {"batch_size": train.global_batch},
            "clip_grad_norm": train.grad_clip,
            "ema": train.ema_decay == 0.999,  # as its code has it
        },
        "optimizer": {
            "type": "AdamW",
            "lr": train.lr_head,
            "weight_decay": train.weight_decay,
            "paramwise": True,
            **({"backbone": backbone_rates[tuning]} if tuning in backbone_rates else {}),
        },
        "scheduler": {
            "type": "LinearWarmupCosineAnnealingLR",
            "warmup_epoch": train.warmup_epochs,
            "max_epoch": train.schedule_epochs,
        },
        "workflow": {
            "end_epoch": train.stop_epoch,
            "val_start_epoch": train.eval_from_epoch,
            "val_eval_interval": train.eval_every,
            "val_loss_interval": -1,
        },
        "post_processing": {
            "pre_nms_thresh": test.pre_nms_thresh,
            "pre_nms_topk": test.pre_nms_topk,
            "nms": {
                "use_soft_nms": test.suppression == "gaussian",
                "sigma": test.sigma,
                "max_seg_num": test.max_per_video,
                "min_score": test.min_score,
                "multiclass": test.per_class,
                "voting_thresh": test.voting_thresh,
            },
            **(
                {"external_cls": {"type": CLASSIFIERS[test.external_layout], "topk": test.external_topk}}
                if external
                else {}
            ),
        },
        "evaluation": {"type": "mAP", "tiou_thresholds": test.tiou, "top_k": test.recall_topk},
    }


def differences(pinned: Mapping[str, Any], config: Config, published_id: str) -> dict[str, tuple[Any, Any]]:
    """By key: the authors' value and ours, where they differ; None where only one side knows the key."""
    ours = dict(flat(json.loads(json.dumps(said_by(config, published_id)))))
    defaults = DEFAULTS | {"workflow.end_epoch": pinned["scheduler.max_epoch"]}
    theirs = {key: value for key, value in defaults.items() if key in ours}
    theirs |= {key: value for key, value in pinned.items() if not is_set_aside(key)}
    return {
        key: (theirs.get(key), ours.get(key))
        for key in ours | theirs
        if key not in ours or key not in theirs or ours[key] != theirs[key]
    }


def is_set_aside(key: str) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in SET_ASIDE)


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`model.type` and so on, with their values; lists stay whole."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def pinned_configs() -> dict[str, dict[str, Any]]:
    """All of the authors' configs, flat, by the authors' names."""
    families = json.loads(FACTS.read_text())["families"]
    return {name: family["all"] | own for family in families.values() for name, own in family["each"].items()}


def test_all_are_there():
    assert len(pinned_configs()) == 51
    assert set(pinned_configs()) == set(PUBLISHED)


@pytest.mark.parametrize("published_id", sorted(PUBLISHED))
def test_each_key(published_id):
    assert differences(pinned_configs()[published_id], PUBLISHED[published_id].config, published_id) == {}


def test_what_is_noticed():
    """A key that nobody knows, a value that differs, and a setting of ours that the authors do not have."""
    name = "ego4d/ego4d_internvideo_1800x4_192_adapter_lr4e-4"
    pinned, config = pinned_configs()[name], PUBLISHED[name].config
    unknown = pinned | {"model.projection.attn_cfg.attn_pdrop": 0.1}
    assert differences(unknown, config, name) == {"model.projection.attn_cfg.attn_pdrop": (0.1, None)}
    dry = override(config, ["head.proj_dropout=0"])
    assert differences(pinned, dry, name) == {"model.projection.conv_cfg.proj_pdrop": (0.1, 0.0)}
    del pinned["model.projection.conv_cfg.proj_pdrop"]
    assert differences(pinned, config, name) == {"model.projection.conv_cfg.proj_pdrop": (None, 0.1)}


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


def resolved(path: Path) -> dict[str, Any]:
    """A config of OpenTAD, run, over its `_base_` files: dicts are merged, `_delete_` replaces."""
    names: dict[str, Any] = {}
    exec(path.read_text(), names)
    bases = names.get("_base_", [])
    tree: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        tree = merged(tree, resolved(path.parent / base))
    own = {key: value for key, value in names.items() if not key.startswith("_") and not isinstance(value, ModuleType)}
    return merged(tree, own)


def merged(base: Any, change: Mapping[str, Any]) -> dict[str, Any]:
    tree = dict(base) if isinstance(base, Mapping) and not change.get("_delete_") else {}
    for key, value in change.items():
        if key != "_delete_":
            tree[key] = merged(tree.get(key), value) if isinstance(value, Mapping) else value
    return tree


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
