"""HPSv2: open_clip's names and architecture written out, the package's input, one-line errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from reward_states import (
    MEAN,
    STD,
    OpenClip,
    open_clip_cosine,
    open_clip_names,
    random_state,
    small_clip,
    tiny_world,
    wide,
    write_base,
)
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from raypref.core.config import InputError
from raypref.rewards.hpsv2 import HPSv2, HPSv2Config, key_table, letterboxed, to_transformers

SMALL = small_clip(24)
STATE = random_state(open_clip_names(SMALL))


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> HPSv2Config:
    folder = tmp_path_factory.mktemp("hpsv2")
    torch.save({"epoch": 1, "state_dict": STATE}, folder / "HPS_v2.1_compressed.pt")
    return HPSv2Config(
        model=str(folder / "HPS_v2.1_compressed.pt"), base=str(write_base(folder / "base", SMALL))
    )


@pytest.fixture(scope="module")
def hpsv2(config) -> HPSv2:
    config.check()
    return config.load()


def padded(image: Image.Image, side: int) -> torch.Tensor:
    """The package's input by Pillow's float resampling: longest side, black around, normalise."""
    scale = side / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    canvas = np.zeros((side, side, 3), dtype=np.float32)
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    for channel in range(3):
        plane = Image.fromarray(np.asarray(image, dtype=np.float32)[..., channel] / 255)
        plane = plane.resize(size, Image.Resampling.BICUBIC)
        canvas[top : top + size[1], left : left + size[0], channel] = plane
    return torch.tensor((canvas - MEAN) / STD, dtype=torch.float32).permute(2, 0, 1)


def ids_of(config: HPSv2Config, prompt: str) -> list[int]:
    ids = CLIPTokenizer.from_pretrained(config.base)(prompt).input_ids
    return ids if len(ids) <= 77 else [*ids[:76], ids[-1]]


def test_scores_are_those_of_open_clip(hpsv2, config):
    images, prompts = tiny_world(5)
    images[1], images[2] = wide(images[1]), wide(images[2]).rotate(90, expand=True)
    prompts[3] = "a photo of a red ball on grass " * 40
    scores = hpsv2.score(images, prompts)
    expected = [
        100 * open_clip_cosine(STATE, SMALL, padded(image, 32), ids_of(config, prompt))
        for image, prompt in zip(images, prompts, strict=True)
    ]
    assert (scores.dtype, scores.shape) == (np.float32, (5,))
    np.testing.assert_allclose(scores, expected, atol=1e-3, rtol=0)
    assert scores.std() > 0.1


@pytest.mark.parametrize("size", [(64, 64), (64, 40), (31, 100), (32, 32), (1, 900)])
def test_the_whole_image_is_seen(size):
    image = Image.effect_noise(size, 80).convert("RGB")
    [pixels] = letterboxed(32)([image])
    assert pixels.shape == (3, 32, 32)
    if min(size) > 1:
        torch.testing.assert_close(pixels, padded(image, 32), atol=2e-3, rtol=0)


def test_every_official_name_has_its_place():
    """ViT-H-14: 686 tensors, 986.11 M parameters, as open_clip's own table gives them."""
    official = open_clip_names(OpenClip())
    assert len(official) == 686
    config = CLIPConfig.from_dict(OpenClip().config())
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in official.items()}
        ours = {name: tensor.shape for name, tensor in CLIPModel(config).state_dict().items()}
    table = key_table(text_layers=24, vision_layers=32)
    assert set(table) == set(official)
    converted = to_transformers(state, table)
    assert {name: tensor.shape for name, tensor in converted.items()} == ours
    assert round(sum(tensor.numel() for tensor in converted.values()) / 1e6, 2) == 986.11


def test_embeddings_have_unit_length(hpsv2):
    embeddings = hpsv2.embed(tiny_world(3)[0])
    assert (embeddings.dtype, embeddings.shape) == (np.float32, (3, 24))
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


def changed(**new) -> dict:
    return {name: tensor for name, tensor in (STATE | new).items() if tensor is not None}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (changed(**{"visual.proj": None}), "missing: visual.proj)"),
        (changed(score_predictor=torch.zeros(3)), "unexpected: score_predictor)"),
        (
            changed(**{f"visual.ln_{i}": torch.zeros(1) for i in range(5)}),
            "unexpected: visual.ln_0, visual.ln_1, visual.ln_2 and 2 more)",
        ),
        (
            changed(text_projection=torch.zeros(16, 8)),
            "mismatched: text_projection.weight [8, 16] instead of [24, 16])",
        ),
        ({"weights": [1, 2]}, "no dict of tensors"),
        (None, "UnpicklingError"),
    ],
)
def test_wrong_weights_are_named_in_one_line(config, tmp_path, state, said):
    path = tmp_path / "HPS.pt"
    if state is None:
        path.write_bytes(b"<html>404</html>")
    else:
        torch.save(state, path)
    with pytest.raises(InputError) as caught:
        config.model_copy(update={"model": str(path)}).load()
    message = str(caught.value)
    assert message.startswith("rewards.hpsv2.model: ")
    assert "https://huggingface.co/xswu/HPSv2" in message
    assert said in message
    assert "\n" not in message


def test_pickled_code_is_not_run(config, tmp_path):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return ran.touch, ()

    torch.save({"state_dict": {"logit_scale": Evil()}}, tmp_path / "HPS.pt")
    with pytest.raises(InputError, match=r"rewards\.hpsv2\.model: .*HPS\.pt"):
        config.model_copy(update={"model": str(tmp_path / "HPS.pt")}).load()
    assert not ran.exists()


def test_what_is_missing_is_said_before_any_work(config, tmp_path):
    missing = config.model_copy(update={"model": str(tmp_path / "HPS_v2_compressed.pt")})
    with pytest.raises(InputError, match=r"^rewards\.hpsv2\.model: .*huggingface.co/xswu/HPSv2"):
        missing.check()
    missing = config.model_copy(update={"base": str(tmp_path)})
    with pytest.raises(InputError, match=r"^rewards\.hpsv2\.base: .*config\.json"):
        missing.check()
    with pytest.raises(InputError, match=r"^rewards\.hpsv2\."):
        HPSv2Config().check()  # nothing of the hub is here
