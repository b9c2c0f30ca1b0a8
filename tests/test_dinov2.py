"""DINOv2: the class token of the saved model, of unit length, through the published processor."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from reward_states import tiny_world, wide
from safetensors.torch import load_file, save_file
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from raypref.core.config import InputError
from raypref.rewards.dinov2 import DinoV2, DinoV2Config

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The layout of facebook/dinov2-large: model and BiT's processor with ImageNet's numbers."""
    folder = tmp_path_factory.mktemp("dinov2")
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=42, patch_size=14
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = Dinov2Model(config)
        for layer in model.encoder.layer:  # as trained: at first each layer hardly counts
            torch.nn.init.ones_(layer.layer_scale1.lambda1)
        model.save_pretrained(folder)
    BitImageProcessorPil(
        size={"shortest_edge": 48},
        crop_size={"height": 42, "width": 42},
        image_mean=MEAN.tolist(),
        image_std=STD.tolist(),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dinov2(folder) -> DinoV2:
    config = DinoV2Config(model=str(folder))
    config.check()
    return config.load()


@torch.no_grad()
def by_hand(folder, image: Image.Image) -> np.ndarray:
    short = min(image.size)
    image = image.resize([int(x * 48 / short) for x in image.size], Image.Resampling.BICUBIC)
    left, top = (image.width - 42) // 2, (image.height - 42) // 2
    pixels = np.asarray(image.crop((left, top, left + 42, top + 42))) / 255
    input_BCHW = torch.tensor((pixels - MEAN) / STD, dtype=torch.float32).permute(2, 0, 1)[None]
    model = Dinov2Model.from_pretrained(folder, dtype=torch.float32)
    token = model(input_BCHW).last_hidden_state[0, 0].numpy()
    return token / np.linalg.norm(token)


def test_embeddings_are_unit_class_tokens(dinov2, folder):
    images, _ = tiny_world(4)
    images[1] = wide(images[1])
    embeddings = dinov2.embed(images)
    assert (embeddings.dtype, embeddings.shape) == (np.float32, (4, 32))
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    expected = [by_hand(folder, image) for image in images]
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    assert embeddings.std(axis=0).max() > 0.01


def test_wrong_or_missing_models_are_said_in_one_line(folder, tmp_path):
    with pytest.raises(InputError, match=r"^rewards\.dinov2\.model: .*config\.json"):
        DinoV2Config(model=str(tmp_path)).check()
    with pytest.raises(InputError, match=r"^rewards\.dinov2\.model: .*hf download"):
        DinoV2Config().check()
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    state = load_file(folder / "model.safetensors")
    del state["layernorm.weight"]
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"^rewards\.dinov2\.model: .*missing: layernorm\.weight"):
        DinoV2Config(model=str(broken)).load()
