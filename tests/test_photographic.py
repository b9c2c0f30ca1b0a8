"""The filter for artworks: the model's own answer decides, one image at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small
import torch
from corpus import scene
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from raypref.core.config import InputError, Resources
from raypref.core.rows import Row
from raypref.curate.photographic import Photographic, PhotographicConfig
from raypref.engine.batches import in_batches
from raypref.images.decode import encode_png, open_png

FOLDER = small.path("qwen3-vl")
CONFIG = PhotographicConfig(enabled=True, model=str(FOLDER), dtype="float32")


@pytest.fixture(scope="module")
def stage() -> Photographic:
    stage = Photographic(CONFIG)
    stage.setup()
    return stage


def make_rows(count: int) -> list[Row]:
    sizes = [(64, 64), (96, 64), (64, 128)]
    return [{"chosen": encode_png(scene(i, size=sizes[i % 3]))} for i in range(count)]


def test_the_answer_is_that_of_the_model_by_itself(stage: Photographic) -> None:
    """One image, inputs made by hand: what the model would say next."""
    [row] = make_rows(1)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32).eval()
    image = open_png(row["chosen"])
    places = (64 // 32) * (64 // 32)  # patches of 16 pixels, merged two by two
    text = (
        "<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * places
        + f"<|vision_end|>{CONFIG.question}<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer(text, return_tensors="pt").input_ids
    pixels = stage.images(images=[image], return_tensors="pt")
    with torch.no_grad():
        logits = model(
            input_ids=ids,
            pixel_values=pixels["pixel_values"],
            image_grid_thw=torch.tensor([[1, 4, 4]]),
            mm_token_type_ids=(ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).long(),
        ).logits[0, -1]
    chances = []
    for word in ("yes", "no"):
        ways = (word, word.capitalize(), word.upper(), f" {word}", f" {word.capitalize()}")
        firsts = {tokenizer(way).input_ids[0] for way in ways}
        # Here a space is a token of its own: it begins either answer and tells nothing.
        tokens = firsts - set(tokenizer(" ").input_ids)
        chances.append(torch.stack([logits[token].exp() for token in tokens]).sum().log())
    torch.testing.assert_close(stage.compute(stage.inputs([image]))[0], torch.stack(chances))


def test_images_are_resized_by_pillow_whatever_else_is_installed(
    stage: Photographic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own choice of an image processor hangs on whether torchvision is there."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the choice was left to the library")

    monkeypatch.setattr(AutoImageProcessor, "from_pretrained", refuse)
    again = Photographic(CONFIG)
    again.setup()
    image = scene(3, size=(90, 70))
    pixels = again.images(images=[image], return_tensors="pt")["pixel_values"]
    resized = image.resize((96, 64), Image.Resampling.BICUBIC)  # to multiples of 32
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    by_hand = (np.asarray(resized) / 255 - mean) / std
    assert pixels.mean().item() == pytest.approx(by_hand.mean(), abs=1e-5)
    assert type(again.images) is Qwen2VLImageProcessorPil


def test_an_answer_does_not_depend_on_the_other_images(stage: Photographic) -> None:
    images = [open_png(row["chosen"]) for row in make_rows(6)]
    alone = torch.cat([stage.compute(stage.inputs([image])) for image in images])
    torch.testing.assert_close(stage.compute(stage.inputs(images)), alone, rtol=0, atol=1e-5)
    assert (alone - alone[0]).abs().max() > 1e-4, "it does not look at the images"


def test_artworks_are_rejected_with_their_reason(stage: Photographic) -> None:
    rows = make_rows(9)
    answers = stage.compute(stage.inputs([open_png(row["chosen"]) for row in rows]))
    gap = answers[:, 0] - answers[:, 1]
    # A bias that parts the images in the middle: the model calls some of them artworks.
    limit = gap.median().item()
    original = stage.compute
    stage.compute = lambda batch: original(batch) - torch.tensor([limit, 0.0])  # type: ignore[method-assign]
    try:
        in_batches(stage, rows)
    finally:
        del stage.compute
    for row, above in zip(rows, (gap > limit).tolist(), strict=True):
        assert (row.get("reject_reason") == "not_a_photograph") is above
        assert (row.get("reject_stage") == "photographic") is above
    assert 3 <= sum("reject_reason" in row for row in rows) <= 5


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = PhotographicConfig(model=str(tmp_path / "none"), resources=Resources())
    with pytest.raises(InputError, match=r"photographic\.model"):
        config.folder()
