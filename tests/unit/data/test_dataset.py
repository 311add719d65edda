"""Samples and loaders on real files: reproducible for any split over ranks and workers, and never stuck."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from adatad_ds.config.schema import DataConfig
from adatad_ds.data import loader
from adatad_ds.data.batch import Sample, collate
from adatad_ds.data.decoding import frames
from adatad_ds.data.loader import LOOK_AFTER_WORKERS_SEC, TrainBatches, make_test_loader, make_train_loader
from adatad_ds.data.window_dataset import WindowDataset
from adatad_ds.errors import ConfigError, DataError
from tests.support.videos import frame_numbers, write_video

read_frames = partial(frames.read_frames, scaling="antialias")

LENGTHS = {"a": 90, "b": 40, "c": 130, "d": 64, "e": 30}  # frames; c and e are the test subset's
FPS = 10


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    folder = tmp_path_factory.mktemp("dataset")
    database = {}
    for name, length in LENGTHS.items():
        write_video(folder / f"{name}.mp4", frames=length, fps=FPS, width=88, height=48)
        database[name] = {
            "subset": "validation" if name in "ce" else "training",
            "duration": length / FPS,
            "annotations": [{"segment": [0.5, 2.0], "label": "run"}, {"segment": [2.2, 2.9], "label": "jump"}],
        }
    (folder / "annotations.json").write_text(json.dumps({"database": database}))
    return DataConfig(
        annotations=str(folder / "annotations.json"),
        videos=str(folder),
        window_size=16,
        feature_stride_frames=2,
        resolution=32,
        short_side_before_crop=40,
        workers=0,
    )


def changed(config: DataConfig, **changes) -> DataConfig:
    return replace(config, **changes)


def with_videos(config: DataConfig, folder: Path, **contents: bytes | None) -> DataConfig:
    """The same data in another folder, some files with other contents."""
    for name in LENGTHS:
        content = contents.get(name, (Path(config.videos) / f"{name}.mp4").read_bytes())
        (folder / f"{name}.mp4").write_bytes(content or b"")
    return changed(config, videos=str(folder))


def fingerprint(sample_frames: torch.Tensor, segments: torch.Tensor, labels: torch.Tensor, seed: int) -> tuple:
    return sample_frames.numpy().tobytes(), segments.numpy().tobytes(), tuple(labels.tolist()), seed


def of_sample(sample: Sample) -> tuple:
    return fingerprint(sample.frames, sample.segments_grid, sample.labels, sample.seed)


@pytest.mark.slow
def test_training_sample(config: DataConfig):
    data = WindowDataset.for_training(config, seed=3, repeats=5)
    assert len(data) == 15
    assert data.classes == ("jump", "run")
    assert [video.name for video in data.videos] == ["a", "b", "d"]
    for sample_id in range(15):
        sample = data[0, sample_id]
        assert sample.frames.shape == (16, 32, 32, 3)
        assert sample.frames.dtype == torch.uint8
        assert sample.valid.shape == (16,)
        assert sample.valid.any()
        assert sample.video == data.videos[sample_id % 3].name
        assert sample.error is None
        assert len(sample.segments_grid) == len(sample.labels) >= 1
        assert 0 <= sample.seed < 2**63


def test_samples_depend_on_seed_epoch_and_id_only(config: DataConfig):
    def draw(seed: int, epoch: int, sample_id: int) -> tuple:
        return of_sample(WindowDataset.for_training(config, seed=seed, repeats=9)[epoch, sample_id])

    reference = draw(0, 0, 0)
    torch.manual_seed(99)
    np.random.seed(99)
    assert draw(0, 0, 0) == reference
    assert len({reference, draw(1, 0, 0), draw(0, 1, 0), draw(0, 0, 3)}) == 4
    assert len({one[3] for one in (reference, draw(1, 0, 0), draw(0, 1, 0), draw(0, 0, 3))}) == 4


def test_test_windows_show_the_frames_they_name(config: DataConfig):
    """The numbers drawn into the frames agree with the window's seconds."""
    data = WindowDataset.for_testing(changed(config, resolution=48))
    expected = [("c", start) for start in (0, 16, 32, 48, 64, 80, 96, 98)] + [("e", 0)]
    assert len(data) == len(expected)
    for index, (name, start) in enumerate(expected):
        sample = data[0, index]
        assert sample.video == name
        assert round(sample.grid.to_sec(0.0) * FPS) == start
        assert sample.grid.step_sec == pytest.approx(0.2)
        numbers = np.minimum(start + 2 * np.arange(16), LENGTHS[name] - 2)
        whole = read_frames(Path(config.videos) / f"{name}.mp4", numbers, short_side=48, backend="pyav")
        assert frame_numbers(whole, width=88).tolist() == (numbers & 31).tolist()  # 5 squares fit into 88 pixels
        np.testing.assert_array_equal(sample.frames.numpy(), whole[:, :, 20:68])
    assert data[0, 8].valid.tolist() == [True] * 15 + [False]
    assert data[0, 0].valid.all()


