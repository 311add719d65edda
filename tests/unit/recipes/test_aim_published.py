"""Every setting of AIM's authors against the resolved recipes.

aim_published.json holds their settings under their own names: by file, each key of the configuration as it is
resolved (what all files share stands once); defaults of the libraries that the configurations rest on; and which
recipe is which file's, with what their README's tables say otherwise. A key that is not translated here fails.

With AIM_REPOSITORY naming a clone of github.com/taoyang1122/adapt-image-models, the file is held against it;
`python -m tests.unit.recipes.test_aim_published CLONE` writes the settings anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from adatad_ds.config.schema import BackboneConfig, Config, DataConfig, RecognitionConfig, TestConfig, TrainConfig
from adatad_ds.data.augmentation import operations, transforms
from adatad_ds.models.backbones.adapted_image import AIMTransformer, Bottleneck
from adatad_ds.models.factory import build_recogniser
from adatad_ds.models.shapes import shapes_only
from adatad_ds.recipes.aim import aim_recipes
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.training.optim import parameter_groups

FACTS = Path(__file__).with_name("aim_published.json")
REPOSITORY = os.environ.get("AIM_REPOSITORY", "")
FOLDER = "configs/recognition/vit"

# Keys of the authors' without counterpart: where data, logs and checkpoints lie, and how their program runs.
ELSEWHERE = ("dataset_type", "data_root", "data_root_val", "ann_file_train", "ann_file_val", "ann_file_test")
ELSEWHERE += ("data.workers_per_gpu", "data.val_dataloader.", "data.test_dataloader.", "data.train.", "data.val.")
ELSEWHERE += ("data.test.", "checkpoint_config.", "log_", "dist_params.", "load_from", "resume_from", "workflow")
ELSEWHERE += ("work_dir", "find_unused_parameters", "evaluation.metrics", "fp16", "optimizer_config.coalesce")
ELSEWHERE += ("optimizer_config.bucket_size_mb", "optimizer_config.type", "optimizer_config.use_fp16", "val_pipeline")
ELSEWHERE += ("model.test_cfg.max_testing_views", "model.cls_head.num_classes", "model.train_cfg.blending.num_classes")
FRAME_READING = ("DecordInit", "DecordDecode", "FormatShape", "Collect", "ToTensor")
AUGMENTATIONS = {"RandomResizedCrop": "random_resized_crop", "ColorJitter": "lighting"}

# Fields of ours without counterpart: the user's files, how the work is run, and what other tunings and tasks have.
OURS = {"data.annotations", "data.videos", "data.train_subset", "data.test_subset", "data.classes", "data.exclude"}
OURS |= {"data.exclude_file", "data.min_action_share"}
OURS |= {
    "data.reader",
    "data.augment_on_device",
    "data.workers",
    "data.prefetch",
    "data.worker_timeout_sec",
    "data.max_failed_videos",
}
OURS |= {"data.window_size", "data.frames_per_feature", "data.feature_stride_frames", "data.sampling"}
OURS |= {"data.class_agnostic", "data.fixed_fps", "data.offset_frames", "data.trunc_thresh", "data.crop_ratio"}
OURS |= {"data.features", "data.skip_missing", "data.offset_steps", "data.margin_steps", "data.test_whole_videos"}
OURS |= {
    "backbone.feature_channels",
    "backbone.cache_features",
    "data.test_window_overlap",
    "backbone.weights",
    "backbone.adapter_blocks",
}
OURS |= {f"backbone.lora_{key}" for key in ("rank", "alpha", "targets", "dora")}  # of video transformers
OURS |= {
    "backbone.adapter_kernel",
    "backbone.adapter_dilation",
    "backbone.ladder_dilations",
    "backbone.clips_per_chunk",
}
OURS |= {"backbone.activation_checkpointing", "backbone.activation_memory_gb", "backbone.stored_on_device_gb"}
OURS |= {"train.seed", "train.precision", "train.compile"}
OURS |= {"train.micro_batch", "train.checkpoint_every_steps", "train.keep_checkpoints", "train.compact_checkpoints"}
OURS |= {"train.ema_warmup", "train.max_skipped_steps", "train.hang_timeout_sec", "train.stop_timeout_sec"}
OURS |= {"train.log_every_steps", "train.eval_pictures"}
OURS |= {"recognition.train_list", "recognition.test_list", "recognition.class_names"}
OURS |= {"recognition.reset_classifier"} | {f"test.{field.name}" for field in fields(TestConfig)}
# Fields that the facts below hold together, as rates of parameters or sizes of transformers.
TOGETHER = {"backbone.name", "backbone.pixel_mean", "backbone.pixel_std", "backbone.clip_frames"}
TOGETHER |= {"backbone.tuning", "backbone.aim_adapters", "train.lr_head", "train.lr_adapter", "train.lr_backbone"}
TOGETHER |= {"train.weight_decay", "train.weight_decay_backbone"}


def known() -> dict[str, Any]:
    return json.loads(FACTS.read_text())


def settings_of(recipe: str) -> dict[str, Any]:
    """The authors' settings, under their names, that belong to a recipe."""
    facts = known()
    entry = facts["recipes"][recipe]
    own = facts["configs"][f"{FOLDER}/{entry['config']}"]
    settings = facts["all configs"] | own
    instead = entry.get("instead", {})
    assert instead.keys() <= settings.keys() | {key for other in facts["configs"].values() for key in other}
    return {key: value for key, value in (settings | instead).items() if value != "absent"}


