"""AIM's recipes: published figures, the ablation; their settings are held in test_aim_published.py."""

from __future__ import annotations

from adatad_ds.recipes.aim import ABLATION, ablation_recipe
from adatad_ds.recipes.catalog import all_recipes

TOP1 = {
    "kinetics400_clip_b16_8": 83.9,
    "kinetics400_clip_b16_16": 84.5,
    "kinetics400_clip_b16_32": 84.7,
    "kinetics400_clip_l14_8": 86.8,
    "kinetics400_clip_l14_16": 87.3,
    "kinetics400_clip_l14_32": 87.5,
    "kinetics700_clip_b16_32": 76.9,
    "kinetics700_clip_l14_32": 80.4,
    "diving48_clip_b16_32": 88.9,
    "diving48_clip_l14_32": 90.6,
}


def test_published_figures():
    found = {name: recipe.published_top1 for name, recipe in all_recipes().items() if recipe.published_top1}
    assert found == TOP1


def test_the_ablation_changes_what_learns_alone():
    configs = {row: all_recipes()[ablation_recipe(row)].config.to_dict() for row in ABLATION}
    assert len(configs) == 6
    for config in configs.values():
        for key in ("tuning", "aim_adapters"):
            del config["backbone"][key]
        del config["train"]["lr_backbone"]
    assert all(config == configs["stj"] for config in configs.values())
