"""TriDet: its own weights by their published names give its losses, for five steps of training, and its predictions.

tridet.json holds numbers that its authors' code gave on a CPU (github.com/dingfengshi/TriDet at 764b816, its TriDet
with the weights and videos drawn below; AdamW at 0.01, decay 0.05, gradients clipped at 1; drop path 1e-9, which scales
its branches and drops none).
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adatad_ds.config import loading
from adatad_ds.config.schema import Config
from adatad_ds.detection.losses import diou_loss, paired_iou, sigmoid_focal_loss
from adatad_ds.detection.points import assign_targets
from adatad_ds.errors import CheckpointError, ConfigError
from adatad_ds.models.detector import Detector, detector_points, padded_steps, valid_points
from adatad_ds.models.factory import build_detector, build_heads
from adatad_ds.models.heads.tridet import TriDetHead
from adatad_ds.models.live_bytes import live_bytes
from adatad_ds.planning.fake_run import head_bytes
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.weights.loading import find_weights, published_state
from tests.support.published_heads import (
    CHANNELS,
    STEPS,
    WHOLE_STEPS,
    drawn_video,
    five_steps,
    load_published,
    write_checkpoint,
)

GOLDEN = json.loads((Path(__file__).parent / "tridet.json").read_text(encoding="utf-8"))
CASES = list(enumerate(GOLDEN))
SMALL = ("head.name=tridet", "head.width=32", "head.arch=[1,1,2]", "head.num_bins=4", "data.window_size=16")
SMALL += ("head.regression_range=[[0,4],[4,8],[8,99]]",)


def drawn_weight(key: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    drawn = np.random.default_rng(zlib.crc32(key.encode())).normal(size=shape)
    if key.endswith("bias"):
        return 0.1 * drawn - (2.0 if "_head.cls_head" in key else 0.0) + (0.5 if "offset_head" in key else 0.0)
    if key.endswith("scale"):
        return 0.3 + 0.1 * drawn if "drop_path" in key else 1 + 0.1 * drawn
    if "norm" in key or ".ln." in key or ".gn." in key:
        return 1 + 0.1 * drawn
    return drawn / np.sqrt(np.prod(shape[1:]))


def config_of(settings: dict[str, Any], weights: Path) -> Config:
    tree = {
        "data": {"features": "unread", "window_size": STEPS, "feature_stride_frames": 5},
        "backbone": {"name": "features", "feature_channels": CHANNELS, "weights": str(weights), "tuning": "frozen"},
        "head": {
            "name": "tridet",
            "arch": [2, 2, 3],
            "width": settings["width"],
            "tower_width": settings["tower"],
            "tower_kernel": settings["kernel"],
            "boundary_kernel": settings["boundary"],
            "sgp_window": settings["win"],
            "sgp_scale": settings["k"],
            "sgp_mlp_width": settings["mlp"],
            "num_bins": settings["bins"],
            "iou_weight_power": settings["power"],
            "abs_pos_embed": settings["pe"],
            "actionformer_norms": True,
            "drop_path": 0.0,
            "label_smoothing": settings["smooth"],
            "loss_normalizer": settings["norm"],
            "regression_range": settings["rng"],
        },
    }
    return loading.from_dict(tree)


def loaded(name: str, folder: Path) -> tuple[Detector, Config]:
    golden = GOLDEN[name]
    config = config_of(golden["settings"], write_checkpoint(folder / "model.pth.tar", golden["shapes"], drawn_weight))
    return load_published(config, classes=golden["settings"]["classes"]), config


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1])
def test_five_steps_have_its_losses(case, tmp_path):
    number, name = case
    detector, config = loaded(name, tmp_path)
    rows = five_steps(detector, config, case=number, classes=GOLDEN[name]["settings"]["classes"])
    for step, (row, wanted) in enumerate(zip(rows, GOLDEN[name]["steps"], strict=True)):
        assert row == pytest.approx(wanted, rel=5e-5), f"step {step}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1])
def test_a_whole_video_has_its_predictions(case, tmp_path):
    """Longer than a window: padded to whole windows of the SGP layers, whose means count the padding."""
    number, name = case
    detector, config = loaded(name, tmp_path)
    golden, classes = GOLDEN[name]["whole"], GOLDEN[name]["settings"]["classes"]
    features, _, _ = drawn_video(number, 99, 0, classes, steps=WHOLE_STEPS)
    assert padded_steps(config, WHOLE_STEPS) == golden["padded"]
    with torch.no_grad():
        found = detector.eval()(features[None], torch.ones(1, WHOLE_STEPS, dtype=torch.bool))
    assert found.valid.shape[1] == len(detector_points(config, device=torch.device("cpu"), steps=WHOLE_STEPS))
    inside = found.valid[0].nonzero().squeeze(1)
    assert len(inside) == golden["points"]
    some, first = inside[::9], torch.zeros(len(inside[::9]), dtype=torch.int64)
    np.testing.assert_allclose(found.class_logits[0, some, :2].flatten(), golden["logits"], atol=1e-4)
    np.testing.assert_allclose(found.distances_of(first, some, first).flatten(), golden["distances"], atol=1e-4)


def test_losses_pair_by_pair():
    """Every class of a point has its own distances, its own weight, and counts."""
    config = loading.override(find_recipe("quickstart").config, (*SMALL, "head.label_smoothing=0.1"))
    head, points = config.head, detector_points(config, device=torch.device("cpu"))
    torch.manual_seed(0)
    detector = build_detector(config, num_classes=3)
    assert isinstance(detector.head, TriDetHead)
    torch.nn.init.normal_(detector.head.start_head.weight, std=1.0)
    valid = torch.arange(16) < torch.tensor([[16], [11]])
    segments = [torch.tensor([[3.2, 8.0], [3.2, 8.0]]), torch.tensor([[1.0, 12.0]])]
    targets = assign_targets(
        points=points,
        valid=valid_points(valid, config),
        segments=segments,
        labels=[torch.tensor([0, 2]), torch.tensor([1])],
        num_classes=3,
        center_radius=head.center_radius,
        filter_similar_gt=True,
    )
    levels, masks = detector.pyramid(torch.randn(2, 16, detector.backbone.width), valid)
    found = detector.head(levels, masks)
    classification = regression = torch.tensor(0.0)
    pairs, beyond_last = 0, 0
    for window in range(2):
        starts = 0
        for level, mask in zip(levels, masks, strict=True):
            steps = level.shape[1]
            per_step = {  # of this level alone, without padding
                side: convs(level[window : window + 1].detach(), mask[window : window + 1])
                for side, convs in (("start", _tower(detector, "start")), ("end", _tower(detector, "end")))
            }
            for step in range(steps):
                point = starts + step
                smoothed = targets.classes[window, point] * 0.9 + 0.1 / 4
                focal = sigmoid_focal_loss(found.class_logits[window, point], smoothed) * found.valid[window, point]
                for label in targets.classes[window, point].nonzero().flatten().tolist():
                    if not targets.positive[window, point]:
                        beyond_last += 1
                        continue
                    distances = []
                    for side, sign in (("start", -1), ("end", 1)):
                        bins = []
                        for away in range(5):
                            at = step + sign * away
                            inside = 0 <= at < steps and bool(mask[window, at])
                            own = found.bins[window, point, int(sign > 0), away if sign > 0 else 4 - away]
                            bins.append(own + (per_step[side][0, at, label] if inside else 0.0))
                        distances.append((torch.stack(bins).softmax(0) * torch.arange(5)).sum())
                    predicted = torch.stack([-distances[0], distances[1]])
                    wanted = targets.distances[window, point] * torch.tensor([-1.0, 1.0])
                    focal = focal * torch.where(torch.arange(3) == label, paired_iou(predicted, wanted) ** 0.5, 1.0)
                    regression = regression + diou_loss(predicted, wanted)
                    pairs += 1
                classification = classification + focal.sum()
            starts += steps
    assert pairs > 4
    found_losses = found.losses(
        points=points, targets=targets, settings=loading.override(config, ("head.iou_weight_power=0.5",)).head
    )
    torch.testing.assert_close(torch.stack(found_losses), torch.stack([classification, regression]))


def test_untrained_heads_give_the_prior_of_classes_and_boundaries():
    config = loading.override(find_recipe("quickstart").config, (*SMALL, "head.cls_prior=0.02"))
    head = build_heads(config, in_channels=5, num_classes=3)[1]
    levels, masks = zip(*((torch.zeros(1, n, 32), torch.ones(1, n, dtype=torch.bool)) for n in (16, 8, 4)), strict=True)
    found = head(list(levels), list(masks))
    for logits in (found.class_logits, found.starts[found.starts != 0], found.ends[found.ends != 0]):
        torch.testing.assert_close(logits.sigmoid(), torch.full_like(logits, 0.02))
    assert (found.bins == 0).all()


@pytest.mark.parametrize("wide", ["kernel", "boundary_kernel"])
def test_levels_see_nothing_of_one_another_however_wide_the_convolutions(wide):
    torch.manual_seed(0)
    sizes = {"kernel": 3, "boundary_kernel": 3} | {wide: 9}
    head = TriDetHead(
        **{
            "width": 8,
            "tower_width": 8,
            "num_classes": 2,
            "levels": 2,
            "num_convs": 1,
            "num_bins": 1,
            "cls_prior": 0.1,
            "actionformer_norms": False,
        },
        **sizes,
    )
    levels, masks = [torch.randn(1, n, 8) for n in (8, 4)], [torch.ones(1, n, dtype=torch.bool) for n in (8, 4)]
    pairs = torch.zeros(8, dtype=torch.int64), torch.arange(8), torch.zeros(8, dtype=torch.int64)
    one, other = (head([levels[0], second], masks) for second in (levels[1], -levels[1]))
    assert torch.equal(one.class_logits[:, :8], other.class_logits[:, :8])
    assert torch.equal(one.distances_of(*pairs), other.distances_of(*pairs))


def _tower(detector: Detector, side: str):
    head = detector.head

    def run(level: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for conv in getattr(head, f"{side}_convs"):
            level = conv(level, mask)
        return getattr(head, f"{side}_head")(level.transpose(1, 2)).transpose(1, 2)

    return run


def test_without_positives_every_parameter_has_a_gradient():
    """Ranks agree on the parameters that they reduce, whatever their windows hold."""
    config = loading.override(find_recipe("quickstart").config, SMALL)
    detector, points = build_detector(config, num_classes=2), detector_points(config, device=torch.device("cpu"))
    valid = torch.ones(1, 16, dtype=torch.bool)
    targets = assign_targets(
        points=points,
        valid=valid_points(valid, config),
        segments=[torch.zeros(0, 2)],
        labels=[torch.zeros(0, dtype=torch.int64)],
        num_classes=2,
        center_radius=1.5,
        filter_similar_gt=True,
    )
    found = detector.head(*detector.pyramid(torch.randn(1, 16, detector.backbone.width), valid))
    classification, regression = found.losses(points=points, targets=targets, settings=config.head)
    assert regression.item() == 0
    (classification + regression).backward()
    named = (*detector.head.named_parameters(), *detector.pyramid.named_parameters())
    assert not [name for name, parameter in named if parameter.grad is None]


@pytest.mark.slow
def test_its_plan_is_what_a_step_takes():
    """The planner's peak, of meta tensors, beside that of real ones with targets and losses."""
    config = loading.override(find_recipe("quickstart").config, (*SMALL, "data.window_size=256", "head.width=64"))
    planned = head_bytes(config, in_channels=8, num_classes=40, windows=2)
    pyramid, head = build_heads(config, in_channels=8, num_classes=40)
    points, valid = detector_points(config, device=torch.device("cpu")), torch.ones(2, 256, dtype=torch.bool)
    targets = assign_targets(
        points=points,
        valid=valid_points(valid, config),
        segments=[torch.tensor([[10.0, 30.0], [60.0, 64.0]])] * 2,
        labels=[torch.tensor([3, 5])] * 2,
        num_classes=40,
        center_radius=1.5,
        filter_similar_gt=True,
    )
    features = torch.randn(2, 256, 8, requires_grad=True)

    def step() -> None:
        found = head(*pyramid(features, valid))
        torch.stack(found.losses(points=points, targets=targets, settings=config.head)).sum().backward()

    assert live_bytes(step) == pytest.approx(planned, rel=0.3)


def test_other_classes_leave_out_all_class_logits(tmp_path):
    detector, config = loaded("thumos", tmp_path)
    weights = find_weights(config.backbone, detector.backbone.vit)
    assert weights is not None
    assert weights.layout == "TriDet"
    other = build_detector(config, num_classes=3)
    kept = published_state(weights, other, config=config, reset_classifier=True)["master"]
    assert set(dict(other.named_parameters())) - set(kept) == {
        f"head.{head}_head.{kind}" for head in ("cls", "start", "end") for kind in ("weight", "bias")
    }
    with pytest.raises(CheckpointError, match="trained for 5 classes, the data have 3"):
        published_state(weights, other, config=config, reset_classifier=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("head.width=40",), "head.width = 40 is not a multiple of 16"),
        (("head.sgp_window=4",), "head.sgp_window = 4 must be odd"),
        (("head.boundary_kernel=2",), "head.boundary_kernel = 2 must be odd"),
    ],
)
def test_settings_that_cannot_be(changes, said):
    with pytest.raises(ConfigError, match=said):
        loading.override(find_recipe("quickstart").config, (*SMALL, *changes))
