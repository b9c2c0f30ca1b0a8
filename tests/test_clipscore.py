"""CLIPScore against its three formulas, written out with the towers of the CLIP model."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from reward_states import clip_pixels, small_clip, tiny_world, wide, write_base, write_clip
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTokenizer

from raypref.core.config import InputError
from raypref.rewards.clipscore import ClipScore, ClipScoreConfig

SMALL = small_clip(16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"), SMALL, seed=6)


@pytest.fixture(scope="module")
def config(folder) -> ClipScoreConfig:
    return ClipScoreConfig(model=str(folder))


@pytest.fixture(scope="module")
def clipscore(config) -> ClipScore:
    config.check()
    return config.load()


@pytest.fixture(scope="module")
def model(folder) -> CLIPModel:
    return CLIPModel.from_pretrained(folder, dtype=torch.float32)


@torch.no_grad()
def cosine(model, folder, image, prompt: str) -> float:
    """One image at a time and without padding."""
    ids = CLIPTokenizer.from_pretrained(folder)(prompt).input_ids
    if len(ids) > 77:
        ids = [*ids[:76], ids[-1]]
    seen = model.visual_projection(model.vision_model(clip_pixels(image, 32)[None]).pooler_output)
    read = model.text_projection(model.text_model(torch.tensor([ids])).pooler_output)
    return float(seen[0] @ read[0] / seen.norm() / read.norm())


@pytest.mark.parametrize(
    ("variant", "formula"),
    [
        ("percent", lambda cos, _: 100 * max(cos, 0)),
        ("hessel", lambda _, prefixed: 2.5 * max(prefixed, 0)),
        ("cosine", lambda cos, _: cos),
    ],
)
def test_the_formula_of_each_variant(config, model, folder, variant, formula):
    images, prompts = tiny_world(6)
    images[1] = wide(images[1])
    prompts[3] = "a photo of a red ball on grass " * 40
    cosines = [cosine(model, folder, *pair) for pair in zip(images, prompts, strict=True)]
    prefixed = [
        cosine(model, folder, image, f"A photo depicts {prompt}")
        for image, prompt in zip(images, prompts, strict=True)
    ]
    assert max(cosines) > 0 > min(cosines)  # the maximum with 0 is seen at work
    scores = config.model_copy(update={"variant": variant}).load().score(images, prompts)
    expected = [formula(*pair) for pair in zip(cosines, prefixed, strict=True)]
    assert (scores.dtype, scores.shape) == (np.float32, (6,))
    np.testing.assert_allclose(scores, expected, atol=1e-4, rtol=0)


def test_embeddings_have_unit_length(clipscore):
    embeddings = clipscore.embed(tiny_world(3)[0])
    assert (embeddings.dtype, embeddings.shape) == (np.float32, (3, 16))
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


def test_a_missing_model_is_said_before_any_work(tmp_path):
    for model, said in ((str(tmp_path), "config.json"), ("openai/none", "hf download openai/none")):
        with pytest.raises(InputError) as caught:
            ClipScoreConfig(model=model).check()
        assert str(caught.value).startswith("rewards.clipscore.model: ")
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
    write_base(tmp_path / "base", SMALL)
    (tmp_path / "base" / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"preprocessor_config\.json"):
        ClipScoreConfig(model=str(tmp_path / "base")).check()


def drop(state: dict) -> dict:
    return {name: tensor for name, tensor in state.items() if "layers.1." not in name}


def resize(state: dict) -> dict:
    return state | {"visual_projection.weight": torch.zeros(3, 32)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop, "missing: text_model.encoder.layers.1.layer_norm1.bias, "),
        (drop, "and 29 more)"),
        (resize, "mismatched: visual_projection.weight [3, 32] instead of [16, 32])"),
        (None, "no CLIPModel in it"),
    ],
)
def test_wrong_weights_are_named_in_one_line(folder, tmp_path, change, said):
    broken = tmp_path / "clip"
    shutil.copytree(folder, broken)
    weights = broken / "model.safetensors"
    if change is None:
        weights.write_bytes(b"<html>404</html>")
    else:
        state = change(load_file(weights))
        save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(InputError) as caught:
        ClipScoreConfig(model=str(broken)).load()
    assert str(caught.value).startswith("rewards.clipscore.model: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("model.safetensors", "no CLIPModel in it"),
        ("tokenizer.json", "is a file of the tokenizer missing?"),
    ],
)
def test_a_folder_that_lacks_a_part_is_said_in_one_line(folder, tmp_path, file, said):
    broken = tmp_path / "clip"
    shutil.copytree(folder, broken, ignore=shutil.ignore_patterns(file))
    with pytest.raises(InputError) as caught:
        ClipScoreConfig(model=str(broken)).load()
    assert str(caught.value).startswith("rewards.clipscore.model: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
