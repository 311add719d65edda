"""The quickstart's image transformer: the committed weights, and what it is trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adatad_ds.data.generated.clips import SIDE, TWINS, generator, make_clip
from adatad_ds.models.backbones.adapted_image import AIMTransformer
from adatad_ds.models.backbones.image_vit import GENERATED, build_image_transformer
from adatad_ds.weights.image_layouts import TIMM, fit_image_weights, open_aim_weights
from tools.pretrain_image import OPACITY, PLACE_X, PLACE_Y, SIZE, augment, covered, make_picture

WEIGHTS = Path(__file__).parents[3] / "adatad_ds/weights/tiny_image.safetensors"


@pytest.fixture(scope="module")
def model() -> AIMTransformer:
    vit = build_image_transformer(GENERATED, resolution=SIDE)
    weights = fit_image_weights(open_aim_weights(WEIGHTS), vit)
    vit.load_state_dict({name: tensor.read() for name, tensor in weights.vit.items()})
    return AIMTransformer(vit=vit, clip_frames=1, feature_steps=1, adapt=(), tuning="frozen")


@pytest.mark.slow
def test_a_linear_map_of_features_tells_what_a_picture_shows(model: AIMTransformer):
    """Least squares on 600 pictures; the median of them would be off by 14 pixels in x and in y."""
    weights = open_aim_weights(WEIGHTS)
    assert weights.layout == TIMM
    assert not weights.left_out
    assert WEIGHTS.stat().st_size < 4e6
    made = [make_picture(generator("pretraining", 9, 0, index)) for index in range(700)]
    pictures, shown = (torch.from_numpy(np.stack(column)) for column in zip(*made, strict=True))
    with torch.no_grad():
        features = model.frame_features(pictures[:, None])[:, 0]
    features = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    measures = shown[:, [PLACE_X, PLACE_Y, SIZE]]
    solved = torch.linalg.lstsq(features[:600], measures[:600]).solution
    off = (features @ solved - measures).abs()[600:]
    off = off[shown[600:, OPACITY] > 0].mean(0)
    assert len(off) == 3
    assert (off[:2] * SIDE / 2 < 3).all()
    assert off[2] < 0.25  # of the logarithm; the median: 0.4


def test_features_of_twins_are_alike(model: AIMTransformer):
    """The mean over a whole clip cannot tell the direction of time."""
    for twins, pair in enumerate(TWINS):
        clips = np.stack([make_clip(label, generator("train", 1, twins, 0)) for label in pair])
        with torch.no_grad():
            one, other = model.frame_features(torch.from_numpy(clips)).mean(1)
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0.0)


def test_cover_of_patches():
    """A disc of a quarter of the side, in the middle of the top left quarter: patches of 2 x 2, then half seen."""
    shown = torch.tensor([[-0.5, -0.5, 0.0, 1.0, 0.25], [-0.5, -0.5, 0.0, 0.0, 0.25]])
    cover = covered(shown, grid=(2, 2))
    area = np.pi * 0.25**2  # of a patch of side 1
    assert cover[0].tolist() == pytest.approx([area, 0, 0, 0], abs=0.05)
    assert cover[1].tolist() == pytest.approx([area / 2, 0, 0, 0], abs=0.03)


def test_targets_follow_the_mirrored_picture():
    """A bright spot stays where the targets say it is."""
    pictures = torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8)
    pictures[0, 10, 40] = 255
    shown = torch.tensor([[(40.5 / SIDE) * 2 - 1, (10.5 / SIDE) * 2 - 1, 0.0, 1.0, 0.1]])
    places = set()
    for seed in range(30):
        turned, rows = augment(np.random.default_rng(seed), pictures, shown)
        row, column = (int(axis[0]) for axis in torch.nonzero(turned[0].amax(-1), as_tuple=True))
        assert [column, row] == ((rows[0, :2] + 1) / 2 * SIDE - 0.5).round().int().tolist()
        places.add((row, column))
    assert len(places) == 8
