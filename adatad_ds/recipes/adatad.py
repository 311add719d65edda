"""AdaTAD's 51 published experiments as data (arXiv 2311.17241), every field as in the authors' settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from adatad_ds.config.schema import Config
from adatad_ds.recipes.adatad_families import (
    GIANT,
    activitynet_config,
    at_224,
    charades_config,
    ego4d_config,
    epic_config,
    giant_1536,
    multithumos_config,
    thumos_config,
    tuning_variants,
    with_data_paths,
    with_side_adapters,
)
from adatad_ds.recipes.class_order import PUBLISHED_ORDERS, ClassOrder


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named experiment.

    Attributes:
        config: everything that the run needs except the location of the user's data.
        dataset: a name known to `adatad-ds prepare-data`; "" for generated videos.
        summary: one line.
        published_map: average mAP in % as reported in the paper; None: not reported.
        published_top1: top-1 accuracy in % as reported in the paper; None: not reported.
        published_id: the authors' name for it; None: not theirs.
    """

    config: Config
    dataset: str
    summary: str
    published_map: float | None = None
    published_top1: float | None = None
    published_id: str | None = None

    @property
    def class_order(self) -> ClassOrder | None:
        """Classes of the published checkpoint's logits; None: unknown, or not published."""
        return PUBLISHED_ORDERS.get(self.dataset) if self.published_id else None


# Per backbone: adapter learning rate and published average mAP (tables 1 and 3) with adapters inside the backbone.
_THUMOS14 = {
    "videomae_s": (2e-4, 69.03),
    "videomae_b": (1e-4, 71.14),
    "videomae_l": (1e-4, 73.51),
    "videomae_h": (1e-4, 74.95),
    GIANT: (1e-4, 75.06),
}
_ACTIVITYNET = {"videomae_s": 37.81, "videomae_b": 38.35, "videomae_l": 39.21, "videomae_h": 39.31, GIANT: 39.77}
_MULTITHUMOS = {
    "videomae_s": (4e-4, 40.77),
    "videomae_b": (4e-4, 42.76),
    "videomae_l": (4e-4, 45.15),
    "videomae_h": (1e-4, 46.02),
    GIANT: (1e-4, 46.74),
}
_CHARADES = {
    "videomae_s": (4e-4, 24.14),
    "videomae_b": (4e-4, 27.99),
    "videomae_l": (2e-4, 32.31),
    "videomae_h": (1e-4, 33.94),
    GIANT: (8e-5, 37.56),
}


def published_recipes() -> Iterator[tuple[str, Recipe]]:
    """All of them, and recipes for two datasets without settings by AdaTAD's authors."""
    yield from _thumos14()
    yield from _activitynet()
    yield from _multithumos()
    yield from _charades()
    yield from _epic()
    yield from _ego4d()
    for dataset, external in (("hacs", "data/hacs/classifier.json"), ("fineaction", "")):
        config = with_data_paths(activitynet_config("videomae_b", lr_adapter=1e-4), dataset)
        config = replace(
            config,
            data=replace(config.data, class_agnostic=bool(external)),
            test=replace(config.test, per_class=not external, external_scores=external, external_layout="tcanet"),
        )
        yield f"{dataset}_videomae_b", Recipe(config=config, dataset=dataset, summary="ActivityNet's settings")


def _thumos14() -> Iterator[tuple[str, Recipe]]:
    for backbone, (rate, score) in _THUMOS14.items():
        adapted = thumos_config(backbone, lr_adapter=rate)
        for variant, (config, suffix, summary) in tuning_variants(adapted).items():
            yield (
                f"thumos14_{backbone}{suffix}",
                Recipe(
                    config=config,
                    dataset="thumos14",
                    summary=summary,
                    published_map=score if variant == "adapter" else None,
                    published_id=f"thumos/thumos_{backbone}_768x1_160_{variant}",
                ),
            )
    small = with_side_adapters(thumos_config("videomae_s", lr_adapter=2e-4), blocks=range(6, 12), ratio=0.25)
    yield (
        "thumos14_videomae_s_side",
        Recipe(
            config=small,
            dataset="thumos14",
            summary="side adapters",
            published_id="thumos/thumos_videomae_s_768x1_160_side",
        ),
    )
    giant = giant_1536(thumos_config(GIANT, lr_adapter=2e-4))
    giant = replace(giant, train=replace(giant.train, stop_epoch=50, eval_from_epoch=37))
    yield (
        "thumos14_videomaev2_g_1536",
        Recipe(
            config=giant,
            dataset="thumos14",
            summary="1 B parameters x 1536 frames",
            published_map=77.07,
            published_id="thumos/thumos_videomaev2_g_768x2_224_adapter",
        ),
    )
    yield (
        "thumos14_videomaev2_g_1536_side",
        Recipe(
            config=with_side_adapters(giant, blocks=range(20, 40), ratio=0.125),
            dataset="thumos14",
            summary="side adapters, 1536 frames",
            published_map=74.65,
            published_id="thumos/thumos_videomaev2_g_768x2_224_side_2e-4",
        ),
    )


