"""The published weights, where a person has them: `docs/rewards.md` has the commands."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raypref.rewards.aesthetic import AestheticConfig
from raypref.rewards.clipscore import ClipScoreConfig
from raypref.rewards.dinov2 import DinoV2Config
from raypref.rewards.hpsv2 import HPSv2Config
from raypref.rewards.imagereward import ImageRewardConfig
from raypref.rewards.perception import PerceptionConfig
from raypref.rewards.realism import RealismConfig

WANTED = os.environ.get("RAYPREF_REAL_REWARDS", "").split(",")

# Of ImageReward's README: four images of one prompt, "may be slightly different" by device.
PROMPT = "a painting of an ocean with clouds and birds, day time, low depth field effect"
PUBLISHED = [0.5811622738838196, 0.2745276093482971, -1.4131819009780884, -2.029569625854492]


@pytest.fixture
def photographs(shared_data: Path) -> tuple[list[Image.Image], list[str]]:
    folder = shared_data / "photos"
    with (folder / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:32]
    images = [Image.open(folder / row["file"]).convert("RGB") for row in rows]
    return images, [row["caption"] for row in rows]


def wanted(name: str) -> None:
    if name not in WANTED:
        pytest.skip(f"set RAYPREF_REAL_REWARDS={name} to load the published weights")


@pytest.mark.parametrize(
    ("name", "config", "lowest", "highest"),
    [
        ("clipscore", ClipScoreConfig(), 15, 40),
        ("hpsv2", HPSv2Config(), 15, 40),
        ("hpsv2", HPSv2Config(model="xswu/HPSv2/HPS_v2_compressed.pt"), 15, 40),
        ("imagereward", ImageRewardConfig(), -2.5, 2.5),
        ("perception", PerceptionConfig(), 5, 50),
    ],
)
def test_a_photograph_prefers_its_own_caption(photographs, name, config, lowest, highest):
    wanted(name)
    images, captions = photographs
    reward = config.load()
    own = reward.score(images, captions)
    others = reward.score(images, captions[1:] + captions[:1])
    assert (own > others).mean() >= 0.9
    assert lowest < own.mean() < highest
    half = config.model_copy(update={"dtype": "bfloat16"}).load().score(images, captions)
    assert np.corrcoef(own, half)[0, 1] > 0.98


def test_the_published_scores_of_imagereward():
    wanted("imagereward")
    folder = Path(os.environ.get("RAYPREF_IMAGEREWARD_IMAGES", "assets/images"))
    if not folder.is_dir():
        pytest.skip("set RAYPREF_IMAGEREWARD_IMAGES to assets/images of THUDM/ImageReward")
    images = [Image.open(folder / f"{i}.webp").convert("RGB") for i in range(1, 5)]
    scores = ImageRewardConfig().load().score(images, [PROMPT] * 4)
    np.testing.assert_allclose(scores, PUBLISHED, atol=0.02)


@pytest.mark.parametrize("head", ["sac+logos+ava1-l14-linearMSE", "sa_0_4_vit_l_14_linear"])
def test_photographs_look_better_than_noise(photographs, shared_data, head):
    wanted("aesthetic")
    images, captions = photographs
    noise = [Image.effect_noise(image.size, 120).convert("RGB") for image in images]
    reward = AestheticConfig(head=str(shared_data / "weights" / f"{head}.pth")).load()
    scores = reward.score(images, captions)
    assert 4 < scores.mean() < 7
    assert (scores > reward.score(noise, captions)).mean() >= 0.9


def test_photographs_are_photographs(photographs):
    wanted("realism")
    scores = RealismConfig().load().score(*photographs)
    assert (scores > 0).mean() >= 0.8
    assert np.abs(scores).max() < 5


def test_a_photograph_is_nearest_to_itself_mirrored(photographs):
    wanted("dinov2")
    images, _ = photographs
    model = DinoV2Config().load()
    mirrored = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
    nearest = (model.embed(images) @ model.embed(mirrored).T).argmax(axis=1)
    assert (nearest == np.arange(len(images))).mean() >= 0.95
