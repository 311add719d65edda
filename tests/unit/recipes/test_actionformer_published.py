"""Every key of ActionFormer's published configs, against the resolved recipe.

actionformer_published.json holds the configs of happyharrycn/actionformer_release at 61ea7eb, resolved with its
defaults, in its own keys: what all share, and each one's own. A key that is neither said by our config nor set aside by
name fails.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from adatad_ds.config.loading import from_dict
from adatad_ds.config.schema import Config, HeadConfig
from adatad_ds.recipes.catalog import find_recipe
from tests.support.published_configs import ASIDE_IN_BOTH, in_actionformers_keys

FACTS = json.loads(Path(__file__).with_name("actionformer_published.json").read_text(encoding="utf-8"))
RECIPES = {
    "thumos_i3d": "thumos14_features_i3d",
    "anet_tsp": "activitynet_features_tsp",
    "anet_i3d": "activitynet_features_i3d",
    "epic_slowfast_noun": "epic_noun_features_slowfast",
    "epic_slowfast_verb": "epic_verb_features_slowfast",
    **{f"ego4d_{name}": f"ego4d_mq_features_{name}" for name in ("slowfast", "omnivore", "egovlp")},
    **{f"ego4d_{name}": f"ego4d_mq_features_{name}" for name in ("slowfast_egovlp", "omnivore_egovlp")},
    "ego4d_slowfast_omnivore_egovlp": "ego4d_mq_features_slowfast_omnivore_egovlp",
}
SET_ASIDE = ASIDE_IN_BOTH | {
    r"dataset\.(json_file|feat_folder|file_prefix|file_ext)": "the user's files, found by name",
}


def said_by(config: Config) -> dict[str, Any]:
    """What a config says, in the authors' keys."""
    data, head, train, test = config.data, config.head, config.train, config.test
    resized = data.sampling == "resize"
    assert head.actionformer_norms
    assert head.num_convs == 2
    assert (head.name, head.tower_width, head.tower_kernel) == ("actionformer", None, 3)
    assert test.topk_per_level
    assert (train.ema_decay, train.ema_warmup, train.cosine, train.precision) == (0.999, False, "step", "fp32")
    assert train.stop_epoch == train.schedule_epochs == train.eval_from_epoch
    assert data.test_whole_videos or resized
    assert data.class_agnostic == bool(test.external_scores) == (not test.per_class) == resized
    stride = data.feature_stride_frames
    assert stride is not None
    assert data.margin_steps == (data.offset_steps if resized else data.offset_frames / stride)
    return in_actionformers_keys(config) | {
        "dataset.default_fps": data.fixed_fps,
        "dataset.feat_stride": stride,
        "dataset.force_upsampling": resized,
        "dataset.num_frames": stride if resized and data.offset_steps == 0.5 else 2 * data.offset_frames,
        "model.backbone_type": "convTransformer",
        **{f"model.{part}_dim": head.width for part in ("fpn", "head")},
        "model.embd_dim": list(head.source_widths) or head.width,
        "model.fpn_start_level": 0,
        "model.head_kernel_size": 3,
        "model.n_head": head.heads,
        "model.n_mha_win_size": head.attn_window if isinstance(head.attn_window, int) else list(head.attn_window),
        "model.use_rel_pe": False,
        "model_name": "LocPointTransformer",
        "train_cfg.dropout": head.proj_dropout,
    }


@pytest.mark.parametrize("name", RECIPES)
def test_each_key(name):
    config = find_recipe(RECIPES[name]).config
    published = FACTS["shared"] | FACTS[name]
    wanted = {
        key: value for key, value in published.items() if not any(re.fullmatch(aside, key) for aside in SET_ASIDE)
    }
    assert said_by(config) == wanted
    assert from_dict(config.to_dict()) == config


def test_all_are_there_and_nothing_is_set_aside_in_vain():
    assert set(FACTS) - {"shared"} == set(RECIPES)
    keys = {key for facts in FACTS.values() for key in facts}
    assert all(any(re.fullmatch(aside, key) for key in keys) for aside in SET_ASIDE)


def test_what_their_configs_leave_to_their_data_sets():
    """Thresholds of the metric, and of Ego4D the recall."""
    tenths = (0.1, 0.2, 0.3, 0.4, 0.5)
    for name, recipe in RECIPES.items():
        test = find_recipe(recipe).config.test
        wanted = {"thumos": (0.3, 0.4, 0.5, 0.6, 0.7), "epic": tenths, "ego4d": tenths}.get(name.split("_")[0])
        assert test.tiou == wanted or (name.startswith("anet") and test.tiou[::9] == (0.5, 0.95))
        assert test.recall_topk == ((1,) if name.startswith("ego4d") else ())
    assert HeadConfig().filter_similar_gt
