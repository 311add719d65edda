"""How long a training is suggested to be, and what it takes here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adatad_ds.config.loading import override
from adatad_ds.config.schema import Config, DataConfig, TrainConfig
from adatad_ds.data.annotations import Video
from adatad_ds.data.inspection.training_length import count_windows, suggest_length
from adatad_ds.data.windows import Timing, WindowSource, windows_for_testing
from adatad_ds.planning.step_time import WindowTime, step_seconds
from adatad_ds.planning.training_advice import UserData, small_machine, suggest_training
from adatad_ds.recipes.catalog import all_recipes, find_recipe

DETECTION = sorted(name for name, recipe in all_recipes().items() if recipe.config.recognition is None)
CPU = torch.device("cpu")


def test_a_recipe_on_as_many_videos_as_it_was_made_for_stays_as_it_is():
    train = find_recipe("thumos14_videomae_s").config.train
    found = suggest_length(train, recipe_videos=200, videos=200, test_windows=500)
    assert (found.global_batch, found.repeats, found.stop_epoch, found.schedule_epochs) == (2, 1, 60, 100)
    assert (found.warmup_epochs, found.ema_decay, found.eval_from_epoch, found.eval_every) == (5.0, 0.999, 40, 2)
    assert found.steps == 6000


@pytest.mark.parametrize(("videos", "published"), [(495, 35), (7985, 20), (10024, 15)])
def test_views_of_a_video_lie_near_the_published(videos: int, published: int):
    found = suggest_length(TrainConfig(stop_epoch=60), recipe_videos=200, videos=videos, test_windows=0)
    assert published / 1.5 < found.repeats * found.stop_epoch < published * 1.5


def test_few_videos_by_hand():
    found = suggest_length(TrainConfig(), recipe_videos=200, videos=21, test_windows=40)
    # 60 * (21 / 200) ** -0.36 = 135 views in 52 steps an epoch, 5 windows of each video
    assert (found.repeats, found.stop_epoch, found.epoch_steps) == (5, 27, 52)
    assert found.steps == 27 * 52
    # the recipe averages over 1000 of 6000 steps, warms up for 5 of 60 epochs, evaluates from the 40th on
    assert found.ema_decay == pytest.approx(1 - 6 / (27 * 52), abs=1e-5)
    assert found.warmup_epochs == pytest.approx(2.25)
    assert (found.schedule_epochs, found.eval_from_epoch) == (45, 18)
    assert found.evaluations == 10  # every epoch from the 18th to the 27th
    # in smaller batches more steps, of which the average reaches over the same share
    halved = suggest_length(TrainConfig(), recipe_videos=200, videos=21, test_windows=40, most_batch=1)
    assert halved.global_batch == 1
    assert halved.ema_decay == pytest.approx(1 - 6 / halved.steps, abs=1e-5)
    assert halved.steps == pytest.approx(2 * found.steps, rel=0.05)


def test_evaluations_do_not_outweigh_the_training():
    few = suggest_length(TrainConfig(), recipe_videos=200, videos=21, test_windows=40)
    many = suggest_length(TrainConfig(), recipe_videos=200, videos=21, test_windows=4000)
    assert many.evaluations == 1 < few.evaluations
    assert many.evaluations * 4000 <= 0.25 * 3 * many.steps * many.global_batch + 4000


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(
    name=st.sampled_from(DETECTION),
    videos=st.integers(1, 50_000),
    test_windows=st.integers(0, 10_000),
    effort=st.sampled_from([0.5, 1.0]),
    recipe_videos=st.sampled_from([None, 24, 200, 10_024]),
)
def test_every_suggestion_can_be_run(
    name: str, videos: int, test_windows: int, effort: float, recipe_videos: int | None
):
    config = find_recipe(name).config
    found = suggest_length(
        config.train, recipe_videos=recipe_videos, videos=videos, test_windows=test_windows, effort=effort
    )
    train = override(config, found.assignments()).train  # raises where it cannot
    assert 1 <= train.global_batch <= videos
    assert found.epoch_steps == videos * train.repeats // train.global_batch >= 1
    assert train.eval_from_epoch <= train.stop_epoch <= train.schedule_epochs
    evaluated = range(train.eval_from_epoch, train.stop_epoch + 1, train.eval_every)
    assert (evaluated[-1], len(evaluated)) == (train.stop_epoch, found.evaluations)


@pytest.mark.parametrize("frames", [1, 255, 256, 257, 1000, 4096])
@pytest.mark.parametrize("sampling", ["random_trunc", "resize"])
def test_test_windows_are_counted_as_they_are_cut(frames: int, sampling: str):
    data = DataConfig(window_size=64, feature_stride_frames=4, sampling=sampling)  # type: ignore[arg-type]
    video = Video("v", "validation", frames / 25, frames, None, ())
    timing = Timing(num_frames=frames, fps=25.0)
    cut = windows_for_testing(WindowSource(video=video, video_index=0, timing=timing, config=data, label_ids={}))
    assert abs(count_windows([frames], data) - len(cut)) <= (sampling != "resize")  # a hop more, where it ends just so
    assert count_windows([frames, frames], data) == 2 * count_windows([frames], data)


@pytest.mark.parametrize("name", DETECTION)
def test_a_small_machine_gets_every_recipe_smaller(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("adatad_ds.planning.training_advice.fp32_is_faster", lambda dtype: True)
    recipe, data = find_recipe(name), UserData(videos=21, test_frames=[500.0] * 5, classes=9)
    whole = suggest_training(recipe, [], data)
    small = suggest_training(recipe, [], data, more=small_machine(recipe, device=CPU), effort=0.5)
    keys = [assignment.partition("=")[0] for assignment in small.assignments]
    assert len(set(keys)) == len(keys)
    assert small.config.data.resolution <= min(112, whole.config.data.resolution)
    assert small.config.train.micro_batch == 1
    assert small.config.train.precision == "fp32"
    assert small.length.steps * small.length.global_batch < whole.length.steps * whole.length.global_batch
    blocks = small.config.backbone.adapter_blocks
    if whole.config.backbone.tuning in ("tia", "side"):
        assert blocks is not None
        assert min(blocks) > 0


def test_time_of_a_step_by_hand():
    times = WindowTime(train_sec=3.0, forward_sec=1.0, read_sec=4.0)
    config = Config()
    config = replace(config, data=replace(config.data, workers=2))
    # on a CPU reading takes the cores that compute: 4 s of one core are 0.5 s of 8
    assert step_seconds(times, windows=2, config=config, cores=8, on_gpu=False) == pytest.approx((7.0, 3.0))
    # a GPU waits for two workers where these are slower: 4 s over 2 are more than a forward pass
    assert step_seconds(times, windows=2, config=config, cores=8, on_gpu=True) == pytest.approx((6.0, 4.0))
    assert np.isfinite(step_seconds(times, windows=0, config=config, cores=1, on_gpu=True)).all()