def facts_of_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The authors' settings by our names; every one of them is used."""
    left = {key: value for key, value in settings.items() if not key.startswith(ELSEWHERE)}

    def take(key: str, *default: Any) -> Any:
        return left.pop(key, *default)

    def same(*keys: str) -> Any:
        values = [take(key) for key in keys]
        assert all(value == values[0] for value in values), keys
        return values[0]

    for key, value in {
        "model.type": "Recognizer3D",
        "model.cls_head.type": "I3DHead",
        "model.cls_head.spatial_type": "avg",
        "model.test_cfg.average_clips": "prob",
        "optimizer.type": "AdamW",
        "optimizer_config.update_interval": 1,
        "lr_config.warmup": "linear",
        "lr_config.warmup_by_epoch": True,
        "train_pipeline.SampleFrames.num_clips": 1,
        "train_pipeline.Resize#2.keep_ratio": False,
        "test_pipeline.SampleFrames.test_mode": True,
        "test_pipeline.Flip.flip_ratio": 0,
    }.items():
        assert take(key) == value, key
    assert take("optimizer.betas") == list(torch.optim.AdamW([torch.zeros(1)]).param_groups[0]["betas"])

    train, test = take("train_pipeline"), take("test_pipeline")
    for pipeline in ("train_pipeline", "test_pipeline"):  # frames are read, normalised and packed alike
        assert take(f"{pipeline}.FormatShape.input_format") == "NCTHW"
        assert take(f"{pipeline}.Normalize.to_bgr") is False
        for key in [key for key in left if key.startswith(tuple(f"{pipeline}.{name}." for name in FRAME_READING))]:
            take(key)
    frames = same("train_pipeline.SampleFrames.clip_len", "test_pipeline.SampleFrames.clip_len")
    uniform = take("train_pipeline.SampleFrames.frame_uniform", False)
    assert take("test_pipeline.SampleFrames.frame_uniform", False) is uniform
    stride = same("train_pipeline.SampleFrames.frame_interval", "test_pipeline.SampleFrames.frame_interval")
    crops = {"CenterCrop": 1, "ThreeCrop": 3}
    (crop,) = (name for name in test if name in crops)
    resolution = same(f"test_pipeline.{crop}.crop_size", "model.input_side")
    assert take("train_pipeline.Resize#2.scale") == [resolution, resolution]
    assert take("test_pipeline.Resize.scale") == [-1, resolution]
    shorter, short_side = take("train_pipeline.Resize.scale")
    assert shorter == -1

    augment = [AUGMENTATIONS[name] for name in train if name in AUGMENTATIONS]
    flips = take("train_pipeline.Flip.flip_ratio")
    if "Imgaug" in train:
        assert take("train_pipeline.Imgaug.transforms") == [
            {"type": "RandAugment", "n": operations.N, "m": operations.M}
        ]
        augment.append("rand_augment_n4_m7")
        assert flips == 0
        flips = known()["libraries"]["imgaug 0.4.0 RandAugment"]["Fliplr"]
    if flips:
        assert flips == transforms.FLIP_PROBABILITY
        augment.append("flip")
    if "RandomErasing" in train:
        assert take("train_pipeline.RandomErasing.probability") == operations.ERASING_PROBABILITY
        augment.append("random_erasing")
    order = [*FRAME_READING[:1], "SampleFrames", "DecordDecode", "Resize", "RandomResizedCrop", "Resize", "Flip"]
    order += [*(name for name in ("Imgaug", "ColorJitter") if name in train), "Normalize"]
    order += [*(["RandomErasing"] if "RandomErasing" in train else []), *FRAME_READING[2:]]
    assert train == order
    assert test == ["DecordInit", "SampleFrames", "DecordDecode", "Resize", crop, "Flip", "Normalize", *train[-3:]]

    width = same("model.backbone.width", "model.cls_head.in_channels")
    assert take("lr_config.policy") == "CosineAnnealing"
    assert take("model.train_cfg.blending.type", "LabelSmoothing") == "LabelSmoothing"
    rate, decay = take("optimizer.lr"), take("optimizer.weight_decay")
    facts = {
        "recognition.frames": frames,
        "clip frames": take("model.backbone.num_frames"),
        "recognition.sampling": "uniform" if uniform else "dense",
        "recognition.stride": None if uniform else stride,
        "recognition.test_clips": take("test_pipeline.SampleFrames.num_clips"),
        "recognition.test_crops": crops[crop],
        "recognition.dropout": take("model.cls_head.dropout_ratio"),
        "recognition.label_smoothing": take("model.train_cfg.blending.smoothing", 0.0),
        "recognition.mixup_alpha": 0.0,
        "recognition.cutmix_alpha": 0.0,
        "data.resolution": resolution,
        "data.short_side_before_crop": short_side,
        "data.scaling": "bilinear",
        "data.augment": sorted(augment),
        "patch, width, depth, heads": [
            take("model.backbone.patch_size"),
            width,
            take("model.backbone.layers"),
            take("model.backbone.heads"),
        ],
        "pixel mean": same("train_pipeline.Normalize.mean", "test_pipeline.Normalize.mean"),
        "pixel std": same("train_pipeline.Normalize.std", "test_pipeline.Normalize.std"),
        "of CLIP": take("model.backbone.type") == "ViT_CLIP",
        "backbone.drop_path": take("model.backbone.drop_path_rate"),
        "backbone.adapter_ratio": known()["code"]["mmaction/models/backbones/vit_clip.py"]["Adapter.mlp_ratio"],
        "backbone.aim_joint_scale": take("model.backbone.adapter_scale"),
        "backbone.aim_before_time": take("model.backbone.num_tadapter", 1) == 2,
        "train.global_batch": take("data.videos_per_gpu") * known()["code"]["README.md"]["GPUs"],
        "train.grad_clip": take("optimizer_config.grad_clip") or 0.0,
        "train.ema_decay": 0.0,
        "train.warmup_epochs": take("lr_config.warmup_iters"),
        "train.warmup_start": known()["libraries"]["mmcv 1.4.0 LrUpdaterHook"]["warmup_ratio"],
        "train.cosine_end": float(take("lr_config.min_lr")),  # 0, so that a share of the rate is the rate
        "train.cosine": "epoch" if known()["libraries"]["mmcv 1.4.0 LrUpdaterHook"]["by_epoch"] else "step",
        "train.schedule_epochs": left["total_epochs"],
        "train.stop_epoch": take("total_epochs"),
        "train.repeats": 1,
        "train.eval_from_epoch": left["evaluation.interval"],
        "train.eval_every": take("evaluation.interval"),
        "rates": rates(rate, decay, {key: take(key) for key in [*left] if "custom_keys" in key}),
    }
    assert not left, left
    return facts


