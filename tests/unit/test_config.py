from __future__ import annotations

import json

import pytest

from adatad_ds.config import Config, ConfigError, from_dict, load, override
from adatad_ds.parallel import complete_environment, split_batch
from adatad_ds.recipes import all_recipes, find_recipe, recipe_table


def test_round_trip_through_a_file(tmp_path):
    for recipe in all_recipes().values():
        path = tmp_path / "config.json"
        recipe.config.save(path)
        assert load(path) == recipe.config


def test_overrides_reach_typed_values():
    config = override(
        Config(),
        [
            "train.lr_head=1e-3",
            "backbone.adapter_blocks=[3,5]",
            "data.crop_ratio=none",
            "backbone.name=tiny",
            "head.drop_path=0",
        ],
    )
    assert config.train.lr_head == 1e-3
    assert config.backbone.adapter_blocks == (3, 5)
    assert config.data.crop_ratio is None
    assert config.backbone.name == "tiny"
    assert isinstance(config.head.drop_path, float)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("train.lr_heads=1", "did you mean 'lr_head'"),
        ("trian.lr_head=1", "did you mean 'train'"),
        ("train.lr_head", "section.key=value"),
        ("train.lr_head=high", "train.lr_head must be float"),
        ("train.global_batch=2.5", "train.global_batch must be int"),
        ("train.global_batch=True", "train.global_batch must be int"),
        ("backbone.tuning=lora", "must be one of 'frozen', 'full', 'tia', 'side'"),
        ("head.arch=[2,2]", "head.arch must hold 3 values"),
        ("test.tiou=0.5", "test.tiou must be a list"),
        ("data.window_size=100", "no multiple of 16"),
        ("data.window_size=16", "no multiple of 32"),
        ("backbone.tuning=full", "train.lr_backbone"),
        ("head.arch=[2,2,4]", "6 ranges for 5 levels"),
        ("data.frames_per_feature=3", "no multiple of frames_per_feature"),
    ],
)
def test_what_cannot_be_run_is_named(assignment, said):
    with pytest.raises(ConfigError, match=said.replace("(", r"\(").replace("[", r"\[")):
        override(Config(), [assignment])


def test_all_problems_at_once():
    with pytest.raises(ConfigError) as error:
        from_dict({"data": {"window_size": 100}, "backbone": {"tuning": "full"}})
    assert "no multiple of 16" in str(error.value)
    assert "lr_backbone" in str(error.value)


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match="thumos14_videomae_s"):
        find_recipe("thumos_videomae_s")
    assert all(name in recipe_table() for name in all_recipes())


def test_saved_config_is_plain_json():
    assert from_dict(json.loads(json.dumps(Config().to_dict()))) == Config()


def test_batch_split_or_what_would_fit():
    assert split_batch(global_batch=8, data_ranks=2, micro_batch=None) == (4, 1)
    assert split_batch(global_batch=8, data_ranks=2, micro_batch=2) == (2, 2)
    with pytest.raises(ConfigError, match=r"use 1, 2 ranks, or --set train\.global_batch=4"):
        split_batch(global_batch=2, data_ranks=4, micro_batch=None)
    with pytest.raises(ConfigError, match="use 1, 2, 4"):
        split_batch(global_batch=8, data_ranks=2, micro_batch=3)


def test_rank_comes_from_the_launcher():
    srun = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0", "MASTER_PORT": "1"}
    assert complete_environment(srun) == 1
    assert (srun["RANK"], srun["WORLD_SIZE"]) == ("3", "8")
    torchrun = srun | {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    assert complete_environment(torchrun) == 0
    assert torchrun["WORLD_SIZE"] == "2"
    alone: dict[str, str] = {}
    assert complete_environment(alone) == 0
    assert alone["WORLD_SIZE"] == "1"
    assert int(alone["MASTER_PORT"]) > 0
