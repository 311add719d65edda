"""Recognition's data: lists of labelled videos, sampling, samples on real files, mixing, generated twins."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from adatad_ds.config.schema import DataConfig, RecognitionConfig
from adatad_ds.data import clip_dataset
from adatad_ds.data.augmentation import transforms
from adatad_ds.data.augmentation.mixing import _box, mix, soft_targets
from adatad_ds.data.clip_dataset import IGNORED, ClipDataset, ClipSample
from adatad_ds.data.decoding import frames
from adatad_ds.data.generated.clips import CLASSES, TWINS, generator, make_clip
from adatad_ds.data.labelled_videos import VideoList, listed_videos, read_class_names, read_folders, read_list
from adatad_ds.data.loader import TrainBatches, make_test_loader, make_train_loader
from adatad_ds.errors import DataError
from tests.support.videos import frame_numbers, write_video

center_crop = partial(transforms.center_crop, scaling="antialias")
square_crops = partial(transforms.square_crops, scaling="antialias")
read_frames = partial(frames.read_frames, scaling="antialias")

LENGTHS = {"jump/a": 30, "jump/b": 17, "run/c": 24, "run/d": 3}  # frames
WIDTH, HEIGHT = 88, 48  # 5 squares of the number fit
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    for name, length in LENGTHS.items():
        (root / name).parent.mkdir(exist_ok=True)
        write_video(root / f"{name}.mp4", frames=length, width=WIDTH, height=HEIGHT)
    return root


def empty_files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).touch()
    return root


def listing(root: Path, text: str) -> Path:
    (root / "list.txt").write_text(text)
    return root / "list.txt"


def found(videos: VideoList) -> list[tuple[str, str, int]]:
    return [(video.name, video.path.name, video.label) for video in videos.videos]


# ---- lists -----------------------------------------------------------------------------------------------------------


def test_list_with_indices(tmp_path: Path):
    root = empty_files(tmp_path, "run/a.mp4", "my jump/b c.mp4")
    videos = read_list(listing(tmp_path, "run/a.mp4 2\n\nmy jump/b c.mp4 0\r\n"), root=root)
    assert found(videos) == [("run/a.mp4", "a.mp4", 2), ("my jump/b c.mp4", "b c.mp4", 0)]
    assert videos.classes == ("0", "1", "2")
    named = read_list(tmp_path / "list.txt", root=root, classes=("x", "y", "z"))
    assert (found(named), named.classes) == (found(videos), ("x", "y", "z"))


def test_list_with_names_in_csv(tmp_path: Path):
    root = empty_files(tmp_path, "a.mp4", "b.mp4")
    path = listing(tmp_path, '\ufeffa.mp4,"Putting something, something on it"\nb.mp4, Falling down\n')
    videos = read_list(path, root=root)
    assert videos.classes == ("Falling down", "Putting something, something on it")
    assert [video.label for video in videos.videos] == [1, 0]


def test_a_class_of_that_name_comes_before_the_index(tmp_path: Path):
    """Folders named 0, 1, 10, 2 sort so; a label "2" means the class of that name."""
    root = empty_files(tmp_path, "a.mp4", "b.mp4")
    videos = read_list(listing(tmp_path, "a.mp4 2\nb.mp4 1\n"), root=root, classes=("0", "1", "10", "2"))
    assert [video.label for video in videos.videos] == [3, 1]


def test_names_of_classes_and_excluded_videos_in_files(tmp_path: Path):
    root = empty_files(tmp_path / "videos", "a.mp4", "b.mp4", "c.mp4", "d.mp4")
    texts = {"list": "a 0\nb 1\nc 0\nd 1\n", "names": "run\njump\n", "excluded": "b.mp4\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    settings = RecognitionConfig(train_list=str(tmp_path / "list"), test_list="", class_names=str(tmp_path / "names"))
    data = DataConfig(
        videos=str(root), exclude=("c",), exclude_file=str(tmp_path / "excluded"), classes=("other", "names")
    )
    found = listed_videos(settings, data, training=True)
    assert found.classes == ("run", "jump")
    assert [(video.path.name, video.label) for video in found.videos] == [("a.mp4", 0), ("d.mp4", 1)]
    assert listed_videos(settings, data, training=True, classes=("x", "y")).classes == ("x", "y")
    assert listed_videos(replace(settings, class_names=""), data, training=True).classes == ("other", "names")


def test_an_excluded_video_is_in_one_of_the_lists(tmp_path: Path):
    root = empty_files(tmp_path / "videos", "a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "train").write_text("a 0\nb 1\n")
    (tmp_path / "test").write_text("c 0\n")
    settings = RecognitionConfig(train_list=str(tmp_path / "train"), test_list=str(tmp_path / "test"))
    right = DataConfig(videos=str(root), exclude=("b.mp4", "c"))
    assert [video.name for video in listed_videos(settings, right, training=True).videos] == ["a"]
    wrong = replace(right, exclude=("b", "d"))
    with pytest.raises(DataError, match=r"data\.exclude names d, which neither .*train nor .*test has"):
        listed_videos(settings, wrong, training=True)
    (tmp_path / "train").unlink()
    assert len(listed_videos(settings, wrong, training=False, classes=("0", "1")).videos) == 1


def test_extensions_may_differ(tmp_path: Path):
    root = empty_files(tmp_path / "videos", "12345.webm", "v1.2.mp4", "old.mp4")
    videos = read_list(listing(tmp_path, "12345 0\nv1.2 0\nold.avi 0\n"), root=root)
    assert [video.path.name for video in videos.videos] == ["12345.webm", "v1.2.mp4", "old.mp4"]
    elsewhere = read_list(listing(tmp_path, f"{root / 'old.mp4'} 0\n"), root=tmp_path)
    assert elsewhere.videos[0].path == root / "old.mp4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 0\nb.mp4\na.mp4,1,2\n", r"2 lines are not PATH LABEL or PATH,LABEL: line 2: b.mp4; line 3: a.mp4,1,2"),
        ("a.mp4,\n", "line 1: a.mp4,"),
        ("\n \n", "lists no video"),
        ("a.mp4 2\nb.mp4 hop\n", r"2 unknown labels: 2, hop; it must be one of 2 classes \(run, jump\)"),
        ("a.mp4 -1\n", "1 unknown labels: -1"),
        ("a.mp4 0\na.mp4 1\n", "1 videos are listed twice: a.mp4"),
        (
            "".join(f"x{i}.mp4 0\n" for i in range(25)) + "a.mp4 0\n",
            r"25 of 26 videos are not in .* x9.mp4, and 15 more",
        ),
        ("gone/a.mp4 0\n", r"1 of 1 videos are not in .*: gone/a.mp4"),
    ],
)
def test_faults_of_lists(tmp_path: Path, text: str, message: str):
    empty_files(tmp_path, "a.mp4", "b.mp4")
    with pytest.raises(DataError, match=message) as caught:
        read_list(listing(tmp_path, text), root=tmp_path, classes=("run", "jump"))
    assert "\n" not in str(caught.value)


def test_labels_in_another_form_of_unicode(tmp_path: Path):
    """In lists and in names of folders, whose form macOS may change, labels are those of the named classes."""
    composed, decomposed = "h\u00f6her", "ho\u0308her"
    for ours, theirs in ((composed, decomposed), (decomposed, composed)):
        root = empty_files(tmp_path / str(len(ours)), f"{theirs}/a.mp4", "run/b.mp4")
        for videos in (
            read_folders(root, classes=("run", ours)),
            read_list(listing(root, f"run/b.mp4 run\n{theirs}/a.mp4 {theirs}\n"), root=root, classes=("run", ours)),
        ):
            assert found(videos) == [("run/b.mp4", "b.mp4", 0), (f"{theirs}/a.mp4", "a.mp4", 1)]
            assert videos.classes == ("run", ours)
    empty_files(root, f"{ours}/a.mp4")
    assert [video.label for video in read_folders(root, classes=("run", ours)).videos] == [0, 1, 1]
    with pytest.raises(DataError, match="differ only by Unicode form"):
        read_folders(root)


def test_unreadable_lists(tmp_path: Path):
    with pytest.raises(DataError, match="cannot read"):
        read_list(tmp_path / "none.txt", root=tmp_path)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot read"):
        read_list(tmp_path / "binary.txt", root=tmp_path)
    with pytest.raises(DataError, match="no folder"):
        read_list(listing(tmp_path, "a.mp4 0"), root=tmp_path / "none")
    with pytest.raises(DataError, match="named twice: x"):
        read_list(tmp_path / "list.txt", root=tmp_path, classes=("x", "x"))


def test_folders(folder: Path):
    videos = read_folders(folder)
    assert videos.classes == ("jump", "run")
    assert found(videos) == [(f"{n}.mp4", f"{n[-1]}.mp4", int("run" in n)) for n in LENGTHS]
    assert [video.label for video in read_folders(folder, classes=("run", "jump")).videos] == [0, 0, 1, 1]


def test_faults_of_folders(tmp_path: Path):
    with pytest.raises(DataError, match="no folder"):
        read_folders(tmp_path / "none")
    with pytest.raises(DataError, match="no folders of classes"):
        read_folders(tmp_path)
    empty_files(tmp_path, "run/a.mp4", "jump/notes.txt", ".cache/b.mp4")
    with pytest.raises(DataError, match="of 1 classes: jump"):
        read_folders(tmp_path)
    with pytest.raises(DataError, match="unknown classes: jump"):
        read_folders(tmp_path, classes=("run",))
    with pytest.raises(DataError, match="of 2 classes: jump, fly"):
        read_folders(tmp_path, classes=("run", "jump", "fly"))


def test_class_names(tmp_path: Path):
    (tmp_path / "classes.txt").write_text("run\n\nmoving up, then down\n")
    assert read_class_names(tmp_path / "classes.txt") == ("run", "moving up, then down")
    for text, message in (("\n", "no class name"), ("a\na\n", "named twice: a")):
        (tmp_path / "classes.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            read_class_names(tmp_path / "classes.txt")


# ---- sampling --------------------------------------------------------------------------------------------------------

NUMBERS = [1, 2, 7, 8, 9, 31, 32, 100, 299, 301]


@pytest.mark.parametrize("num_frames", NUMBERS)
@pytest.mark.parametrize("frames", [1, 2, 8, 32])
def test_uniform_clips(num_frames: int, frames: int):
    rng = np.random.default_rng(num_frames)
    edges = [round(i * (num_frames - 1) / frames) for i in range(frames + 1)]
    drawn = np.stack(
        [
            clip_dataset.random_clip(num_frames, frames=frames, sampling="uniform", stride=1, rng=rng)
            for _ in range(40 * max(1, num_frames // frames))
        ]
    )
    assert (drawn.shape[1], drawn.dtype) == (frames, np.int64)
    assert (drawn.min(axis=0) == edges[:-1]).all()  # each part's first and last frame are drawn, and none outside
    assert (drawn.max(axis=0) == edges[1:]).all()
    for clips in (1, 2, 5):
        fixed = clip_dataset.fixed_clips(num_frames, frames=frames, sampling="uniform", stride=1, clips=clips)
        assert (fixed.shape, fixed.dtype) == ((clips, frames), np.int64)
        assert (np.diff(fixed.T.reshape(-1)) >= 0).all()  # clips interleave
        if clips == 1:
            assert fixed[0].tolist() == [(a + b) // 2 for a, b in itertools.pairwise(edges)]


def test_uniform_clips_by_hand():
    """AIM's authors': parts of frames 0..n-1 end at rounded borders; a test clip takes the middles."""

    def middles(num_frames: int, clips: int = 1) -> list[list[int]]:
        return clip_dataset.fixed_clips(num_frames, frames=4, sampling="uniform", stride=1, clips=clips).tolist()

    assert middles(10) == [[1, 3, 5, 8]]  # borders 0, 2, 4 (4.5 to even), 7, 9
    assert middles(41) == [[5, 15, 25, 35]]
    assert middles(4) == [[0, 1, 2, 2]]
    assert middles(1) == [[0, 0, 0, 0]]
    assert middles(41, clips=2) == [[2, 12, 22, 32], [7, 17, 27, 37]]


def test_dense_clips_by_hand():
    """AIM's authors': 300 frames, 8 x 16; a clip counts as 128 frames, though its last is the 113th."""
    fixed = clip_dataset.fixed_clips(300, frames=8, sampling="dense", stride=16, clips=3)
    assert fixed[:, 0].tolist() == [28, 86, 144]
    assert clip_dataset.fixed_clips(300, frames=8, sampling="dense", stride=16, clips=1)[0, 0] == 86
    assert clip_dataset.last_start(300, frames=8, stride=16) == 172
    rng = np.random.default_rng(0)
    starts = [
        clip_dataset.random_clip(300, frames=8, sampling="dense", stride=16, rng=rng)[0].item() for _ in range(3000)
    ]
    assert set(starts) == set(range(173))
    assert clip_dataset.fixed_clips(120, frames=8, sampling="dense", stride=16, clips=3)[:, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("num_frames", NUMBERS)
@pytest.mark.parametrize(("frames", "stride"), [(1, 1), (8, 4), (32, 2), (8, 1)])
def test_dense_clips(num_frames: int, frames: int, stride: int):
    span = frames * stride
    rng = np.random.default_rng(1)
    drawn = [
        clip_dataset.random_clip(num_frames, frames=frames, sampling="dense", stride=stride, rng=rng)
        for _ in range(300)
    ]
    fixed = clip_dataset.fixed_clips(num_frames, frames=frames, sampling="dense", stride=stride, clips=3)
    one = clip_dataset.fixed_clips(num_frames, frames=frames, sampling="dense", stride=stride, clips=1)
    assert (fixed.shape, one.shape) == ((3, frames), (1, frames))
    for clip in (*drawn, *fixed, *one):
        assert 0 <= clip.min() <= clip.max() < num_frames
        if num_frames >= span:
            assert (np.diff(clip) == stride).all()
        else:  # from the beginning, round and round
            assert clip.tolist() == [stride * i % num_frames for i in range(frames)]
    starts = {int(clip[0]) for clip in drawn}
    possible = max(1, num_frames - span + 1)
    assert starts <= set(range(possible))
    if possible <= 32:
        assert starts == set(range(possible))
    pieces = max(0, num_frames - span + 1)
    assert fixed[:, 0].tolist() == [pieces * k // 6 for k in (1, 3, 5)]
    assert one[0, 0] == pieces // 2


def test_three_crops():
    for height, width in ((6, 11), (11, 6), (6, 6)):
        frames = np.arange(2 * height * width * 3).reshape(2, height, width, 3).astype(np.uint8)
        left, centre, right = square_crops(frames, resolution=6, crops=3).numpy()
        np.testing.assert_array_equal(left, frames[:, :6, :6])
        even = [(extent - 6) // 2 * 2 for extent in (height, width)]  # two equal steps, as mmaction's ThreeCrop
        np.testing.assert_array_equal(right, frames[:, even[0] : even[0] + 6, even[1] : even[1] + 6])
        np.testing.assert_array_equal(centre, center_crop(frames, resolution=6))
        np.testing.assert_array_equal(square_crops(frames, resolution=6, crops=1)[0], centre)
    assert square_crops(np.zeros((2, 20, 30, 3), np.uint8), resolution=8, crops=3).shape == (3, 2, 8, 8, 3)


# ---- samples ---------------------------------------------------------------------------------------------------------


def dataset(root: Path, *, training: bool = True, **changes) -> ClipDataset:
    arguments = {"frames": 8, "sampling": "uniform", "resolution": 32, "short_side_before_crop": 40}
    arguments |= {"scaling": "antialias"} | changes
    return ClipDataset(videos=read_folders(root), training=training, **arguments)


def copied(folder: Path, tmp_path: Path, **contents: bytes) -> Path:
    """The same data, some files with other contents."""
    for name in LENGTHS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        content = contents.get(name[-1], (folder / f"{name}.mp4").read_bytes())
        (tmp_path / f"{name}.mp4").write_bytes(content)
    return tmp_path


def fingerprint(sample: ClipSample) -> tuple:
    return sample.frames.numpy().tobytes(), sample.label, sample.video, sample.seed


def test_training_sample(folder: Path):
    data = dataset(folder, repeats=2, augment=("random_resized_crop", "flip", "color_jitter"))
    assert len(data) == 8
    assert data.views == 1
    for sample_id in range(8):
        sample = data[0, sample_id]
        assert sample.frames.shape == (1, 8, 32, 32, 3)
        assert sample.frames.dtype == torch.uint8
        assert (sample.sample_id, sample.error, sample.padding) == (sample_id, None, False)
        assert (sample.video, sample.label) == (data.videos[sample_id % 4].name, data.videos[sample_id % 4].label)
        assert 0 <= sample.seed < 2**63


def test_samples_depend_on_seed_epoch_and_id_only(folder: Path):
    def draw(seed: int, epoch: int, sample_id: int) -> tuple:
        return fingerprint(dataset(folder, seed=seed, repeats=9, augment=("random_resized_crop",))[epoch, sample_id])

    reference = draw(0, 0, 0)
    torch.manual_seed(99)
    np.random.seed(99)
    assert draw(0, 0, 0) == reference
    assert len({reference, draw(1, 0, 0), draw(0, 1, 0), draw(0, 0, 4)}) == 4
    assert len({one[3] for one in (reference, draw(1, 0, 0), draw(0, 1, 0), draw(0, 0, 4))}) == 4


def test_training_shows_the_sampled_frames(folder: Path):
    """The numbers drawn into the frames, of which the centre crop keeps some; wrapped clips go back in the file."""
    for kind, stride in (("uniform", 1), ("dense", 2)):
        data = dataset(folder, sampling=kind, stride=stride, resolution=48, short_side_before_crop=48)
        for sample_id, video in enumerate(data.videos):
            rng = np.random.default_rng([0, 5, sample_id])
            rng.integers(2**63)
            num_frames = LENGTHS[video.name[:-4]]
            clip = clip_dataset.random_clip(num_frames, frames=8, sampling=kind, stride=stride, rng=rng)
            whole = read_frames(video.path, np.arange(num_frames), short_side=48, backend="pyav")
            assert frame_numbers(whole, width=WIDTH).tolist() == list(range(num_frames))
            np.testing.assert_array_equal(data[5, sample_id].frames[0], center_crop(whole[clip], resolution=48))
    assert np.diff(clip).min() < 0  # the last video, of 3 frames


def test_no_flip_without_asking(folder: Path):
    plain = dataset(folder, augment=())[0, 0].frames
    mirrored = 0
    for seed in range(8):
        one = dataset(folder, augment=("flip",), seed=seed)[0, 0].frames
        other = dataset(folder, augment=(), seed=seed)[0, 0].frames
        assert torch.equal(one, other) or torch.equal(one, other.flip(-2))
        mirrored += not torch.equal(one, other)
    assert 0 < mirrored < 8
    assert plain.any()


def test_views_of_test_videos(folder: Path):
    data = dataset(folder, training=False, sampling="dense", stride=2, clips=2, crops=3, resolution=48)
    assert (len(data), data.views) == (4, 6)
    sample = data[0, 0]
    assert sample.frames.shape == (6, 8, 48, 48, 3)
    assert fingerprint(sample) == fingerprint(data[0, 0])
    whole = read_frames(data.videos[0].path, np.arange(30), short_side=48, backend="pyav")
    for clip, start in enumerate((3, 11)):  # middles of the halves of the 15 possible starts
        for crop, left in enumerate((0, 20, 40)):
            expected = whole[start : start + 15 : 2, :, left : left + 48]
            np.testing.assert_array_equal(sample.frames[3 * clip + crop], expected)


def test_unreadable_training_video_is_replaced(folder: Path, tmp_path: Path):
    data = dataset(copied(folder, tmp_path, b=b"no video at all"), repeats=6)
    replaced = [data[0, sample_id] for sample_id in range(1, 24, 4)]
    labels = {video.name: video.label for video in data.videos}
    for sample in replaced:
        assert "b.mp4: " in str(sample.error)
        assert sample.video != "jump/b.mp4"
        assert sample.label == labels[sample.video]
        assert fingerprint(sample) == fingerprint(data[0, sample.sample_id])
    assert len({sample.video for sample in replaced}) > 1
    assert data[0, 0].error is None


def test_nothing_readable(folder: Path, tmp_path: Path):
    root = copied(folder, tmp_path, a=b"", b=b"", c=b"", d=b"")
    sample = dataset(root)[0, 2]
    assert "c.mp4: the file is empty" in str(sample.error)
    assert sample.label == IGNORED
    assert not sample.frames.any()
    tested = dataset(root, training=False, clips=2)[0, 2]
    assert (tested.video, tested.label, tested.padding) == ("run/c.mp4", 1, False)
    assert "c.mp4: the file is empty" in str(tested.error)
    assert tested.frames.shape == (2, 8, 32, 32, 3)
    assert not tested.frames.any()


def test_impossible_arguments(folder: Path):
    for wrong in ({"frames": 0}, {"stride": 0}, {"clips": 0}, {"crops": 2}, {"repeats": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            dataset(folder, **wrong)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_through_the_loaders(folder: Path, workers: int):
    config = DataConfig(workers=workers)
    data = dataset(folder, repeats=4, seed=3)
    seen = {}
    for rank in range(2 if workers == 0 else 1):
        batches = TrainBatches(num_samples=16, global_batch=4, data_rank=rank, data_ranks=2, micro_batch=2, seed=3)
        for batch in make_train_loader(data, batches=batches.between(1, 3), config=config, pin_memory=False):
            assert batch.frames.shape == (2, 1, 8, 32, 32, 3)
            assert (batch.labels.dtype, batch.seeds.dtype) == (torch.int64, torch.int64)
            for i, sample_id in enumerate(batch.sample_ids):
                expected = data[0, sample_id]
                assert torch.equal(batch.frames[i], expected.frames)
                assert (int(batch.labels[i]), batch.videos[i]) == (expected.label, expected.video)
                assert (int(batch.seeds[i]), batch.errors[i]) == (expected.seed, None)
                seen[sample_id] = rank
    assert Counter(seen.values()) == ({0: 4, 1: 4} if workers == 0 else {0: 4})


def test_test_loader_pads_the_last_rank(folder: Path):
    tested = dataset(folder, training=False, crops=3)
    config = DataConfig(workers=0)
    batches = [
        batch
        for rank in range(3)
        for batch in make_test_loader(tested, config=config, batch=2, rank=rank, ranks=3, pin_memory=False)
    ]
    assert [i for batch in batches for i in batch.sample_ids] == [0, 1, 2, 3, -1, -1]
    assert batches[-1].padding == [True, True]
    assert batches[-1].labels.tolist() == [IGNORED] * 2
    assert batches[-1].frames.shape == batches[0].frames.shape == (2, 3, 8, 32, 32, 3)


# ---- mixing ----------------------------------------------------------------------------------------------------------


def flat_batch(dtype: torch.dtype) -> torch.Tensor:
    """Sample i is 50 * i all over: (4, 1, 2, 6, 10, 3)."""
    return (50 * torch.arange(4)).to(dtype)[:, None, None, None, None, None].expand(4, 1, 2, 6, 10, 3).clone()


LABELS = torch.tensor([2, 0, 1, 2])


def test_mixing_is_off_by_default():
    frames = flat_batch(torch.uint8)
    mixed, targets = mix(frames, LABELS, classes=3, seed=1)
    assert torch.equal(mixed, frames)
    assert targets.argmax(1).tolist() == LABELS.tolist()
    alone, target = mix(frames[:1], LABELS[:1], classes=3, mixup_alpha=1.0, cutmix_alpha=1.0, seed=1)
    assert torch.equal(alone, frames[:1])
    assert target.tolist() == [[0, 0, 1]]
    assert soft_targets(torch.tensor([IGNORED, 1]), classes=2).tolist() == [[0, 0], [0, 1]]


def test_a_box_has_the_share_of_the_frame_and_its_aspect():
    boxes = [_box(40, 80, 0.25, np.random.default_rng(seed)) for seed in range(50)]
    assert max(bottom - top for top, bottom, _, _ in boxes) == 20
    assert max(right - left for _, _, left, right in boxes) == 40


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_targets_are_the_shares_of_the_pixels(dtype: torch.dtype, mixup: float, cutmix: float):
    frames = flat_batch(dtype)
    shares, pasted = set(), 0
    for seed in range(30):
        before = frames.clone()
        mixed, targets = mix(frames, LABELS, classes=3, mixup_alpha=mixup, cutmix_alpha=cutmix, seed=seed)
        again, _ = mix(frames, LABELS, classes=3, mixup_alpha=mixup, cutmix_alpha=cutmix, seed=seed)
        assert torch.equal(frames, before)
        assert torch.equal(mixed, again)
        assert (mixed.dtype, mixed.shape) == (dtype, frames.shape)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        own = float(targets[1, 0])  # sample 1 alone has class 0 together with sample 0 of class 2
        means = mixed.double().mean(dim=(1, 2, 3, 4, 5))
        others = torch.tensor([150.0, 0, 50, 100]).double()
        expected = own * torch.tensor([0.0, 50, 100, 150]).double() + (1 - own) * others
        torch.testing.assert_close(means, expected, atol=0.51, rtol=0.0 if dtype != torch.bfloat16 else 0.01)
        assert targets[3].tolist() == pytest.approx([0, 1 - own, own], abs=1e-6)
        values = mixed[1].unique().numel()
        pasted += values == 2
        if values == 2:  # the same box in all frames
            assert (mixed[1, 0, 0] == mixed[1, 0, 1]).all()
        shares.add(round(own, 3))
    assert len(shares) > 10
    assert (pasted > 0) == (cutmix > 0)
    if mixup and cutmix:
        assert 5 < pasted < 25


# ---- generated clips -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("twins", "pair"), list(enumerate(TWINS)))
def test_twins_show_the_same_frames_backwards(twins: int, pair: tuple[str, str]):
    one, other = (make_clip(label, generator("train", 1, twins, 0)) for label in pair)
    np.testing.assert_array_equal(one, other[::-1])
    assert Counter(frame.tobytes() for frame in one) == Counter(frame.tobytes() for frame in other)
    assert not np.array_equal(one, other)
    again = make_clip(pair[0], generator("train", 1, twins, 0))
    np.testing.assert_array_equal(one, again)
    for different in (("test", 1, twins, 0), ("train", 2, twins, 0), ("train", 1, twins, 1)):
        assert not np.array_equal(one, make_clip(pair[0], generator(*different)))


def test_unknown_class():
    with pytest.raises(ValueError, match="'hop' is unknown"):
        make_clip("hop", generator("train", 1, 0, 0))


@pytest.mark.slow
def test_make_clips(tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "adatad_ds",
        "generate",
        "clips",
        "--out",
        str(tmp_path),
        "--train",
        "2",
        "--test",
        "1",
    ]
    for said in ("24 clips of 8 classes", "is complete"):
        done = subprocess.run([*command, "--workers", "1"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert said in done.stdout
    videos = read_folders(tmp_path / "train")
    assert (videos.classes, len(videos.videos)) == (CLASSES, 16)
    assert len(read_folders(tmp_path / "test", classes=CLASSES).videos) == 8
    one, other = (
        read_frames(tmp_path / "train" / label / "0001.mp4", np.arange(32), short_side=64, backend="pyav")
        for label in ("grow", "shrink")
    )
    assert one.shape == (32, 64, 64, 3)
    assert np.abs(one.astype(int) - other[::-1]).mean() < 5  # but for the encoder's loss
    subprocess.run([*command[:-1], "0", "--train", "1"], cwd=ROOT, capture_output=True, check=True)
    assert len(read_folders(tmp_path / "train").videos) == 8
