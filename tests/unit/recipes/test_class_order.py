"""The classes that a published detector's logits stand for: known, or asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adatad_ds.config.schema import Config
from adatad_ds.errors import ConfigError
from adatad_ds.models.factory import build_detector
from adatad_ds.recipes.catalog import all_recipes, find_recipe
from adatad_ds.recipes.class_order import PUBLISHED_ORDERS, ClassOrder, describe_logits
from adatad_ds.weights.loading import in_published_order
from tests.support.published import published

THUMOS14 = Path(__file__).resolve().parents[3].parent / "shared/data/thumos14.json"
LABELS = ("throw", "take", "open")  # EPIC's verbs 13, 0 and 3
NUMBER_OF_LOGITS = {"thumos14": 20, "epic_verb": 97, "epic_noun": 293}  # of the authors' detectors


def test_every_published_detector_is_spoken_for():
    """Of nine data sets, six are known, one is not, and two have no published detector."""
    published_for = {recipe.dataset for recipe in all_recipes().values() if recipe.published_id}
    assert published_for - PUBLISHED_ORDERS.keys() == {"multithumos"}
    assert PUBLISHED_ORDERS.keys() <= published_for
    assert find_recipe("hacs_videomae_b").class_order is None
    assert find_recipe("epic_verb_videomae_l").class_order is PUBLISHED_ORDERS["epic_verb"]


@pytest.mark.parametrize(("dataset", "number"), NUMBER_OF_LOGITS.items())
def test_named_classes(dataset, number):
    for names in PUBLISHED_ORDERS[dataset].spellings:
        assert len(names) == len(set(names)) == number


def test_epic_counts_by_class_id():
    """EPIC_100_verb_classes.csv and EPIC_100_noun_classes.csv; of the nouns, those of training and validation."""
    names, as_published, unnamed = PUBLISHED_ORDERS["epic_verb"].spellings
    assert (names[0], names[13], names[96]) == ("take", "throw", "unfreeze")
    assert (as_published[13], unnamed[13]) == ("id_013", "verb_13")
    names, as_published, unnamed = PUBLISHED_ORDERS["epic_noun"].spellings
    assert (names[0], names[269], names[270], names[292]) == ("tap", "rubber", "breadcrumb", "extract:vanilla")
    assert (as_published[269], as_published[270], as_published[292]) == ("id_269", "id_271", "id_299")
    assert unnamed[270] == "noun_271"
    assert list(as_published) == sorted(as_published)  # the authors' rule gives the same


@pytest.mark.skipif(not THUMOS14.exists(), reason="shared/ is not beside the repository")
def test_thumos14_sorts_its_labels():
    database = json.loads(THUMOS14.read_text())["database"]
    labels = {action["label"] for video in database.values() for action in video["annotations"]}
    assert PUBLISHED_ORDERS["thumos14"].spellings == (tuple(sorted(labels)),)


def test_names_are_spelled_as_the_annotations_spell_them():
    order = PUBLISHED_ORDERS["epic_verb"]
    assert order.names(LABELS, source="x")[:4] == ("take", "put", "wash", "open")
    assert order.names(["id_003", "id_090"], source="x")[:2] == ("id_000", "id_001")
    assert order.names(["verb_10", "verb_2"], source="x")[10] == "verb_10"
    with pytest.raises(ConfigError, match=r"x detects 97 classes, 'take'.* and 92 more; .* 'juggle', 'swim' are not"):
        order.names(["swim", "juggle", "take"], source="x")
    assert ClassOrder().names(["b", "B", "a"], source="x") == ("B", "a", "b")


def test_the_mapping_is_said():
    assert describe_logits(["run", "jump"]) == "class logits: 0 run, 1 jump"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Of a run over a published detector of 97 classes, with annotations of some verbs by name."""
    folder = tmp_path_factory.mktemp("published")
    quickstart = find_recipe("quickstart").config
    quickstart = replace(quickstart, backbone=replace(quickstart.backbone, weights=None))
    torch.save({"state_dict": published(build_detector(quickstart, num_classes=97), beside=False)}, folder / "e.pth")
    actions = [{"segment": [index, index + 0.5], "label": label} for index, label in enumerate(LABELS)]
    video = {"subset": "validation", "duration": 9.0, "annotations": actions}
    (folder / "annotations.json").write_text(json.dumps({"database": {"v": video}}))
    return replace(
        quickstart,
        data=replace(quickstart.data, annotations=str(folder / "annotations.json")),
        backbone=replace(quickstart.backbone, weights=str(folder / "e.pth")),
    )


def test_classes_are_those_of_the_logits(config: Config):
    verbs = PUBLISHED_ORDERS["epic_verb"]
    assert in_published_order(config, order=verbs).data.classes == verbs.spellings[0]
    assert in_published_order(config, order=ClassOrder()).data.classes == ("open", "take", "throw")
    with pytest.raises(ConfigError, match="'open', 'take', 'throw' are not among them"):
        in_published_order(config, order=PUBLISHED_ORDERS["thumos14"])


def test_an_unknown_order_is_refused(config: Config):
    with pytest.raises(ConfigError, match=r"e\.pth is a detector that does not name its classes.*--classes FILE"):
        in_published_order(config, order=None)


def test_where_the_order_does_not_matter(config: Config):
    weights = "adatad_ds/weights/tiny.safetensors"
    for other in (
        replace(config, data=replace(config.data, classes=LABELS)),
        replace(config, data=replace(config.data, class_agnostic=True)),
        replace(config, head=replace(config.head, reset_classifier=True)),
        replace(config, backbone=replace(config.backbone, weights=weights)),
        replace(config, backbone=replace(config.backbone, weights=None)),
        replace(config, backbone=replace(config.backbone, weights="/nowhere.pth")),
    ):
        assert in_published_order(other, order=None) == other