def rates(rate: float, decay: float, custom: dict[str, float]) -> dict[str, list[float]]:
    """Learning rate and weight decay of each kind of parameter: of the keys in its name, the longest counts (mmcv)."""
    factors: dict[str, dict[str, float]] = {}
    for path, factor in custom.items():
        *_, key, what = path.split(".")
        factors.setdefault(key, {})[what] = factor
    by_name = {}
    for name in NAMES:
        keys = sorted((key for key in factors if key in name), key=lambda key: (-len(key), key))
        own = factors[keys[0]] if keys else {}
        by_name[name] = [rate * own.get("lr_mult", 1.0), decay * own.get("decay_mult", 1.0)]
    return by_name


NAMES = {  # the authors' names of what learns, and ours of the same
    "backbone.temporal_embedding": "backbone.temporal_embedding",
    "backbone.transformer.resblocks.0.T_Adapter.D_fc1.weight": "backbone.adapters.0.temporal.fc1.weight",
    "backbone.transformer.resblocks.0.T_Adapter.D_fc1.bias": "backbone.adapters.0.temporal.fc1.bias",
    "backbone.transformer.resblocks.0.S_Adapter.D_fc2.weight": "backbone.adapters.0.spatial.fc2.weight",
    "backbone.transformer.resblocks.0.MLP_Adapter.D_fc2.bias": "backbone.adapters.0.joint.fc2.bias",
    "backbone.ln_post.weight": "backbone.vit.norm.weight",
    "backbone.ln_post.bias": "backbone.vit.norm.bias",
    "cls_head.fc_cls.weight": "head.classifier.weight",
    "cls_head.fc_cls.bias": "head.classifier.bias",
}


