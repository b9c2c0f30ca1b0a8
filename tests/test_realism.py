"""Realism: PickScore of one prompt with two prefixes, from one model and one look at the image."""

from __future__ import annotations

import numpy as np
import pytest
import small
from reward_states import tiny_world

from raypref.core.config import InputError, results_of
from raypref.engine.loaded import shared
from raypref.rewards.pickscore import PickScoreConfig
from raypref.rewards.realism import Realism, RealismConfig

FOLDER = str(small.path("pickscore"))
CONFIG = RealismConfig(model=FOLDER, processor=FOLDER)


@pytest.fixture(scope="module")
def realism() -> Realism:
    CONFIG.check()
    return CONFIG.load()


def test_the_score_is_a_difference_of_pickscores(realism):
    pickscore = PickScoreConfig(model=FOLDER, processor=FOLDER).load()
    images, prompts = tiny_world(6)
    prompts[2] = "a photo of a red ball on grass " * 40  # its prefix survives the cut
    photo = pickscore.score(images, [f"Realistic photo. {prompt}" for prompt in prompts])
    render = pickscore.score(images, [f"CG render. {prompt}" for prompt in prompts])
    scores = realism.score(images, prompts)
    assert (scores.dtype, scores.shape) == (np.float32, (6,))
    np.testing.assert_allclose(scores, photo - render, atol=1e-4, rtol=0)
    assert (np.abs(scores) > 1e-3).all()


def test_the_words_are_joined_as_asked(realism):
    pickscore = PickScoreConfig(model=FOLDER, processor=FOLDER).load()
    images, prompts = tiny_world(3)
    scores = CONFIG.model_copy(update={"separator": ", "}).load().score(images, prompts)
    photo = pickscore.score(images, [f"Realistic photo, {prompt}" for prompt in prompts])
    render = pickscore.score(images, [f"CG render, {prompt}" for prompt in prompts])
    np.testing.assert_allclose(scores, photo - render, atol=1e-4, rtol=0)
    assert np.abs(scores - realism.score(images, prompts)).max() > 1e-3
    assert "r.separator" not in results_of({"r": CONFIG})


def test_the_model_is_that_of_pickscore(realism):
    settings = PickScoreConfig(model=FOLDER, processor=FOLDER)
    assert realism.clip.model is shared(settings, settings.load).model


def test_a_missing_model_is_said_before_any_work(tmp_path):
    for key in ("model", "processor"):
        with pytest.raises(InputError, match=rf"^rewards\.realism\.{key}: "):
            CONFIG.model_copy(update={key: str(tmp_path)}).check()
