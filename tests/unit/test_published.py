"""Every field of every published experiment, against the resolved recipe.

published.json holds the facts in our own keys: by dataset, what its experiments share, and each one's own. Where
shared/ lies beside the repository, it is itself held against the authors' settings, field by field.
`python -m tests.unit.test_published` writes it anew.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from adatad_ds.config import Config, HeadConfig, from_dict
from adatad_ds.models.build import adapted_blocks
from adatad_ds.recipes import Recipe, all_recipes, find_recipe, recipe_table
from adatad_ds.train import main

REPOSITORY = Path(__file__).resolve().parents[2]
FACTS = Path(__file__).with_name("published.json")
SETTINGS = REPOSITORY.parent / "shared/reference/published_settings.json"
PUBLISHED = {recipe.published_id: name for name, recipe in all_recipes().items() if recipe.published_id}
AUGMENTATIONS = {"RandomResizedCrop": "random_resized_crop", "Flip": "flip", "ImgAug": "rand_augment"}
AUGMENTATIONS |= {"ColorJitter": "color_jitter"}

HEAD = [field.name for field in fields(HeadConfig) if field.name not in ("attn_window", "max_len", "reset_classifier")]
TRAIN = ["global_batch", "lr_head", "weight_decay", "grad_clip", "warmup_epochs", "schedule_epochs", "stop_epoch"]
TRAIN += ["eval_from_epoch", "eval_every"]
TEST = ["sigma", "max_per_video", "min_score", "per_class", "voting_thresh", "pre_nms_thresh", "pre_nms_topk", "tiou"]
DATA = ["window_size", "frames_per_feature", "sampling", "fixed_fps", "feature_stride_frames", "resolution"]
DATA += ["short_side_before_crop"]


def facts_of(config: Config) -> dict[str, Any]:
    """What a recipe says, of all that the published settings say."""
    tree = config.to_dict()
    facts = {f"data.{key}": tree["data"][key] for key in DATA}
    facts |= {f"head.{key}": tree["head"][key] for key in HEAD}
    facts |= {f"train.{key}": tree["train"][key] for key in TRAIN}
    facts |= {f"test.{key}": tree["test"][key] for key in TEST}
    backbone, data, head, train, test = (tree[name] for name in ("backbone", "data", "head", "train", "test"))
    blocks, tuning = adapted_blocks(config.backbone), backbone["tuning"]
    sliding = data["sampling"] == "random_trunc"
    return facts | {
        "frames": config.data.window_frames,
        "data.frame_stride": config.data.frame_stride if sliding else None,
        "data.offset_frames": data["offset_frames"],
        "data.trunc_thresh": data["trunc_thresh"] if sliding else None,
        "data.crop_ratio": data["crop_ratio"] if sliding else None,
        "data.test_window_overlap": data["test_window_overlap"] if sliding else None,
        "data.augment": sorted(data["augment"]),
        "data.class_agnostic": data["class_agnostic"],
        "backbone.name": backbone["name"],
        "backbone.tuning": tuning,
        "backbone.adapter_blocks": [blocks[0], blocks[-1]] if blocks else None,
        "backbone.adapter_blocks without gaps": len(blocks) == (blocks[-1] - blocks[0] + 1 if blocks else 0),
        "backbone.adapter_ratio": backbone["adapter_ratio"] if blocks else None,
        "backbone.drop_path": backbone["drop_path"],
        "backbone.activation_checkpointing": backbone["activation_checkpointing"],
        "head.attn_window": head["attn_window"],
        "head.strides": list(config.head.strides),
        "head.max_len": config.pyramid_steps,
        "train.lr_adapter": train["lr_adapter"] if blocks else None,
        "train.lr_backbone": train["lr_backbone"],
        "train.weight_decay_backbone": train["weight_decay_backbone"] if tuning == "full" else None,
        "train.ema": train["ema_decay"] == 0.999,
        "test.suppression": test["suppression"],
        "test.recall_topk": test["recall_topk"],
        "test.external_layout": test["external_layout"] if test["external_scores"] else None,
    }


def facts_of_row(row: dict[str, Any]) -> dict[str, Any]:
    """The same of a row of the authors' settings; every field of it is used."""
    row = json.loads(json.dumps(row))
    head, train, test = row.pop("head"), row.pop("train"), row.pop("test")
    for name in ("id", "dataset"):
        row.pop(name)
    facts = {f"data.{key}": row.pop(key) for key in DATA}
    facts |= {f"head.{key}": head.pop(key) for key in HEAD}
    facts |= {f"train.{key}": train.pop(key) for key in TRAIN}
    facts |= {f"test.{key}": test.pop(key) for key in TEST}
    assert len(head["strides"]) == head.pop("levels")
    assert train.pop("optimizer") == "adamw"
    layouts = {None: None, "CUHKANETClassifier": "cuhk", "StandardClassifier": "plain"}
    kinds = [AUGMENTATIONS[name] for name in row.pop("augment") if name in AUGMENTATIONS]
    facts |= {
        "frames": row.pop("frames"),
        "data.frame_stride": row.pop("frame_stride"),
        "data.offset_frames": row.pop("offset_frames") or 0,
        "data.trunc_thresh": row.pop("trunc_thresh"),
        "data.crop_ratio": row.pop("crop_ratio"),
        "data.test_window_overlap": row.pop("test_window_overlap"),
        "data.augment": sorted(kinds),
        "data.class_agnostic": head.pop("num_classes") == 1,
        "backbone.name": row.pop("backbone"),
        "backbone.tuning": row.pop("tuning"),
        "backbone.adapter_blocks": row.pop("adapter_blocks"),
        "backbone.adapter_blocks without gaps": True,
        "backbone.adapter_ratio": row.pop("adapter_ratio"),
        "backbone.drop_path": row.pop("backbone_drop_path") or 0.0,
        "backbone.activation_checkpointing": row.pop("activation_checkpointing"),
        "head.attn_window": head.pop("attn_window"),
        "head.strides": head.pop("strides"),
        "head.max_len": head.pop("max_len"),
        "train.lr_adapter": train.pop("lr_adapter"),
        "train.lr_backbone": train.pop("lr_backbone"),
        "train.weight_decay_backbone": train.pop("wd_backbone"),
        "train.ema": train.pop("ema"),
        "test.suppression": "gaussian" if test.pop("soft_nms") else "hard",
        "test.recall_topk": test.pop("recall_topk") or [],
        "test.external_layout": layouts[test.pop("external_classifier")],
    }
    assert not row, row
    assert not head, head
    assert not train, train
    assert not test, test
    return facts