def facts_of(config: Config) -> dict[str, Any]:
    """What a recipe says of the same."""
    clips = config.recognition
    assert clips is not None
    with shapes_only():
        model = build_recogniser(config, num_classes=7)
    backbone = model.backbone
    assert isinstance(backbone, AIMTransformer)
    assert set(backbone.adapt) == {"temporal", "spatial", "joint"}
    first = backbone.vit.blocks[0]
    of_parameter = {
        id(parameter): [group["base_lr"], group["weight_decay"]]
        for group in parameter_groups(model, config.train)
        for parameter in group["params"]
    }
    tree = config.to_dict()
    ours = {
        f"{section}.{field.name}": tree[section][field.name]
        for section, kind in (
            ("data", DataConfig),
            ("backbone", BackboneConfig),
            ("train", TrainConfig),
            ("test", TestConfig),
            ("recognition", RecognitionConfig),
        )
        for field in fields(kind)
    }
    facts = {key: value for key, value in ours.items() if key not in OURS | TOGETHER}
    return facts | {
        "recognition.stride": clips.stride if clips.sampling == "dense" else None,
        "clip frames": config.clip_frames,
        "data.augment": sorted(config.data.augment),
        "patch, width, depth, heads": [
            backbone.vit.patch,
            backbone.width,
            len(backbone.vit.blocks),
            first.get_submodule("attn").num_heads,
        ],
        "pixel mean": list(backbone.vit.pixel_mean),
        "pixel std": list(backbone.vit.pixel_std),
        "of CLIP": "clip" in config.backbone.name,
        "rates": {theirs: of_parameter[id(model.get_parameter(name))] for theirs, name in NAMES.items()},
    }


