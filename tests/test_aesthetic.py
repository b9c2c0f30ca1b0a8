"""LAION's aesthetic heads: the published files, their arithmetic in NumPy, which CLIP they fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reward_states import clip_pixels, small_clip, tiny_world, wide, write_clip
from transformers import CLIPModel

from raypref.core.config import InputError
from raypref.rewards.aesthetic import AestheticConfig, load_head

PLACES = (0, 2, 4, 6, 7)
WIDTHS = (768, 1024, 128, 64, 16, 1)  # the published MLP
SMALL = small_clip(768)
PUBLISHED = {
    "sac+logos+ava1-l14-linearMSE.pth": 768,
    "sa_0_4_vit_l_14_linear.pth": 768,
    "sa_0_4_vit_b_32_linear.pth": 512,
    "sa_0_4_vit_b_16_linear.pth": 512,
}


def improved() -> dict[str, torch.Tensor]:
    """A random head in the layout of sac+logos+ava1-l14-linearMSE.pth."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for place, inside, out in zip(PLACES, WIDTHS, WIDTHS[1:], strict=False):
        weight = torch.randn(out, inside, generator=generator) / inside**0.5
        state[f"layers.{place}.weight"] = weight * (8 if place == 0 else 1)
        state[f"layers.{place}.bias"] = torch.randn(out, generator=generator)
    return state


def linear(width: int = 768) -> dict[str, torch.Tensor]:
    """A random head in the layout of sa_0_4_vit_*_linear.pth."""
    generator = torch.Generator().manual_seed(4)
    return {"weight": torch.randn(1, width, generator=generator), "bias": torch.tensor([5.0])}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"), SMALL)


def configured(clip, path, state: dict | None = None) -> AestheticConfig:
    if state is not None:
        torch.save(state, path)
    return AestheticConfig(model=str(clip), head=str(path))


def by_hand(state: dict, embedding: np.ndarray) -> float:
    x = embedding.astype(np.float64)
    if "weight" in state:
        return float(state["weight"].double().numpy()[0] @ x + state["bias"].item())
    for place in PLACES:
        weight, bias = (state[f"layers.{place}.{leaf}"] for leaf in ("weight", "bias"))
        x = weight.double().numpy() @ x + bias.double().numpy()
    return x.item()


@torch.no_grad()
def embedding(clip, image) -> np.ndarray:
    model = CLIPModel.from_pretrained(clip, dtype=torch.float32)
    seen = model.visual_projection(model.vision_model(clip_pixels(image, 32)[None]).pooler_output)
    return (seen[0] / seen.norm()).numpy()


@pytest.mark.parametrize("state", [improved(), linear()], ids=["improved", "linear"])
def test_the_score_is_the_head_of_the_unit_embedding(clip, tmp_path, state):
    config = configured(clip, tmp_path / "head.pth", state)
    config.check()
    images, prompts = tiny_world(5)
    images[1] = wide(images[1])
    scores = config.load().score(images, prompts)
    expected = [by_hand(state, embedding(clip, image)) for image in images]
    assert (scores.dtype, scores.shape) == (np.float32, (5,))
    np.testing.assert_allclose(scores, expected, atol=1e-4, rtol=0)
    assert scores.std() > 1e-2
    np.testing.assert_array_equal(scores, config.load().score(images, [""] * 5))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_heads(shared_data, name):
    """Random unit vectors score as the files' own documentation makes one expect: about 5."""
    path = shared_data / "weights" / name
    head = load_head(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    vectors = np.random.default_rng(0).standard_normal((500, PUBLISHED[name]))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = head(torch.tensor(vectors, dtype=torch.float32))[:, 0].numpy()
    np.testing.assert_allclose(scores, [by_hand(state, v) for v in vectors], atol=1e-4)
    if name.startswith("sac"):
        assert sum(p.numel() for p in head.parameters()) == 927_969
        assert scores.mean() == pytest.approx(5.24, abs=0.15)
        assert scores.std() == pytest.approx(0.65, abs=0.1)


def test_published_heads_on_a_model_of_their_width(shared_data, clip):
    images, prompts = tiny_world(2)
    for name in ("sac+logos+ava1-l14-linearMSE.pth", "sa_0_4_vit_l_14_linear.pth"):
        path = shared_data / "weights" / name
        state = torch.load(path, map_location="cpu", weights_only=True)
        scores = configured(clip, path).load().score(images, prompts)
        expected = [by_hand(state, embedding(clip, image)) for image in images]
        np.testing.assert_allclose(scores, expected, atol=1e-4, rtol=0)


def test_a_head_of_another_width_is_refused_before_any_work(clip, tmp_path):
    config = configured(clip, tmp_path / "sa_0_4_vit_b_32_linear.pth", linear(512))
    with pytest.raises(InputError) as caught:
        config.check()
    message = str(caught.value)
    assert message.startswith("rewards.aesthetic.head: 'sa_0_4_vit_b_32_linear.pth'")
    assert "512" in message
    assert "768" in message
    assert "set rewards.aesthetic.model=openai/clip-vit-base-patch32" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"weight": torch.zeros(1, 768)}, "missing: layers.0.weight, layers.0.bias, "),
        (improved() | {"layers.8.weight": torch.zeros(1)}, "unexpected: layers.8.weight)"),
        (
            improved() | {"layers.4.weight": torch.zeros(64, 99)},
            "mismatched: layers.4.weight [64, 99] instead of [64, 128])",
        ),
        ({"weight": torch.zeros(2, 768), "bias": torch.zeros(2)}, "2 outputs instead of 1"),
        ({"weight": torch.zeros(768), "bias": torch.zeros(1)}, "[768] instead of [1, 768]"),
    ],
)
def test_wrong_heads_are_named_in_one_line(clip, tmp_path, state, said):
    with pytest.raises(InputError) as caught:
        configured(clip, tmp_path / "head.pth", state).check()
    assert str(caught.value).startswith("rewards.aesthetic.head: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_head_says_where_to_get_it(clip, tmp_path):
    for head in (AestheticConfig().head, str(tmp_path / "head.pth")):
        with pytest.raises(InputError, match=r"^rewards\.aesthetic\.head: .*christophschuhmann"):
            AestheticConfig(model=str(clip), head=head).check()
    with pytest.raises(InputError, match=r"^rewards\.aesthetic\.model: .*config\.json"):
        configured(tmp_path, tmp_path / "head.pth", linear()).check()
