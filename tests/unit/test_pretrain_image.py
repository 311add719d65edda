"""The quickstart's image transformer: the committed weights, and what it is trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adatad_ds.aim_weights import TIMM, load_aim_weights, open_aim_weights
from adatad_ds.data.synthetic_clips import SIDE, generator
from adatad_ds.models.aim import AIMTransformer
from adatad_ds.models.image_vit import GENERATED, build_image_transformer
from tools.pretrain_image import OPACITY, PLACE_X, PLACE_Y, SIZE, make_picture

WEIGHTS = Path(__file__).parents[2] / "adatad_ds/weights/tiny_image.safetensors"


@pytest.fixture(scope="module")
def model() -> AIMTransformer:
    vit = build_image_transformer(GENERATED, resolution=SIDE)
    made = AIMTransformer(
        vit=vit,
        clip_frames=1,
        adapt=(),
        tuning="frozen",
        adapter_before_time=False,
        drop_path=0.0,
        activation_checkpointing=False,
    )
    load_aim_weights(open_aim_weights(WEIGHTS), made)
    return made


def pictures_of(subset: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    made = [make_picture(generator(subset, 9, 0, index)) for index in range(count)]
    return torch.from_numpy(np.stack([one[0] for one in made])), torch.from_numpy(np.stack([one[1] for one in made]))


def test_a_linear_map_of_features_tells_what_a_picture_shows(model: AIMTransformer):
    weights = open_aim_weights(WEIGHTS)
    assert weights.layout == TIMM
    assert not weights.left_out
    assert WEIGHTS.stat().st_size < 4e6
    pictures, shown = pictures_of("pretraining", 500)
    seen = shown[:, OPACITY] > 0
    pictures, shown = pictures[seen], shown[seen]
    with torch.no_grad():
        features = model(pictures[:, None])[:, 0]
    features = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    fit = slice(0, 300)
    measures = shown[:, [PLACE_X, PLACE_Y, SIZE]]
    solved = torch.linalg.lstsq(features[fit], measures[fit]).solution
    off = (features[300:] @ solved - measures[300:]).abs().mean(0)
    guess = (measures[:300].median(0).values - measures[300:]).abs().mean(0)
    assert len(off) == 3
    assert (off[:2] < 0.2 * guess[:2]).all(), off * SIDE / 2
    assert off[2] < 0.5 * guess[2]
