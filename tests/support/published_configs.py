"""What the configs of ActionFormer's code and of TriDet's, which began as a copy of it, say in the same keys."""

from __future__ import annotations

from typing import Any

from adatad_ds.config.schema import Config

ASIDE_IN_BOTH = {  # keys, as patterns, that recipes need not say, and why
    r"(dataset_name|train_split|val_split)": "our names of datasets and subsets",
    r"dataset\.num_classes": "of the annotations",
    r"loader\.num_workers": "how it is computed",
    r"model\.max_buffer_len_factor": "whole videos may have any length here",
    r"opt\.(momentum|schedule_gamma|schedule_steps)": "of other optimizers and schedules",
    r"test_cfg\.iou_threshold": "of hard suppression",
    r"test_cfg\.ext_score_file": "the user's file",
    r"train_cfg\.head_empty_cls": "an initial bias of classes without training data; filled in by their code",
}


def in_actionformers_keys(config: Config) -> dict[str, Any]:
    """What a config says, in the keys that mean the same in both."""
    data, head, train, test = config.data, config.head, config.train, config.test
    channels = config.backbone.feature_channels
    return {
        "dataset.crop_ratio": list(data.crop_ratio or ()),
        "dataset.downsample_rate": 1,
        "dataset.input_dim": list(channels) if isinstance(channels, tuple) else channels,
        "dataset.max_seq_len": data.window_size,
        "dataset.trunc_thresh": data.trunc_thresh,
        "loader.batch_size": train.global_batch,
        "model.backbone_arch": list(head.arch),
        "model.embd_kernel_size": 3,
        **{f"model.{part}_with_ln": True for part in ("embd", "fpn", "head")},
        "model.fpn_type": "identity",
        "model.head_num_layers": head.num_convs + 1,
        "model.regression_range": [list(levels) for levels in head.regression_range],
        "model.scale_factor": 2,
        "model.use_abs_pe": head.abs_pos_embed,
        "opt.epochs": train.schedule_epochs - train.warmup_epochs,
        "opt.learning_rate": train.lr_head,
        "opt.schedule_type": "cosine",
        "opt.type": "AdamW",
        "opt.warmup": train.warmup_epochs > 0,
        "opt.warmup_epochs": train.warmup_epochs,
        "opt.weight_decay": train.weight_decay,
        "test_cfg.duration_thresh": test.min_duration_steps,
        "test_cfg.max_seg_num": test.max_per_video,
        "test_cfg.min_score": test.min_score,
        "test_cfg.multiclass_nms": test.per_class,
        "test_cfg.nms_method": {"gaussian": "soft"}[test.suppression],
        "test_cfg.nms_sigma": test.sigma,
        "test_cfg.pre_nms_thresh": test.pre_nms_thresh,
        "test_cfg.pre_nms_topk": test.pre_nms_topk,
        "test_cfg.voting_thresh": test.voting_thresh,
        "train_cfg.center_sample": "radius",
        "train_cfg.center_sample_radius": head.center_radius,
        "train_cfg.clip_grad_l2norm": train.grad_clip,
        "train_cfg.cls_prior_prob": head.cls_prior,
        "train_cfg.droppath": head.drop_path,
        "train_cfg.init_loss_norm": head.loss_normalizer,
        "train_cfg.label_smoothing": head.label_smoothing,
        "train_cfg.loss_weight": head.reg_loss_weight,
    }