def _activitynet() -> Iterator[tuple[str, Recipe]]:
    for backbone, score in _ACTIVITYNET.items():
        adapted = activitynet_config(backbone, lr_adapter=1e-4)
        for variant, (config, suffix, summary) in tuning_variants(adapted, dropout_of_full=0.2).items():
            yield (
                f"activitynet_{backbone}{suffix}",
                Recipe(
                    config=config,
                    dataset="activitynet",
                    summary=f"{summary}, class-agnostic",
                    published_map=score if variant == "adapter" else None,
                    published_id=f"anet/anet_{backbone}_192x4_160_{variant}",
                ),
            )
    large = at_224(activitynet_config("videomae_l", lr_adapter=8e-5))
    large = replace(
        large,
        data=replace(large.data, class_agnostic=False),
        head=replace(large.head, width=512, reg_loss_weight=1.0),
        train=replace(large.train, schedule_epochs=20, eval_from_epoch=10),
        test=replace(large.test, sigma=0.75, per_class=True, external_scores=""),
    )
    yield (
        "activitynet_videomae_l_224_classes",
        Recipe(
            config=large,
            dataset="activitynet",
            summary="its own classes, no classifier",
            published_id="anet/anet_videomae_l_192x4_224_adapter_cls",
        ),
    )
    giant = at_224(activitynet_config(GIANT, lr_adapter=1e-4))
    giant = replace(giant, backbone=replace(giant.backbone, adapter_blocks=tuple(range(20, 40))))
    for classifier, score in {"": None, "_internvideo": None, "_internvideo2": 42.90}.items():
        layout = "plain" if classifier else "cuhk"
        config = replace(giant, test=replace(giant.test, external_layout=layout))
        yield (
            f"activitynet_videomaev2_g_224{classifier}",
            Recipe(
                config=config,
                dataset="activitynet",
                summary=f"class-agnostic{', classes by ' + classifier[1:] if classifier else ''}",
                published_map=score,
                published_id=f"anet/anet_videomaev2_g_192x4_224_adapter{classifier}",
            ),
        )


def _multithumos() -> Iterator[tuple[str, Recipe]]:
    for backbone, (rate, score) in _MULTITHUMOS.items():
        yield (
            f"multithumos_{backbone}",
            Recipe(
                config=multithumos_config(backbone, lr_adapter=rate),
                dataset="multithumos",
                summary="adapters",
                published_map=score,
                published_id=f"multi_thumos/multithumos_{backbone}_768x1_160_adapter",
            ),
        )
    yield (
        "multithumos_videomaev2_g_1536",
        Recipe(
            config=giant_1536(multithumos_config(GIANT, lr_adapter=1e-4)),
            dataset="multithumos",
            summary="1 B parameters x 1536 frames",
            published_map=48.73,
            published_id="multi_thumos/multithumos_videomaev2_g_768x2_224_adapter",
        ),
    )


def _charades() -> Iterator[tuple[str, Recipe]]:
    for backbone, (rate, score) in _CHARADES.items():
        yield (
            f"charades_{backbone}",
            Recipe(
                config=charades_config(backbone, lr_adapter=rate),
                dataset="charades",
                summary="adapters",
                published_map=score,
                published_id=f"charades/charades_{backbone}_512x1_160_adapter",
            ),
        )


def _epic() -> Iterator[tuple[str, Recipe]]:
    for task, label_smoothing, score in (("noun", 0.1, 29.44), ("verb", 0.0, 29.69)):
        yield (
            f"epic_{task}_videomae_l",
            Recipe(
                config=epic_config(task, label_smoothing=label_smoothing),
                dataset=f"epic_{task}",
                summary=f"{task}s; weights tuned on EPIC clips",
                published_map=score,
                published_id=f"epic/epic_videomae_l_ft_768x8_160_adapter_{task}",
            ),
        )


def _ego4d() -> Iterator[tuple[str, Recipe]]:
    yield (
        "ego4d_mq_videomae_l",
        Recipe(
            config=ego4d_config(),
            dataset="ego4d_mq",
            summary="7200 frames; InternVideo's weights",
            published_map=28.41,
            published_id="ego4d/ego4d_internvideo_1800x4_192_adapter_lr4e-4",
        ),
    )
