"""Every key of OpenTAD's configs of ActionFormer on features that are recipes, against the resolved recipe.

opentad_published.json holds these configs, resolved, in OpenTAD's own keys, without dataset.val, on which a loss is
printed. A key that is neither said by our config nor set aside by name fails, and so does a difference that is not
listed. The published average mAP is that of its configs/actionformer/README.md.
`python -m tests.unit.recipes.test_opentad_published CHECKOUT` writes the file anew.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from adatad_ds.config.loading import from_dict, override
from adatad_ds.config.schema import Config
from adatad_ds.models.factory import build_detector
from adatad_ds.models.shapes import shapes_only
from adatad_ds.recipes.catalog import find_recipe
from tests.support.opentad_configs import ASIDE_IN_BOTH, DEFAULTS_IN_BOTH, differences, flat, in_opentads_keys, resolved

FACTS = Path(__file__).with_name("opentad_published.json")
SOURCE = "OpenTAD 3dd7b03, configs/actionformer"
CONFIGS = json.loads(FACTS.read_text(encoding="utf-8"))["configs"]
RECIPES = {  # of each config, our recipe and its published average mAP
    "charades_videomae_l": ("charades_features_videomae_l", 26.04),
    "ego4d_internvideo": ("ego4d_mq_features_internvideo", 27.52),
    "fineaction_videomae_h": ("fineaction_features_videomae_h", 19.32),
    "fineaction_videomaev2_g": ("fineaction_features_videomaev2_g", 19.62),
    "hacs_slowfast": ("hacs_features_slowfast", 37.71),
}
DIFFERENT = {  # where ours is chosen to differ; recipes/opentad.py says why
    "ego4d_internvideo": {f"dataset.{subset}.fps": (-1, 30.0) for subset in ("train", "test")},
}
SET_ASIDE = ASIDE_IN_BOTH | {
    r"pad_len": "another variable of the config files",
    r"dataset\.(train|test)\.class_map": "of the annotations",
    r"post_processing\.nms\.iou_threshold": "of hard suppression",
    r"solver\.(\w+\.num_workers|(val|test)\.batch_size)": "how it is computed",
    r"workflow\.val_loss_interval": "how often a loss on dataset.val is printed",
}
DEFAULTS = DEFAULTS_IN_BOTH | {
    **{f"dataset.{subset}.class_agnostic": False for subset in ("train", "test")},
    "model.rpn_head.prior_generator.use_offset": False,
}
DATASETS = {"charades": "EpicKitchens", "ego4d_mq": "Ego4D", "fineaction": "Anet", "hacs": "Anet"}
CLASSES = {"charades": 157, "ego4d_mq": 110}  # the others' configs are class-agnostic
LEAST_SHARE = 0.01  # AnetResizeDataset's threshold where filter_gt is set


def said_by(config: Config, dataset: str) -> dict[str, Any]:
    """What a config says, in the tree of the authors' keys."""
    data, train, test = config.data, config.train, config.test
    resized, agnostic = data.sampling == "resize", data.class_agnostic
    assert not config.head.actionformer_norms
    assert (train.ema_warmup, train.cosine, train.warmup_start, train.cosine_end) == (False, "step", 0, 0)
    assert train.precision == "fp32"
    assert (test.topk_per_level, test.min_duration_steps) == (False, 0)
    assert agnostic == bool(test.external_scores)
    assert (data.offset_steps, data.margin_steps) == (0, 0)
    channels = config.backbone.feature_channels
    assert isinstance(channels, int)
    said = in_opentads_keys(config, in_channels=channels, num_classes=1 if agnostic else CLASSES[dataset])
    grid = {"resize_length": data.window_size}
    if not resized:
        grid = {"feature_stride": data.feature_stride_frames, "fps": data.fixed_fps or -1}
        grid |= {"offset_frames": data.offset_frames, "sample_stride": 1}
    shared = {**grid, "class_agnostic": agnostic}
    trunc = {"type": "RandomTrunc", "trunc_len": data.window_size, "trunc_thresh": data.trunc_thresh}
    # AnetPaddingDataset leaves out actions outside the features, which never count here.
    training = {
        "type": f"{DATASETS[dataset]}{'Resize' if resized else 'Padding'}Dataset",
        "filter_gt": data.min_action_share == LEAST_SHARE or data.test_whole_videos,
        **shared,
        "pipeline": _pipeline(resized, trunc | {"crop_ratio": data.crop_ratio}, keys=["gt_segments", "gt_labels"]),
    }
    testing = {"filter_gt": False, "test_mode": True, **shared}
    if resized:
        testing |= {"type": training["type"], "pipeline": _pipeline(resized, None, keys=[])}
    elif data.test_whole_videos:
        padding = {"type": "Padding", "length": data.window_size}
        testing |= {"type": training["type"], "pipeline": _pipeline(resized, padding, keys=[])}
    else:
        testing |= {
            "type": f"{DATASETS[dataset]}SlidingDataset",
            "window_size": data.window_size,
            "window_overlap_ratio": data.test_window_overlap,
            "pipeline": _pipeline(resized, {"type": "SlidingWindowTrunc", "with_mask": True}, keys=[]),
        }
    return said | {"dataset": {"train": training, "test": testing}}