def published_recipes() -> list[str]:
    return [name for name, recipe in aim_recipes() if recipe.dataset not in ("", "thumos14")]


def test_each_published_recipe_has_its_configuration():
    facts = known()
    assert list(facts["recipes"]) == published_recipes()
    used = {f"{FOLDER}/{entry['config']}" for entry in facts["recipes"].values()}
    assert used == set(facts["configs"])
    for entry in facts["recipes"].values():
        assert ("instead" in entry) == ("because" in entry)


@pytest.mark.slow
@pytest.mark.parametrize("name", published_recipes())
def test_each_field(name):
    ours, theirs = facts_of(find_recipe(name).config), facts_of_settings(settings_of(name))
    for key in ("pixel mean", "pixel std"):  # the authors' differ from CLIP's own in the third digit
        assert ours.pop(key) == pytest.approx(theirs.pop(key), abs=0.1), key
    rates_of_ours, rates_of_theirs = ours.pop("rates"), theirs.pop("rates")
    for parameter in rates_of_theirs:
        assert rates_of_ours[parameter] == pytest.approx(rates_of_theirs[parameter]), parameter
    assert ours == theirs


def test_a_key_that_is_not_known_fails():
    settings = settings_of("ssv2_clip_b16_8")
    for key in ("train_pipeline.Mixup.alpha", "optimizer.amsgrad", "model.backbone.dropout"):
        with pytest.raises(AssertionError, match=key.replace(".", r"\.")):
            facts_of_settings(settings | {key: 0.2})


def test_defaults_of_code_and_libraries():
    facts = known()
    code, libraries = facts["code"], facts["libraries"]
    jitter = code["mmaction/datasets/pipelines/augmentations.py"]
    assert jitter["ColorJitter.color_space_aug"] is False
    assert jitter["ColorJitter.alpha_std"] == operations.LIGHTING_STD
    assert jitter["ColorJitter.eig_val"] == list(operations.LIGHTING_VALUES)
    assert jitter["ColorJitter.eig_vec"] == [list(row) for row in operations.LIGHTING_VECTORS]
    assert jitter["RandomResizedCrop.area_range"] == list(transforms.CROP_AREA)
    assert jitter["RandomResizedCrop.aspect_ratio_range"] == pytest.approx(transforms.CROP_ASPECT)
    erasing = libraries["timm 0.5.4 RandomErasing"]
    assert [erasing["min_area"], erasing["max_area"]] == pytest.approx(operations.ERASING_AREA)
    assert [erasing["min_aspect"], 1 / erasing["min_aspect"]] == pytest.approx(operations.ERASING_ASPECT)
    assert erasing["mode"] == "const"
    assert (
        tuple(round(value) for value in settings_of("ssv2_clip_b16_8")["train_pipeline.Normalize.mean"])
        == operations.ERASING_COLOUR
    )
    assert libraries["imgaug 0.4.0 RandAugment"]["_M_MAX"] == operations.M_SCALE
    model = build_recogniser(find_recipe("quickstart_aim").config, num_classes=500)
    assert model.head.classifier.weight.std().item() == pytest.approx(
        code["mmaction/models/heads/i3d_head.py"]["I3DHead.init_std"], rel=0.1
    )
    torch.manual_seed(0)
    adapter = Bottleneck(width=512, ratio=0.25, skip=True)
    assert adapter.fc1.weight.std().item() == pytest.approx(
        code["mmaction/models/backbones/vit_clip.py"]["_init_weights.std"], rel=0.02
    )