def test_resize_sampling(config: DataConfig):
    resized = changed(config, sampling="resize", feature_stride_frames=None)
    data = WindowDataset.for_testing(resized)
    assert len(data) == 2
    sample = data[0, 1]
    assert sample.valid.all()
    np.testing.assert_allclose(sample.segments_grid, np.array([[0.5, 2.0], [2.2, 2.9]]) / 3 * 16, rtol=1e-6)
    assert len(WindowDataset.for_training(resized, seed=0, repeats=2)[0, 4].labels) == 2


def test_unreadable_training_video_is_replaced(config: DataConfig, tmp_path: Path):
    broken = with_videos(config, tmp_path, b=b"no video at all")
    data = WindowDataset.for_training(broken, seed=0, repeats=4)
    for sample_id in (1, 4, 7, 10):
        sample = data[0, sample_id]
        assert sample.error is not None
        assert "b.mp4: " in sample.error
        assert "\n" not in sample.error
        assert sample.video in ("a", "d")
        assert sample.sample_id == sample_id
        assert of_sample(sample) == of_sample(data[0, sample_id])
    assert {data[0, sample_id].video for sample_id in range(1, 12, 3)} == {"a", "d"}
    assert data[0, 0].error is None
    shared = WindowDataset.for_training(broken, seed=0, frames=slice(8))[0, 1]  # other ranks would not know
    assert "b.mp4: " in shared.error
    assert (shared.video, len(shared.frames), shared.valid.any().item()) == ("b", 8, False)


def test_the_metric_has_actions_as_published_and_training_what_is_in_the_video(config: DataConfig, tmp_path: Path):
    tree = json.loads(Path(config.annotations).read_text())
    for video in tree["database"].values():
        video["annotations"].append({"segment": [1.0, 999.0], "label": "run"})
    (tmp_path / "annotations.json").write_text(json.dumps(tree))
    beyond = changed(config, annotations=str(tmp_path / "annotations.json"))
    for data, as_published in (
        (WindowDataset.for_training(beyond, seed=0), False),
        (WindowDataset.for_testing(beyond), True),
    ):
        for video in data.videos:
            assert video.actions[-1].end_sec == (999.0 if as_published else video.duration_sec)


def test_all_training_videos_unreadable(config: DataConfig, tmp_path: Path):
    broken = with_videos(config, tmp_path, a=None, b=None, d=None)
    sample = WindowDataset.for_training(broken, seed=0)[0, 1]
    assert "b.mp4: the file is empty" in sample.error
    assert not sample.valid.any()
    assert sample.segments_grid.shape == (0, 2)


def test_unreadable_test_video_has_no_valid_step(config: DataConfig, tmp_path: Path):
    data = WindowDataset.for_testing(with_videos(config, tmp_path, e=b"no video at all"))
    assert len(data) == 9
    sample = data[0, 8]
    assert (sample.video, sample.valid.any().item(), sample.padding) == ("e", False, False)
    assert (sample.segments_grid.shape, sample.labels.shape) == ((0, 2), (0,))
    assert "e.mp4: " in sample.error
    assert data[0, 0].error is None


