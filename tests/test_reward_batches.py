"""A score does not depend on its batch: the tolerances of docs/rewards.md, by precision."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from perception_states import SMALL
from perception_states import random_state as perception_state
from reward_states import (
    image_reward_names,
    open_clip_names,
    random_state,
    small_blip,
    small_clip,
    tiny_world,
    wide,
    write_base,
    write_bert_tokenizer,
    write_clip,
)
from transformers import CLIPTokenizer

from raypref.rewards.aesthetic import AestheticConfig
from raypref.rewards.base import tokenize
from raypref.rewards.clipscore import ClipScoreConfig
from raypref.rewards.config import RewardConfig
from raypref.rewards.hpsv2 import HPSv2Config
from raypref.rewards.imagereward import ImageRewardConfig
from raypref.rewards.perception import PerceptionConfig
from raypref.rewards.realism import RealismConfig

# Largest difference between an image's score alone and in a batch. float32: the last bits. Half
# precision: one rounding step of a cosine (2^-8, 2^-11) on the scale of the score. On a CPU the
# batch changes far less than this; other kernels may round elsewhere.
SCALES = {"clipscore": 100, "hpsv2": 100, "realism": 100, "aesthetic": 10, "imagereward": 10}
SCALES["perception"] = 100
STEPS = {"float32": 1e-6, "bfloat16": 2**-8, "float16": 2**-11}


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> dict[str, RewardConfig]:
    folder: Path = tmp_path_factory.mktemp("rewards")
    clip = str(write_clip(folder / "clip", small_clip(16), seed=2))
    pickscore = str(small.path("pickscore"))
    head = {"weight": torch.linspace(-8, 8, 16)[None], "bias": torch.tensor([5.0])}
    torch.save(head, folder / "head.pth")
    torch.save(random_state(open_clip_names(small_clip(24))), folder / "hpsv2.pt")
    torch.save(random_state(image_reward_names(small_blip())), folder / "imagereward.pt")
    torch.save(perception_state(SMALL["class token"]), folder / "perception.pt")
    write_bert_tokenizer(folder / "bert")
    return {
        "clipscore": ClipScoreConfig(model=clip, variant="percent"),
        "hpsv2": HPSv2Config(
            model=str(folder / "hpsv2.pt"), base=str(write_base(folder / "base", small_clip(24)))
        ),
        "perception": PerceptionConfig(model=str(folder / "perception.pt"), tokenizer=pickscore),
        "realism": RealismConfig(model=pickscore, processor=pickscore),
        "aesthetic": AestheticConfig(model=clip, head=str(folder / "head.pth")),
        "imagereward": ImageRewardConfig(
            model=str(folder / "imagereward.pt"), tokenizer=str(folder / "bert")
        ),
    }


@pytest.mark.parametrize("dtype", STEPS)
@pytest.mark.parametrize("name", SCALES)
def test_a_score_does_not_depend_on_its_batch(configs, name, dtype):
    reward = configs[name].model_copy(update={"dtype": dtype}).load()
    images, prompts = tiny_world(7)
    images[1], prompts[2] = wide(images[1]), "ball"
    together = reward.score(images, prompts)
    alone = [reward.score([i], [p])[0] for i, p in zip(images, prompts, strict=True)]
    backwards = reward.score(images[::-1], prompts[::-1])[::-1]
    assert together.dtype == np.float32
    tolerance = SCALES[name] * STEPS[dtype]
    np.testing.assert_allclose(together, alone, atol=tolerance, rtol=0)
    np.testing.assert_allclose(together, backwards, atol=tolerance, rtol=0)


def test_threads_that_tokenize_at_once_do_not_change_each_others_padding():
    """Without care a call gets the length of another thread's."""
    tokenizer = CLIPTokenizer.from_pretrained(small.path("pickscore"))

    def length(number: int) -> tuple[int, int]:
        asked = 77 if number % 2 else 40
        cut: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": asked}
        return asked, tokenize(tokenizer, ["a red ball on grass"] * 64, **cut)["input_ids"].shape[1]

    with ThreadPoolExecutor(8) as threads:
        assert all(asked == got for asked, got in threads.map(length, range(100)))
