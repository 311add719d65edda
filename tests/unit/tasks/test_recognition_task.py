"""Recognition as a task: the loss of a global batch however it is split, the classifier, configs, bad input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from adatad_ds.config import loading
from adatad_ds.config.schema import BackboneConfig, Config, DataConfig, RecognitionConfig
from adatad_ds.data.clip_dataset import IGNORED, ClipBatch
from adatad_ds.data.preparation.needs import wanted
from adatad_ds.data.preparation.preparation import prepare_videos
from adatad_ds.distributed.world import World
from adatad_ds.errors import ConfigError, DataError
from adatad_ds.models.factory import build_recogniser
from adatad_ds.models.recogniser import Classifier
from adatad_ds.models.sample_noise import SampleNoise
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.tasks.recognition import RecognitionTask, open_clips
from adatad_ds.training.optim import parameter_groups
from tests.support.videos import write_video

CLASSES = ("ascend", "bend", "climb")
ALONE = World(rank=0, size=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    for subset in ("train", "test"):
        for label in CLASSES:
            (root / subset / label).mkdir(parents=True)
            for number in range(2):
                write_video(root / subset / label / f"{number}.mp4", frames=12, width=40, height=32)
    return root


def config_of(root, **changes) -> Config:
    settings = RecognitionConfig(
        train_list=str(root / "train"), test_list=str(root / "test"), frames=4, sampling="uniform", dropout=0.0
    )
    data = DataConfig(videos=str(root), resolution=32, short_side_before_crop=32, augment=(), workers=0)
    backbone = BackboneConfig(name="vit_tiny_patch16_224", tuning="aim")
    return Config(data=data, backbone=backbone, recognition=replace(settings, **changes))


class Logits:
    """An engine whose model gives logits that are known already."""

    def __init__(self, *logits: torch.Tensor) -> None:
        self.accumulation = len(logits)
        self.losses: list[torch.Tensor] = []
        self._logits = iter(logits)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        return next(self._logits)[:, None]

    def backward(self, loss: torch.Tensor) -> None:
        self.losses.append(loss)

    def step(self) -> None:
        pass


def batch_of(labels: list[int], frames: torch.Tensor) -> ClipBatch:
    count = len(labels)
    return ClipBatch(
        frames=frames,
        labels=torch.tensor(labels),
        videos=["video"] * count,
        sample_ids=list(range(count)),
        seeds=torch.arange(count),
        errors=[None] * count,
        damage=[None] * count,
        padding=[False] * count,
    )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_shares_of_micro_batches_add_up_to_the_mean_cross_entropy(folders, label_smoothing):
    task = RecognitionTask.from_config(config_of(folders, label_smoothing=label_smoothing), world=ALONE)
    labels = [0, 2, IGNORED, 1, IGNORED, IGNORED]  # the last micro batch has no label at all
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    frames = torch.zeros(6, 1, 4, 32, 32, 3, dtype=torch.uint8)
    batches = [batch_of(labels[i : i + 2], frames[i : i + 2]) for i in (0, 2, 4)]
    engine = Logits(*logits.split(2))
    agreed, sums = task.step(engine, batches)
    expected = F.cross_entropy(logits, torch.tensor(labels), label_smoothing=label_smoothing)
    assert agreed == batches
    torch.testing.assert_close(sums[0], expected)
    torch.testing.assert_close(sum(engine.losses), 3 * expected)  # of which the engine takes the mean


def test_the_classifier_drops_by_sample():
    head = Classifier(width=64, num_classes=5, dropout=0.5)
    torch.nn.init.normal_(head.classifier.weight)
    features = torch.ones(2, 64, 3)

    def run(*seeds: int) -> torch.Tensor:
        return head(features, SampleNoise(seeds=seeds, device=torch.device("cpu")))

    torch.testing.assert_close(run(1, 2)[1], run(7, 2)[1])
    assert (run(1, 2)[0] - run(7, 2)[0]).abs().max() > 0.1
    torch.testing.assert_close(head(features, None), features[..., 0] @ head.classifier.weight.T)


def test_views_are_recognised_one_by_one(folders):
    torch.manual_seed(0)
    model = build_recogniser(config_of(folders), num_classes=3).eval()
    frames = torch.randint(0, 256, (2, 3, 4, 32, 32, 3), dtype=torch.uint8)
    logits = model(frames)
    assert logits.shape == (2, 3, 3)
    torch.testing.assert_close(model(frames[1:, 2:])[0, 0], logits[1, 2], rtol=1e-4, atol=1e-5)


def test_a_video_transformer_recognises_too(folders):
    config = replace(config_of(folders, frames=16), backbone=BackboneConfig(name="tiny"))
    config = loading.from_dict(config.to_dict())
    model = build_recogniser(config, num_classes=3)
    logits = model(torch.zeros(1, 1, 16, 32, 32, 3, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    logits.sum().backward()
    assert logits.shape == (1, 1, 3)


def test_everything_that_learns_is_in_a_group(folders):
    """Also the image model's final norm and the temporal embedding; biases and norms decay as the rest."""
    config = config_of(folders)
    model = build_recogniser(config, num_classes=3)
    groups = {group["name"]: group for group in parameter_groups(model, config.train)}
    learning = [p for p in model.parameters() if p.requires_grad]
    assert sum(len(group["params"]) for group in groups.values()) == len(learning)
    assert any(p is model.backbone.temporal_embedding for p in groups["adapter"]["params"])
    assert [p.shape for p in groups["backbone"]["params"]] == [(192,), (192,)]
    assert groups["backbone"]["base_lr"] == config.train.lr_adapter
    assert any(p is model.head.classifier.bias for p in groups["head"]["params"])
    assert groups.keys() == {"backbone", "adapter", "head"}