def test_reencoded_video_is_refused(config: DataConfig, tmp_path: Path):
    """Half the frame rate of the annotation: every time would be wrong, silently."""
    other = with_videos(config, tmp_path)
    write_video(tmp_path / "a.mp4", frames=45, fps=5, width=88, height=48)
    write_video(tmp_path / "d.mp4", frames=30, fps=10, width=88, height=48)  # only cut short: fine
    tree = json.loads(Path(config.annotations).read_text())
    for name in "ad":
        tree["database"][name]["frame"] = LENGTHS[name]
    (tmp_path / "annotations.json").write_text(json.dumps(tree))
    data = WindowDataset.for_training(changed(other, annotations=str(tmp_path / "annotations.json")), seed=0)
    error = data[0, 0].error
    assert "45 frames at 5 per second" in error
    assert "90 at 10" in error
    assert data[0, 2].error is None


def test_videos_without_actions_are_left_out(config: DataConfig, tmp_path: Path):
    tree = json.loads(Path(config.annotations).read_text())
    tree["database"]["b"]["annotations"] = []
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(tree))
    data = WindowDataset.for_training(changed(config, annotations=str(path)), seed=0)
    assert [video.name for video in data.videos] == ["a", "d"]
    assert data.reports == ["1 videos of 'training' without actions left out (b)"]
    for name in "ad":
        tree["database"][name]["annotations"] = []
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match="has an action to train on"):
        WindowDataset.for_training(changed(config, annotations=str(path)), seed=0)


def test_short_actions_are_left_out_of_training_and_videos_that_have_no_others(config: DataConfig, tmp_path: Path):
    tree = json.loads(Path(config.annotations).read_text())
    tree["database"]["b"]["annotations"] = [{"segment": [1.0, 1.2], "label": "run"}]  # 5 % of it
    tree["database"]["c"]["annotations"].append({"segment": [1.0, 1.2], "label": "run"})
    (tmp_path / "annotations.json").write_text(json.dumps(tree))
    changes = changed(config, annotations=str(tmp_path / "annotations.json"), min_action_share=0.05)
    data = WindowDataset.for_training(changes, seed=0)
    assert [video.name for video in data.videos] == ["a", "d"]
    tested = {video.name: len(video.actions) for video in WindowDataset.for_testing(changes).videos}
    assert tested == {"c": 3, "e": 2}