def known_facts() -> dict[str, dict[str, Any]]:
    """All facts by the authors' names."""
    tree = json.loads(FACTS.read_text())
    return {name: part["all"] | own for part in tree.values() for name, own in part["each"].items()}


def rows() -> list[dict[str, Any]]:
    return json.loads(SETTINGS.read_text())


def test_all_are_there():
    assert len(known_facts()) == 51
    assert set(known_facts()) == set(PUBLISHED)


@pytest.mark.parametrize("published_id", sorted(PUBLISHED))
def test_each_field(published_id):
    assert facts_of(find_recipe(PUBLISHED[published_id]).config) == known_facts()[published_id]


@pytest.mark.skipif(not SETTINGS.exists(), reason="shared/ is not beside the repository")
def test_facts_are_the_authors():
    assert known_facts() == {row["id"]: facts_of_row(row) for row in rows()}


@pytest.mark.parametrize("name", all_recipes())
def test_recipes_can_be_saved_and_read(name):
    recipe = find_recipe(name)
    assert isinstance(recipe, Recipe)
    assert from_dict(recipe.config.to_dict()) == recipe.config


def test_the_list_names_all():
    lines = recipe_table().splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(all_recipes())
    assert recipe_table() in (REPOSITORY / "docs/datasets.md").read_text()


def test_recipes_are_diffed(capsys):
    assert main(["--recipe", "thumos14_videomaev2_g_1536", "--diff", "thumos14_videomaev2_g"]) == 0
    lines = capsys.readouterr().out.splitlines()
    keys = ["data.frames_per_feature", "data.resolution", "data.short_side_before_crop", "backbone.adapter_blocks"]
    keys += ["train.lr_adapter", "train.stop_epoch", "train.eval_from_epoch"]
    assert [line.split()[0] for line in lines] == keys
    assert lines[0].split()[1:] == ["2", "->", "1"]


def write_facts() -> None:
    """Write published.json from shared/."""
    parts: dict[str, Any] = {}
    for dataset in dict.fromkeys(row["dataset"] for row in rows()):
        each = {row["id"]: facts_of_row(row) for row in rows() if row["dataset"] == dataset}
        first, *rest = each.values()
        common = {key: value for key, value in first.items() if all(other[key] == value for other in rest)}
        own = {name: {k: v for k, v in facts.items() if k not in common} for name, facts in each.items()}
        parts[dataset] = {"all": common, "each": own}
    lines = [
        f'  "{dataset}": {{"all": {json.dumps(part["all"])},'
        + '\n   "each": {\n'
        + ",\n".join(f'    "{name}": {json.dumps(own)}' for name, own in part["each"].items())
        + "}}"
        for dataset, part in parts.items()
    ]
    FACTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    write_facts()
