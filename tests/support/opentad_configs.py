"""OpenTAD's configs of AdaTAD and of ActionFormer on features: read, and said in the same keys by ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from adatad_ds.config.schema import Config

ASIDE_IN_BOTH = {  # keys, as patterns, that no config of ours says, and why
    r"(annotation_path|block_list|class_map|data_path|dataset_type|resize_length|window_size)": (
        "variables of the config files; what they set is below"
    ),
    r"dataset\.(train|test)\.(ann_file|block_list|data_path|subset_name)": "the user's files; our names of subsets",
    r"evaluation\.(ground_truth_filename|subset)": "the user's files; our names of subsets",
    r"post_processing\.external_cls\.path": "the user's file",
    r"(inference\..+|post_processing\.save_dict|work_dir)": "what is written, and where",
    r"workflow\.(checkpoint|logging)_interval": "how often it is saved and said",
}
DEFAULTS_IN_BOTH = {  # of OpenTAD's code, for keys that only some of its configs give
    "dataset.test.fps": -1,
    "dataset.train.fps": -1,
    "evaluation.top_k": [],
    "model.projection.input_pdrop": 0.0,
    "model.rpn_head.filter_similar_gt": True,
    "model.rpn_head.loss_weight": 1.0,
    "post_processing.pre_nms_thresh": 0.001,
    "post_processing.pre_nms_topk": 2000,
}
CLASSIFIERS = {"cuhk": "CUHKANETClassifier", "plain": "StandardClassifier", "tcanet": "TCANetHACSClassifier"}


def in_opentads_keys(config: Config, *, in_channels: int, num_classes: int) -> dict[str, Any]:
    """What a config says of all but the data and the backbone, in the tree of the authors' keys."""
    head, train, test = config.head, config.train, config.test
    external = {"type": CLASSIFIERS[test.external_layout], "topk": test.external_topk}
    return {
        "model": {
            "type": "ActionFormer",
            "projection": {
                "type": "Conv1DTransformerProj",
                "in_channels": in_channels,
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
        "optimizer": {"type": "AdamW", "lr": train.lr_head, "weight_decay": train.weight_decay, "paramwise": True},
        "scheduler": {
            "type": "LinearWarmupCosineAnnealingLR",
            "warmup_epoch": train.warmup_epochs,
            "max_epoch": train.schedule_epochs,
        },
        "workflow": {
            "end_epoch": train.stop_epoch,
            "val_start_epoch": train.eval_from_epoch,
            "val_eval_interval": train.eval_every,
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
            **({"external_cls": external} if test.external_scores else {}),
        },
        "evaluation": {"type": "mAP", "tiou_thresholds": test.tiou, "top_k": test.recall_topk},
    }


def differences(
    pinned: Mapping[str, Any], said: Mapping[str, Any], *, aside: Mapping[str, str], defaults: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """By key: the authors' value and ours, where they differ; None where only one side knows the key.

    Args:
        pinned: the authors' config, flat.
        said: what ours says, as a tree.
        aside: patterns of keys that are not compared, and why.
        defaults: of the authors' code.
    """
    ours = dict(flat(json.loads(json.dumps(said))))
    known = {**defaults, "workflow.end_epoch": pinned["scheduler.max_epoch"]}
    theirs = {key: value for key, value in known.items() if key in ours}
    theirs |= {key: value for key, value in pinned.items() if not any(re.fullmatch(pattern, key) for pattern in aside)}
    return {
        key: (theirs.get(key), ours.get(key))
        for key in ours | theirs
        if key not in ours or key not in theirs or ours[key] != theirs[key]
    }


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`model.type` and so on, with their values; lists stay whole."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def resolved(path: Path) -> dict[str, Any]:
    """A config of OpenTAD, run, over its `_base_` files: dicts are merged, `_delete_` replaces."""
    names: dict[str, Any] = {}
    exec(path.read_text(), names)
    bases = names.get("_base_", [])
    tree: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        # actionformer/charades_videomae_l.py has one ../ too many
        found = path.parent / base
        tree = merged(tree, resolved(found if found.exists() else path.parent / base.removeprefix("../")))
    own = {key: value for key, value in names.items() if not key.startswith("_") and not isinstance(value, ModuleType)}
    return merged(tree, own)


def merged(base: Any, change: Mapping[str, Any]) -> dict[str, Any]:
    """`change` over `base`."""
    tree = dict(base) if isinstance(base, Mapping) and not change.get("_delete_") else {}
    for key, value in change.items():
        if key != "_delete_":
            tree[key] = merged(tree.get(key), value) if isinstance(value, Mapping) else value
    return tree
