"""When preparing videos pays, against frames counted one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adatad_ds.config.schema import Config, DataConfig, TrainConfig
from adatad_ds.planning.reading import PREPARING, decoded_frames, reading_advice, reading_plan
from adatad_ds.recipes.catalog import find_recipe


def test_frames_from_the_first_to_the_last_of_a_window():
    data = DataConfig(window_size=8, feature_stride_frames=4, frames_per_feature=2)  # 16 frames, every 2nd
    assert [decoded_frames(frames, data, fps=30) for frames in (10, 32, 100)] == [10, 32, 32]
    assert decoded_frames(100, replace(data, fixed_fps=15.0), fps=30) == 64
    assert decoded_frames(100, replace(data, sampling="resize", feature_stride_frames=None), fps=30) == 100


def test_plan_names_the_longest_videos_for_which_it_pays():
    """At the border, what it costs to prepare is what is saved."""
    config = Config(data=DataConfig(window_size=10, feature_stride_frames=4), train=TrainConfig(repeats=3))
    views = config.train.stop_epoch * config.train.repeats
    frames = views * 40 * 3 / 4 / PREPARING
    [line] = reading_plan(config)
    assert line.startswith("reading: a sample decodes 40 file frames and uses 10 of them")
    assert f"fewer than {frames:,.0f} frames (each is read {views} times)" in line
    assert reading_plan(Config(data=DataConfig(feature_stride_frames=1))) == []


@pytest.mark.parametrize(("epochs", "verdict"), [(3, "this does not pay off"), (4, "this pays off")])
def test_check_data_says_whether_it_pays(epochs, verdict):
    """Each video is one window; a 4th of its frames is used; preparing costs as much as decoding it 2.7 times."""
    config = Config(data=DataConfig(window_size=100, feature_stride_frames=4))
    config = replace(config, train=replace(config.train, stop_epoch=epochs, repeats=1))
    [line] = reading_advice(config, train_frames=[400.0] * 5, test_frames=[], fps=30, evaluations=1)
    assert f"decodes {400 * 5 * epochs:,} file frames, {epochs}.0 times as many as there are" in line
    assert "keeps 25% of the frames, at 182 pixels" in line
    assert line.endswith(verdict)


def test_evaluations_read_what_test_windows_share_again():
    """Half of each window: twice; whole videos that are resized: once."""
    for changes, times in (({"test_window_overlap": 0.5}, 2), ({"sampling": "resize"}, 1)):
        config = Config(data=DataConfig(window_size=100, feature_stride_frames=4, **changes))
        config = replace(config, train=replace(config.train, stop_epoch=1, repeats=1))
        [line] = reading_advice(config, train_frames=[400.0], test_frames=[400.0, 600.0], fps=30, evaluations=3)
        assert f"decodes {400 + 3 * times * 1000:,} file frames" in line


def test_published_recipes_are_planned():
    [line] = reading_plan(find_recipe("thumos14_videomae_s").config)
    assert "a sample decodes 3072 file frames and uses 768 of them" in line
