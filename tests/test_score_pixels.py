"""Rewards as functions of pixels: near the score of the image, a gradient, no batch in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import small
import torch
from PIL import Image
from reward_states import tiny_world, wide
from small_vlm import save_hpsv3, save_qwen2_5_vl, save_qwen3_vl
from test_clip_flant5 import save_clip_flant5
from test_reward_batches import configs as clip_configs
from transformers import CLIPImageProcessorPil

from raypref.core.config import InputError
from raypref.rewards import pixels
from raypref.rewards.base import DifferentiableReward
from raypref.rewards.config import RewardConfig
from raypref.rewards.hpsv3 import HPSv3Config
from raypref.rewards.pickscore import PickScoreConfig
from raypref.rewards.registry import REWARDS
from raypref.rewards.vqascore import VQAScoreConfig

__all__ = ["clip_configs"]

# Largest difference between an image's score and that of its pixels: what Pillow's resizing loses
# by rounding to 256 levels, twice. Scores of different images differ here by 100 times as much.
NEAR = {
    "clipscore": 0.05,
    "hpsv2": 1e-4,  # it resizes without rounding
    "perception": 0.05,
    "realism": 0.05,
    "aesthetic": 0.01,
    "imagereward": 0.005,
    "pickscore": 0.05,
    "vqascore": 5e-5,
    "vqascore-qwen3": 1e-6,
    "vqascore-flant5": 3e-5,
    "hpsv3": 1e-3,
}
# Small random language models are crooked: less of a change of pixels, or of a likelihood's log.
STEPS = {"hpsv3": 5e-4, "vqascore-flant5": 1e-3}
LOG_CHANGE = 0.05


@pytest.fixture(scope="module")
def rewards(clip_configs, tmp_path_factory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("others")
    base, head = save_hpsv3(folder / "hpsv3")
    flant5 = save_clip_flant5(folder / "flant5")
    pickscore = str(small.path("pickscore"))
    configs: dict[str, RewardConfig] = {
        **clip_configs,
        "pickscore": PickScoreConfig(model=pickscore, processor=pickscore),
        "vqascore": VQAScoreConfig(model=str(save_qwen2_5_vl(folder / "qwen2_5")), dtype="float32"),
        "vqascore-qwen3": VQAScoreConfig(
            model=str(save_qwen3_vl(folder / "qwen3")), dtype="float32"
        ),
        "vqascore-flant5": VQAScoreConfig(**flant5, dtype="float64"),
        "hpsv3": HPSv3Config(base=str(base), model=str(head), dtype="float32"),
    }
    return {name: config.load() for name, config in configs.items()}


every = pytest.mark.parametrize("name", NEAR)


def seen(images: list[Image.Image]) -> torch.Tensor:
    levels = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(levels).permute(0, 3, 1, 2).double() / 255


def test_every_reward_that_claims_a_gradient_is_tested() -> None:
    claimed = {name for name, kind in REWARDS.items() if kind.differentiable}
    assert claimed == {name.partition("-")[0] for name in NEAR}
    for name, kind in REWARDS.items():
        own = getattr(get_type_hints(kind.load)["return"], "score_pixels", None)
        assert (own is not None) == kind.differentiable, name
        assert own is not DifferentiableReward.score_pixels, name


@every
@pytest.mark.parametrize("form", [list, lambda images: [wide(image) for image in images]])
def test_its_value_is_near_the_score(rewards, name, form) -> None:
    images, prompts = tiny_world(2)
    images = form(images)
    expected = rewards[name].score(images, prompts)
    got = rewards[name].score_pixels(seen(images), prompts)
    assert got.shape == (2,) and got.dtype in (torch.float32, torch.float64)
    np.testing.assert_allclose(got.detach().numpy(), expected, atol=NEAR[name], rtol=0)


@every
def test_its_gradient_is_that_of_finite_differences(rewards, name) -> None:
    images, prompts = tiny_world(2)
    # Within the levels: clipped overshoot of a resize has a corner there.
    x = (0.3 + 0.4 * seen(images)).requires_grad_()
    logarithm = name.startswith("vqascore")

    def of(values: torch.Tensor) -> torch.Tensor:
        score_B = rewards[name].score_pixels(values, prompts)
        return score_B.log() if logarithm else score_B

    (gradient,) = torch.autograd.grad(of(x).sum(), x)
    assert gradient.shape == x.shape
    for b in range(2):
        assert gradient[b].abs().max() > 0 and bool(gradient[b].isfinite().all())
        direction = gradient[b] / gradient[b].abs().max()
        slope = (gradient[b] * direction).sum().item()
        step = STEPS.get(name) or (LOG_CHANGE / slope if logarithm else 0.01)
        moved = torch.stack([x.detach(), x.detach()])
        moved[0, b] += step * direction
        moved[1, b] -= step * direction
        found = (of(moved[0])[b] - of(moved[1])[b]).item() / (2 * step)
        assert found == pytest.approx(slope, rel=0.05 if logarithm else 0.02)


@every
def test_it_does_not_depend_on_its_batch(rewards, name) -> None:
    images, prompts = tiny_world(2)
    prompts[1] = "ball"
    x = seen(images).requires_grad_()
    together = rewards[name].score_pixels(x, prompts)
    (gradient,) = torch.autograd.grad(together.sum(), x)
    for b in range(2):
        one = x[b : b + 1].detach().requires_grad_()
        alone = rewards[name].score_pixels(one, [prompts[b]])
        (own,) = torch.autograd.grad(alone.sum(), one)
        assert alone.item() == pytest.approx(together[b].item(), rel=1e-4, abs=1e-4)
        assert (own[0] - gradient[b]).abs().max() < 1e-3 * gradient[b].abs().max()


@pytest.mark.parametrize("size", [(64, 64), (90, 40), (30, 101), (200, 300)])
def test_it_reads_what_the_processor_makes(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    images = [Image.fromarray(noise), Image.fromarray(noise[::-1].copy())]
    for resample in (2, 3):
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": 48}, crop_size={"height": 40, "width": 40}, resample=resample
        )
        expected = processor(images=images, return_tensors="pt")["pixel_values"]
        got = pixels.as_processor(processor, seen(images))
        assert got.shape == expected.shape
        apart = (got - expected).abs() * min(processor.image_std) * 255
        assert apart.max() < 1.6 and apart.mean() < 0.4  # levels


def test_a_filter_without_a_gradient_is_refused() -> None:
    with pytest.raises(InputError, match="resample=1"):
        pixels.as_processor(CLIPImageProcessorPil(resample=1), torch.zeros(1, 3, 50, 60))