def epoch_keys(ranks: int, micro: int, *, epoch: int = 0, samples: int = 50, start_step: int = 0) -> list[list]:
    """Each global batch's keys, put together from all ranks' micro batches."""
    steps: list[list] = []
    for rank in range(ranks):
        batches = TrainBatches(
            num_samples=samples, global_batch=8, data_rank=rank, data_ranks=ranks, micro_batch=micro, seed=1
        )
        accumulation = 8 // (ranks * micro)
        keys = list(batches.batches(epoch, start_step))
        assert all(len(one) == micro for one in keys)
        for step in range(len(keys) // accumulation):
            if rank == 0:
                steps.append([])
            steps[step] += chain.from_iterable(keys[step * accumulation : (step + 1) * accumulation])
    return steps


def test_global_batches_do_not_depend_on_the_split():
    reference = epoch_keys(1, 8)
    assert len(reference) == 6
    assert len({key for step in reference for key in step}) == 48
    for ranks, micro in ((1, 1), (2, 1), (2, 4), (4, 2), (8, 1)):
        assert epoch_keys(ranks, micro) == reference
    assert epoch_keys(2, 2, start_step=4) == reference[4:]
    other = epoch_keys(1, 8, epoch=1)
    assert [i for step in other for _, i in step] != [i for step in reference for _, i in step]


def test_steps_between_cross_epochs():
    batches = TrainBatches(num_samples=10, global_batch=4, data_rank=1, data_ranks=2, micro_batch=1, seed=0)
    assert batches.steps_per_epoch == 2
    whole = list(batches.between(0, 6))
    assert whole == [keys for epoch in range(3) for keys in batches.batches(epoch, 0)]
    assert list(batches.between(3, 5)) == whole[6:10]
    assert len(batches.between(3, 5)) == 4
    assert list(batches.between(6, 6)) == []


def test_impossible_batches():
    assert (
        TrainBatches(num_samples=4, global_batch=4, data_rank=0, data_ranks=1, micro_batch=1, seed=0).steps_per_epoch
        == 1
    ), "an epoch of one step"
    with pytest.raises(ConfigError, match=r"3 samples.*global_batch=4"):
        TrainBatches(num_samples=3, global_batch=4, data_rank=0, data_ranks=1, micro_batch=1, seed=0)
    with pytest.raises(ConfigError, match=r"global_batch=4 is not a multiple of 3 data ranks"):
        TrainBatches(num_samples=9, global_batch=4, data_rank=0, data_ranks=3, micro_batch=1, seed=0)


@pytest.mark.parametrize(("windows", "ranks", "batch"), [(7, 2, 2), (1, 4, 1), (8, 4, 3), (0, 2, 1), (9, 1, 4)])
def test_test_shards_are_equal_and_complete(windows: int, ranks: int, batch: int):
    shards = [loader.test_shard(windows, batch=batch, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert len({tuple(len(ids) for ids in shard) for shard in shards}) == 1
    ids = [index for shard in shards for one in shard for index in one if index is not None]
    assert ids == list(range(windows))
    assert sum(len(one) for shard in shards for one in shard) < windows + ranks


def read_epoch(config: DataConfig, *, workers: int, ranks: int, micro: int) -> dict[int, tuple]:
    found = {}
    for rank in range(ranks):
        data = WindowDataset.for_training(config, seed=5, repeats=3)
        batches = TrainBatches(
            num_samples=len(data), global_batch=4, data_rank=rank, data_ranks=ranks, micro_batch=micro, seed=5
        )
        loader = make_train_loader(
            data, batches=batches.between(2, 4), config=changed(config, workers=workers), pin_memory=False
        )
        for batch in loader:
            assert batch.frames.shape == (micro, 16, 32, 32, 3)
            for i, sample_id in enumerate(batch.sample_ids):
                seed = int(batch.seeds[i])
                found[sample_id] = fingerprint(batch.frames[i], batch.segments[i], batch.labels[i], seed)
    return found


@pytest.mark.slow
def test_epoch_through_workers_is_reproducible(config: DataConfig):
    reference = read_epoch(config, workers=0, ranks=1, micro=4)
    assert len(reference) == 8
    assert read_epoch(config, workers=2, ranks=1, micro=1) == reference
    assert read_epoch(config, workers=1, ranks=2, micro=2) == reference


def test_loading_leaves_the_global_random_state(config: DataConfig):
    state = torch.get_rng_state()
    data = WindowDataset.for_testing(config)
    next(iter(make_test_loader(data, config=config, batch=1, rank=0, ranks=1, pin_memory=False)))
    assert torch.equal(torch.get_rng_state(), state)


def test_test_loader_pads_the_last_rank(config: DataConfig):
    data = WindowDataset.for_testing(config)
    seen: list[tuple[str, int]] = []
    for rank in range(2):
        loader = make_test_loader(data, config=config, batch=2, rank=rank, ranks=2, pin_memory=False)
        assert len(loader) == 3
        batches = list(loader)
        assert [len(batch.videos) for batch in batches] == [2, 2, 1]
        flags = [flag for batch in batches for flag in batch.padding]
        assert flags == [False] * (5 - rank) + [True] * rank
        for batch in batches:
            assert not batch.valid[torch.tensor(batch.padding)].any()
            seen += [(v, i) for v, i, pad in zip(batch.videos, batch.sample_ids, batch.padding, strict=True) if not pad]
    assert seen == [*(("c", i) for i in range(8)), ("e", 8)]


class Deadly(WindowDataset):
    """Its worker dies, as it does when memory runs out."""

    def _load(self, key, out):
        os.kill(os.getpid(), signal.SIGKILL)
        return super()._load(key, out)


class Stuck(WindowDataset):
    """Its worker never answers, as with a storage that hangs."""

    def _load(self, key, out):
        time.sleep(300)
        return super()._load(key, out)


class Slow(WindowDataset):
    """Its first sample takes longer than the loader waits between two looks at its workers."""

    def _load(self, key, out):
        if key == (0, 0):
            time.sleep(LOOK_AFTER_WORKERS_SEC + 2)
        return super()._load(key, out)


@pytest.mark.slow
def test_slow_samples_are_waited_for(config: DataConfig):
    slow = Slow.for_testing(config)
    loader = make_test_loader(slow, config=changed(config, workers=2), batch=1, rank=0, ranks=1, pin_memory=False)
    assert [batch.sample_ids for batch in loader] == [[index] for index in range(len(slow))]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "word"), [(Deadly, "exited unexpectedly|killed by signal"), (Stuck, "timed out")])
def test_dead_and_stuck_workers_end_in_one_paragraph(config: DataConfig, kind: type[WindowDataset], word: str):
    tested = changed(config, workers=1, worker_timeout_sec=200 if kind is Deadly else 15)
    began = time.monotonic()
    with pytest.raises(DataError, match=word) as caught:
        list(make_test_loader(kind.for_testing(tested), config=tested, batch=1, rank=0, ranks=1, pin_memory=False))
    assert time.monotonic() - began < (60 if kind is Deadly else 120)  # death is noticed long before the time-out
    assert "data.workers" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_collate_keeps_everything(config: DataConfig):
    data = WindowDataset.for_training(config, seed=0)
    samples = [data[2, 0], data[2, 1]]
    batch = collate(samples)
    assert batch.seeds.tolist() == [sample.seed for sample in samples]
    assert batch.seeds.dtype == torch.int64
    assert batch.grids == [sample.grid for sample in samples]
    assert batch.errors == [None, None]
    assert batch.padding == [False, False]
    assert torch.equal(batch.frames[1], samples[1].frames)
    assert torch.equal(batch.valid[0], samples[0].valid)


class ToldByWorker(WindowDataset):
    """Its batches say of which samples the frames were in shared memory before they left the worker."""

    @staticmethod
    def collate(samples):
        return [sample.frames.is_shared() for sample in samples]


def test_frames_of_a_batch_are_written_where_they_stay(config: DataConfig):
    """Each frame of a batch exists once: no copy to collate it."""
    data = WindowDataset.for_training(config, seed=0)
    keys = [(2, 0), (2, 1), None]
    samples = data.__getitems__(keys)
    assert collate(samples[:2]).frames.data_ptr() == samples[0].frames.data_ptr()
    whole = collate(samples)  # padding is not in its place
    assert whole.frames.data_ptr() != samples[0].frames.data_ptr()
    for found, key in zip(whole.frames, keys, strict=True):
        assert torch.equal(found, data[key].frames)
    backwards = collate(samples[1::-1])
    assert torch.equal(backwards.frames[1], samples[0].frames)
    assert torch.equal(collate([samples[0], data[2, 1]]).frames, whole.frames[:2])


@pytest.mark.slow
def test_frames_of_a_batch_are_not_copied_on_their_way_from_a_worker(config: DataConfig):
    told = ToldByWorker.for_testing(config)
    loader = make_test_loader(told, config=changed(config, workers=1), batch=2, rank=0, ranks=1, pin_memory=False)
    assert next(iter(loader)) == [True, True]


def numbers_shown(data: WindowDataset, sample_id: int) -> tuple[np.ndarray, Sample]:
    """The number that each frame of a test window carries, and the window; the crop shows the middle of a frame."""
    sample = data[0, sample_id]
    frames = np.stack(list(data._read(data._fixed_window(sample_id), short_side=48)))
    return frame_numbers(frames, width=88), sample


@pytest.mark.parametrize("fixed_fps", [None, 4.0, 5.0, 20.0, 30.0])
def test_strides_count_frames_at_a_fixed_rate(config: DataConfig, fixed_fps: float | None):
    data = WindowDataset.for_testing(changed(config, fixed_fps=fixed_fps))
    rate = fixed_fps or FPS
    for sample_id in range(len(data)):
        numbers, sample = numbers_shown(data, sample_id)
        assert sample.grid.step_sec == pytest.approx(2 / rate)
        seconds = sample.grid.to_sec(np.arange(16.0))[: int(sample.valid.sum())]
        exact = seconds * FPS
        low, high = (np.floor(exact), np.ceil(exact)) if fixed_fps else (exact, exact)
        last = LENGTHS[sample.video] - 1
        either = [np.minimum(np.rint(frames), last).astype(int) & 31 for frames in (low, high)]
        shown = numbers[: len(seconds)]
        assert np.all((shown == either[0]) | (shown == either[1]))
        assert np.abs(np.minimum(exact, last) - last).min() < FPS / rate * 2 or sample_id + 1 < len(data)


@pytest.mark.parametrize("sampling", ["random_trunc", "resize"])
def test_uneven_frames_are_read_by_their_times(config: DataConfig, tmp_path: Path, sampling: str):
    """Variable frame rate: what is shown at a step's time, not the frame of that number."""
    times = [*(0.1 * i for i in range(20)), *(2.0 + 0.4 * i for i in range(10))]
    write_video(tmp_path / "c.mkv", frames=30, width=88, height=48, times=times)
    entry = {"subset": "validation", "duration": 6.0, "annotations": [{"segment": [1.0, 3.0], "label": "run"}]}
    (tmp_path / "annotations.json").write_text(json.dumps({"database": {"c": entry}}))
    changes = {"sampling": "resize", "feature_stride_frames": None} if sampling == "resize" else {}
    places = {"annotations": str(tmp_path / "annotations.json"), "videos": str(tmp_path)}
    data = WindowDataset.for_testing(changed(config, **places, **changes))
    numbers, sample = numbers_shown(data, 0)
    middle = 0.5 if sampling == "resize" else 0.0
    seconds = sample.grid.to_sec(np.arange(16.0) + middle)
    half_frame = 0.5 / 5 if sampling == "resize" else 0.0  # 30 frames in 6 s; frames stand at their part's centre
    nearest = np.abs((seconds - half_frame)[:, None] - np.array(times)).argmin(axis=1)
    valid = sample.valid.numpy()
    assert numbers[valid].tolist() == (nearest & 31)[valid].tolist()


def test_videos_are_shortened_but_not_lengthened(config: DataConfig):
    """As where an ensemble's other model reads features, of which a video may have fewer or more."""
    data = WindowDataset.for_testing(config)  # of c and e, with 65 and 15 steps
    before = [(video, grid, int(data[0, index].valid.sum())) for index, (video, grid) in enumerate(data.test_grids())]
    data.shorten([80, 20])
    assert before == [(v, grid, int(data[0, index].valid.sum())) for index, (v, grid) in enumerate(data.test_grids())]
    data.shorten([17, 14])
    ends = [(video, grid, int(data[0, index].valid.sum())) for index, (video, grid) in enumerate(data.test_grids())]
    assert [video for video, _, _ in ends] == ["c", "c", "e"]
    assert [grid.to_sec(float(valid)) for _, grid, valid in ends if grid] == pytest.approx([3.2, 3.4, 2.8])


def test_class_agnostic(config: DataConfig):
    agnostic = changed(config, class_agnostic=True)
    data = WindowDataset.for_training(agnostic, seed=0)
    assert data.classes == ("action",)
    sample = data[0, 0]
    assert set(sample.labels.tolist()) == {0}
    testing = WindowDataset.for_testing(agnostic, classes=("action",))
    assert testing.classes == ("action",)
    assert {action.label for video in testing.videos for action in video.actions} == {"run", "jump"}
