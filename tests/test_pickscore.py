"""PickScore against its formula, written out with Pillow and the towers of the CLIP model."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer

from raypref.demo import photograph, world
from raypref.rewards.pickscore import PickScore, PickScoreConfig, PickScoreInput, tf32

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
TINY = PickScoreConfig(model=str(small.path("pickscore")), processor=str(small.path("pickscore")))


@pytest.fixture(scope="module")
def pickscore() -> PickScore:
    return TINY.load()


def prepared(image: Image.Image, side: int) -> torch.Tensor:
    """CLIP's input by its original recipe: shortest side, bicubic; centre crop; normalise."""
    width, height = image.size
    short = min(width, height)
    size = (int(width * side / short), int(height * side / short))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    image = image.crop((left, top, left + side, top + side))
    pixels = (np.asarray(image) / 255 - MEAN) / STD
    return torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None]


@torch.no_grad()
def formula(image: Image.Image, prompt: str) -> float:
    """exp(logit_scale) times the cosine, one image at a time and without padding."""
    folder = small.path("pickscore")
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    ids = CLIPTokenizer.from_pretrained(folder)(prompt).input_ids
    if len(ids) > 77:
        ids = [*ids[:76], ids[-1]]
    pixels = prepared(image, model.config.vision_config.image_size)
    seen = model.visual_projection(model.vision_model(pixels).pooler_output)[0]
    read = model.text_projection(model.text_model(torch.tensor([ids])).pooler_output)[0]
    cosine = (seen @ read) / (seen.norm() * read.norm())
    return float(model.logit_scale.exp() * cosine)


def tiny_world(count: int) -> tuple[list[Image.Image], list[str]]:
    scenes = world.sample_scenes(count, seed=11)
    images = [
        Image.fromarray(photograph.render_scene(scene, seed=i)) for i, scene in enumerate(scenes)
    ]
    return images, [world.caption(scene) for scene in scenes]


def real_photographs(folder: Path, count: int) -> tuple[list[Image.Image], list[str]]:
    with (folder / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:count]
    images = [Image.open(folder / row["file"]).convert("RGB") for row in rows]
    return images, [row["caption"] for row in rows]


def test_the_formula_on_the_tiny_world(pickscore):
    images, prompts = tiny_world(6)
    scores = pickscore.score(images, prompts)
    expected = [formula(*pair) for pair in zip(images, prompts, strict=True)]
    np.testing.assert_allclose(scores, expected, atol=1e-4, rtol=0)
    assert scores.std() > 0.1


def test_the_formula_on_real_photographs(pickscore, shared_data):
    images, prompts = real_photographs(shared_data / "photos", 6)
    assert {image.width > image.height for image in images} == {True, False}
    scores = pickscore.score(images, prompts)
    expected = [formula(*pair) for pair in zip(images, prompts, strict=True)]
    np.testing.assert_allclose(scores, expected, atol=1e-4, rtol=0)
    assert scores.std() > 0.1


def test_a_score_does_not_depend_on_its_batch(pickscore):
    images, prompts = tiny_world(5)
    prompts[2] = "ball"  # of another length than its neighbours
    together = pickscore.score(images, prompts)
    alone = [pickscore.score([i], [p])[0] for i, p in zip(images, prompts, strict=True)]
    backwards = pickscore.score(images[::-1], prompts[::-1])[::-1]
    np.testing.assert_allclose(together, alone, atol=1e-4, rtol=0)
    np.testing.assert_allclose(together, backwards, atol=1e-4, rtol=0)
    exact = TINY.model_copy(update={"dtype": "float64"}).load()  # and then not in the last bit
    halves = [*exact.score(images[:2], prompts[:2]), *exact.score(images[2:], prompts[2:])]
    assert exact.score(images, prompts).tolist() == halves


def test_scores_are_one_float32_an_image(pickscore):
    scores = pickscore.score(*tiny_world(3))
    assert isinstance(scores, np.ndarray)
    assert (scores.dtype, scores.shape) == (np.float32, (3,))


def test_a_long_prompt_is_cut_at_77_tokens(pickscore):
    [image], _ = tiny_world(1)
    long = "a photo of a red ball on grass " * 100
    [score] = pickscore.score([image], [long])
    assert score == pytest.approx(formula(image, long), abs=1e-4)
    [same] = pickscore.score([image], [long + "at night"])  # what was cut is not seen
    assert same == score
    assert np.isfinite(pickscore.score([image], [""])).all()


def test_half_precision_keeps_the_scale(pickscore):
    half = TINY.model_copy(update={"dtype": "bfloat16"}).load()
    assert half.model.dtype == torch.bfloat16
    assert half.scale == pytest.approx(100, rel=1e-6)  # rounded to bfloat16 it would be 99
    images, prompts = tiny_world(4)
    scores = half.score(images, prompts)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, pickscore.score(images, prompts), rtol=0.02)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_levels_give_the_same_scores_to_the_bit(dtype):
    model = TINY.model_copy(update={"dtype": dtype}).load()
    images, prompts = tiny_world(5)
    images[1] = images[1].resize((131, 97))
    images[2] = Image.fromarray(np.arange(3 * 256, dtype=np.uint8).reshape(16, 16, 3))
    levels = PickScoreInput(TINY).levels(images)
    assert (levels.dtype, levels.nbytes * 4) == (np.uint8, model.pixels(images).numpy().nbytes)
    scores = model.score_levels(levels, model.tokens(prompts))
    assert scores.tolist() == model.score(images, prompts).tolist()


def test_quick_scores_are_of_the_same_model_and_leave_nothing_behind():
    quick = TINY.model_copy(update={"quick": "float16", "readers": "pool"})
    assert quick.exactly() == TINY
    assert quick.quickly() == TINY.model_copy(update={"dtype": "float16"})
    assert TINY.model_copy(update={"quick": "tf32"}).quickly() == TINY
    before = torch.get_float32_matmul_precision()
    with tf32():
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before