def _pipeline(resized: bool, cut: dict[str, Any] | None, *, keys: list[str]) -> list[dict[str, Any]]:
    """What becomes of a video's features, `cut` to a window."""
    return [
        {"type": "LoadFeats", "feat_format": "npy"},
        {"type": "ConvertToTensor", "keys": ["feats", *keys]},
        *([{"type": "ResizeFeat", "tool": "torchvision_align"}] if resized else []),
        *([cut] if cut else []),
        {"type": "Rearrange", "keys": ["feats"], "ops": "t c -> c t"},
        {"type": "Collect", "inputs": "feats", "keys": ["masks", *keys]},
    ]


def differing(pinned: dict[str, Any], config: Config, dataset: str) -> dict[str, tuple[Any, Any]]:
    """See `differences`."""
    return differences(pinned, said_by(config, dataset), aside=SET_ASIDE, defaults=DEFAULTS)


@pytest.mark.parametrize("name", RECIPES)
def test_each_key(name):
    recipe, average = RECIPES[name]
    found = find_recipe(recipe)
    assert differing(CONFIGS[name], found.config, found.dataset) == DIFFERENT.get(name, {})
    assert found.published_map == average
    assert found.config.data.skip_missing == bool(CONFIGS[name]["dataset.train.block_list"])
    assert from_dict(found.config.to_dict()) == found.config
    with shapes_only():
        build_detector(found.config, num_classes=3)


def test_what_is_noticed():
    """A key that nobody knows, and values that differ."""
    pinned, recipe = CONFIGS["hacs_slowfast"], find_recipe("hacs_features_slowfast")
    unknown = pinned | {"model.neck.start_level": 1}
    assert differing(unknown, recipe.config, "hacs") == {"model.neck.start_level": (1, None)}
    other = override(recipe.config, ["train.weight_decay=0.05", "test.external_topk=2"])
    assert differing(pinned, other, "hacs") == {
        "optimizer.weight_decay": (0.03, 0.05),
        "post_processing.external_cls.topk": (3, 2),
    }


def test_all_are_there_and_nothing_is_set_aside_or_assumed_in_vain():
    assert set(CONFIGS) == set(RECIPES)
    keys = {key for config in CONFIGS.values() for key in config}
    assert not [aside for aside in SET_ASIDE if not any(re.fullmatch(aside, key) for key in keys)]
    assert not [key for key in DEFAULTS if all(key in config for config in CONFIGS.values())]


def write_facts(checkout: Path) -> None:
    """Write opentad_published.json from OpenTAD."""
    lines = []
    for name in RECIPES:
        config = resolved(checkout / f"configs/actionformer/{name}.py")
        del config["dataset"]["val"]
        facts = json.dumps(dict(flat(config))).replace('"t c-> c t"', '"t c -> c t"')  # the same, written in two ways
        lines.append(f"  {json.dumps(name)}: {facts}")
    FACTS.write_text(f'{{"source": "{SOURCE}", "configs": {{\n' + ",\n".join(lines) + "}}\n", encoding="utf-8")


if __name__ == "__main__":
    write_facts(Path(sys.argv[1]))
