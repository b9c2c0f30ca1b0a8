"""ImageReward: official names, BLIP's architecture and the head written out, one-line errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reward_states import (
    Blip,
    bert_vocabulary,
    clip_pixels,
    image_reward_first_token,
    image_reward_names,
    random_state,
    small_blip,
    tiny_world,
    wide,
    write_bert_tokenizer,
)
from transformers import BlipTextModel, BlipVisionModel

from raypref.core.config import InputError
from raypref.rewards.imagereward import (
    UNUSED,
    ImageReward,
    ImageRewardConfig,
    key_table,
    text_config,
    vision_config,
)

SMALL = small_blip()
STATE = random_state(image_reward_names(SMALL))


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> ImageRewardConfig:
    folder = tmp_path_factory.mktemp("imagereward")
    torch.save(STATE, folder / "ImageReward.pt")
    write_bert_tokenizer(folder / "tokenizer")
    return ImageRewardConfig(
        model=str(folder / "ImageReward.pt"), tokenizer=str(folder / "tokenizer")
    )


@pytest.fixture(scope="module")
def reward(config) -> ImageReward:
    config.check()
    return config.load()


def head(first: torch.Tensor) -> float:
    """Five linear layers, then the released normalisation."""
    x = first
    for place in (0, 2, 4, 6, 7):
        weight, bias = (STATE[f"mlp.layers.{place}.{leaf}"] for leaf in ("weight", "bias"))
        x = weight.double() @ x + bias.double()
    return (float(x) - 0.16717362830052426) / 1.0333394966054072


def formula(image, prompt: str) -> float:
    vocabulary = bert_vocabulary()
    words = [vocabulary.index(word) if word in vocabulary else 1 for word in prompt.lower().split()]
    ids = [2, *words[:33], 3]
    return head(image_reward_first_token(STATE, SMALL, clip_pixels(image, 32), ids))


def test_scores_are_those_of_the_official_architecture(reward):
    images, prompts = tiny_world(5)
    images[1] = wide(images[1])
    prompts[2] = prompts[2].upper()
    prompts[3] = " ".join(prompts) + " zebra"  # unknown, and longer than 35 tokens
    scores = reward.score(images, prompts)
    expected = [formula(*pair) for pair in zip(images, prompts, strict=True)]
    assert (scores.dtype, scores.shape) == (np.float32, (5,))
    np.testing.assert_allclose(scores, expected, atol=1e-4, rtol=0)
    assert scores.std() > 0.1
    assert np.isfinite(reward.score(images[:1], [""])).all()


def test_the_prompt_counts(reward):
    images, prompts = tiny_world(2)
    one, other = reward.score([images[0]] * 2, prompts)
    assert abs(one - other) > 1e-3


def test_every_official_name_has_its_place():
    """The released checkpoint: 1.79 GB in float32, each tensor once, nothing left over."""
    official = image_reward_names(Blip())
    table = key_table(vision_layers=24, text_layers=12)
    assert set(table) | set(UNUSED) == set(official)
    assert not set(table) & set(UNUSED)
    parameters = sum(int(np.prod(shape)) for shape in official.values())
    assert round(4 * parameters / 1e9, 2) == 1.79
    with torch.device("meta"):
        state = {ours: torch.empty(official[name]) for name, ours in table.items()}
        parts = {
            part: {x.removeprefix(part): t for x, t in state.items() if x.startswith(part)}
            for part in ("vision.", "text.", "head.")
        }
        text = text_config(parts["text."])
        vision = vision_config(parts["vision."])
        built = {
            "vision.": BlipVisionModel(vision),
            "text.": BlipTextModel(text, add_pooling_layer=False),
        }
    for part, model in built.items():
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        assert shapes == {name: tensor.shape for name, tensor in parts[part].items()}
    assert (vision.image_size, vision.num_attention_heads, vision.layer_norm_eps) == (224, 16, 1e-6)
    assert (text.num_attention_heads, text.layer_norm_eps) == (12, 1e-12)
    assert parts["head."]["layers.0.weight"].shape == (1024, 768)
    assert parts["head."]["layers.7.weight"].shape == (1, 16)


def changed(**new) -> dict:
    return {name: tensor for name, tensor in (STATE | new).items() if tensor is not None}


def test_what_the_score_does_not_use_may_be_missing(config, reward, tmp_path):
    path = tmp_path / "ImageReward.pt"
    torch.save(changed(**dict.fromkeys(UNUSED)), path)
    images, prompts = tiny_world(2)
    lean = config.model_copy(update={"model": str(path)}).load()
    np.testing.assert_array_equal(lean.score(images, prompts), reward.score(images, prompts))


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (changed(**{"mlp.layers.7.bias": None}), "missing: mlp.layers.7.bias)"),
        (changed(**{"blip.itm_head.weight": torch.zeros(2)}), "unexpected: blip.itm_head.weight)"),
        (
            changed(**{"mlp.layers.0.weight": torch.zeros(1024, 8)}),
            "mismatched: layers.0.weight [1024, 8] instead of [1024, 64])",
        ),
        (
            changed(**{"blip.visual_encoder.norm.weight": torch.zeros(7)}),
            "mismatched: post_layernorm.weight [7] instead of [128])",
        ),
        ({"logit_scale": torch.zeros(())}, "missing: blip.visual_encoder.cls_token, "),
    ],
)
def test_wrong_weights_are_named_in_one_line(config, tmp_path, state, said):
    path = tmp_path / "ImageReward.pt"
    torch.save(state, path)
    with pytest.raises(InputError) as caught:
        config.model_copy(update={"model": str(path)}).load()
    message = str(caught.value)
    assert message.startswith("rewards.imagereward.model: ")
    assert "https://huggingface.co/THUDM/ImageReward" in message
    assert said in message
    assert "\n" not in message


def test_what_is_missing_is_said_before_any_work(config, tmp_path):
    missing = config.model_copy(update={"model": str(tmp_path / "ImageReward.pt")})
    with pytest.raises(InputError, match=r"^rewards\.imagereward\.model: .*THUDM/ImageReward"):
        missing.check()
    missing = config.model_copy(update={"tokenizer": str(tmp_path)})
    with pytest.raises(InputError, match=r"^rewards\.imagereward\.tokenizer: .*tokenizer_config"):
        missing.check()


def test_a_tokenizer_of_another_model_is_refused(config, tmp_path):
    path = tmp_path / "ImageReward.pt"
    words = "blip.text_encoder.embeddings.word_embeddings.weight"
    torch.save(changed(**{words: STATE[words][:20]}), path)
    with pytest.raises(InputError, match=r"^rewards\.imagereward\.tokenizer: .*the model 18;"):
        config.model_copy(update={"model": str(path)}).load()