def test_data_comes_as_the_config_says(folders, tmp_path):
    assert [len(open_clips(config_of(folders), training=training)) for training in (True, False)] == [6, 6]
    listing = tmp_path / "train.txt"
    listing.write_text("train/bend/0.mp4 bend\ntrain/climb/0.mp4 climb\n")
    config = config_of(folders, train_list=str(listing), test_clips=2, test_crops=3)
    listed = replace(config.recognition, test_list=str(listing))
    task = RecognitionTask.from_config(replace(config, recognition=listed), world=ALONE)
    assert task.classes == ("bend", "climb")
    assert task.test_data.views == 6
    excluded = replace(config, data=replace(config.data, exclude=("train/bend/0.mp4",)))
    assert [video.name for video in open_clips(excluded, training=True).videos] == ["train/climb/0.mp4"]
    listed = tmp_path / "exclude.txt"
    listed.write_text("train/bend/0\nelsewhere\n")
    excluded = replace(config, data=replace(config.data, exclude_file=str(listed)))
    assert [video.name for video in open_clips(excluded, training=True).videos] == ["train/climb/0.mp4"]
    names = tmp_path / "names.txt"
    names.write_text("climb\nbend\nwalk\n")
    named = replace(config, recognition=replace(config.recognition, class_names=str(names)))
    assert [video.label for video in open_clips(named, training=True).videos] == [1, 0]


@pytest.mark.slow
@pytest.mark.parametrize("listed", [False, True])
def test_prepared_videos_give_the_same_clips(folders, tmp_path, listed):
    """Byte by byte if lossless: random clips and fixed views, of lists and of folders of classes, in their folders."""
    out, config = tmp_path / "out", config_of(folders, test_clips=2, test_crops=3, sampling="dense", stride=2)
    config = replace(
        config, data=replace(config.data, resolution=16, short_side_before_crop=20, augment=("random_resized_crop",))
    )
    if listed:
        for part in ("train", "test"):
            lines = [f"{part}/{label}/{number}.mp4 {label}\n" for label in CLASSES for number in range(2)]
            (tmp_path / f"{part}.txt").write_text("".join(lines))
        lists = {f"{part}_list": str(tmp_path / f"{part}.txt") for part in ("train", "test")}
        config = replace(config, recognition=replace(config.recognition, **lists))
        there = replace(config, data=replace(config.data, videos=str(out)))
    else:
        lists = {f"{part}_list": str(out / part) for part in ("train", "test")}
        there = replace(config, recognition=replace(config.recognition, **lists))
    lines: list[str] = []
    way = {"out": out, "codec": "lossless", "quality": None, "workers": 1, "report": lines.append}
    assert prepare_videos([wanted(config)], **way) == 0
    assert lines[-1].count(str(out)) == (1 if listed else 2)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.mkv")}
    assert len(before) == 4 * len(CLASSES)
    assert prepare_videos([wanted(config)], **way) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    for training in (True, False):
        theirs, ours = (open_clips(each, training=training) for each in (config, there))
        assert len(ours) == 2 * len(CLASSES)
        for number in range(len(ours)):
            expected, found = theirs[3, number], ours[3, number]
            assert (found.error, found.label) == (None, expected.label)
            assert torch.equal(found.frames, expected.frames)
    larger = replace(there, data=replace(there.data, short_side_before_crop=24))
    with pytest.raises(DataError, match=r"6 of 6 prepared videos cannot be used: .* 20 pixels, but 24 are wanted"):
        open_clips(larger, training=True)


def test_what_cannot_be_read(folders, tmp_path):
    (tmp_path / "train.txt").write_text("train/bend/0.mp4 bend\n")
    config = config_of(folders, train_list=str(tmp_path / "train.txt"))
    with pytest.raises(DataError, match="folders of unknown classes: ascend"):
        RecognitionTask.from_config(config, world=ALONE)  # the test set has classes that nothing is learnt of
    (folders / "test" / "dance").mkdir(exist_ok=True)
    try:
        with pytest.raises(DataError, match=r"no video .* of 1 classes: dance"):
            open_clips(config_of(folders), training=False)
    finally:
        (folders / "test" / "dance").rmdir()
    nowhere = replace(config, data=replace(config.data, videos=""))
    with pytest.raises(ConfigError, match=r"data\.videos must name the folder"):
        open_clips(nowhere, training=True)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["backbone.clip_frames=3"], "recognition.frames = 8 is not a multiple of 3, the frames of a clip"),
        (["backbone.tuning=tia", "backbone.clip_frames=4"], "attends to itself alone"),
        (["backbone.name=videomae_s", "backbone.weights=null"], "which videomae_s is not"),
        (["recognition.dropout=1.5"], r"recognition\.dropout must be in \[0, 1\)"),
        (["recognition.frmaes=4"], "recognition has no key 'frmaes'; did you mean 'frames'"),
        (["parallel.temporal=2"], "recognition does not split clips"),
        (["recognition.test_crops=2"], "must be one of 1, 3"),
    ],
)
def test_settings_that_make_no_sense(assignments, message):
    with pytest.raises(ConfigError, match=message):
        loading.override(find_recipe("kinetics400_clip_b16_8").config, assignments)


def test_a_detection_recipe_has_no_section_for_it():
    with pytest.raises(ConfigError, match="this is a detection recipe"):
        loading.override(find_recipe("quickstart").config, ["recognition.frames=8"])


def test_every_recipe_is_read_back():
    for name in ("kinetics400_clip_l14_32", "quickstart_aim", "thumos14_clip_b16", "quickstart"):
        config = find_recipe(name).config
        assert loading.from_dict(config.to_dict()) == config