def test_what_learns():
    """tools/train.py freezes what has none of these in its name; all of NAMES has."""
    words = known()["code"]["tools/train.py"]["learns"]
    assert all(any(word in name for word in words) for name in NAMES)
    model = build_recogniser(find_recipe("quickstart_aim").config, num_classes=4)
    theirs = {"temporal_embedding", "vit.norm.", "head.", "adapters."}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == any(word in name for word in theirs), name


@pytest.mark.skipif(not REPOSITORY, reason="AIM_REPOSITORY names no clone of the authors' repository")
def test_facts_are_the_authors():
    facts = known()
    for path, own in facts["configs"].items():
        assert facts["all configs"] | own == read_config(REPOSITORY, facts["commit"], path), path
    listed = git(REPOSITORY, "ls-tree", "--name-only", facts["commit"], f"{FOLDER}/").split()
    assert {*facts["configs"], *facts["not ours"]} == {*listed}


def git(repository: str, *command: str) -> str:
    return subprocess.run(["git", "-C", repository, *command], capture_output=True, text=True, check=True).stdout


def read_config(repository: str, commit: str, path: str) -> dict[str, Any]:
    """A configuration's settings, flat, with those of the files that it builds on."""
    return json.loads(json.dumps(flat(resolved(repository, commit, path))))


def resolved(repository: str, commit: str, path: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__builtins__": {"dict": dict}}
    exec(git(repository, "show", f"{commit}:{path}"), names)  # assignments of dicts, nothing else is within reach
    del names["__builtins__"]
    tree: dict[str, Any] = {}
    for base in names.pop("_base_", []):
        tree = merged(tree, resolved(repository, commit, os.path.normpath(os.path.join(os.path.dirname(path), base))))
    return merged(tree, names)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    tree = dict(below)
    for key, value in above.items():
        old = tree.get(key)
        tree[key] = merged(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return tree


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """`a.b` to value. Of a pipeline, the names of its steps, and each step's settings below its name."""
    side, width = "input_side", "width"  # the two transformers of the authors name the same differently
    aliases = {"img_size": side, "input_resolution": side, "embed_dim": width, "depth": "layers", "num_heads": "heads"}
    found: dict[str, Any] = {}
    tree = {key: value for key, value in tree.items() if key != "img_norm_cfg"}  # stands in each pipeline

    def walk(path: str, value: Any) -> None:
        if path.startswith("data.") and path.endswith("pipeline"):
            return  # stands as a name of its own
        if path.endswith("pipeline"):
            found[path] = [step["type"] for step in value]
            for index, step in enumerate(value):
                before = sum(other["type"] == step["type"] for other in value[:index])
                name = step["type"] + (f"#{before + 1}" if before else "")
                for key, setting in step.items():
                    if key != "type":
                        found[f"{path}.{name}.{key}"] = setting
        elif isinstance(value, dict):
            for key, inner in value.items():
                key = aliases.get(key, key) if path == "model.backbone" else key
                walk("model.input_side" if key == side else f"{path}.{key}", inner)
        else:
            found[path] = value

    for key, value in tree.items():
        walk(key, value)
    return found


def write_settings(repository: str) -> None:
    """Write the configurations' settings anew; the rest of the file stays."""
    facts = known()
    all_settings = {path: read_config(repository, facts["commit"], path) for path in facts["configs"]}
    first, *rest = all_settings.values()
    shared = {key: value for key, value in first.items() if all(key in o and o[key] == value for o in rest)}
    facts["all configs"] = shared
    facts["configs"] = {
        path: {key: value for key, value in settings.items() if key not in shared}
        for path, settings in all_settings.items()
    }
    parts = []
    for part, value in facts.items():
        if isinstance(value, dict):
            lines = [f"  {json.dumps(key)}: {json.dumps(inner)}" for key, inner in value.items()]
            parts.append(f" {json.dumps(part)}: {{\n" + ",\n".join(lines) + "\n }")
        else:
            parts.append(f" {json.dumps(part)}: {json.dumps(value)}")
    FACTS.write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    write_settings(sys.argv[1])
