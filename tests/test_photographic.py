"""The filter for artworks: the model's own answer decides, one image at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small
import torch
from corpus import scene
from PIL import Image
from small_vlm import save_qwen2_5_vl
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from raypref.core.config import InputError, Resources, results_of
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


@pytest.mark.parametrize(
    ("says", "kept"), [("No", True), ("no", True), ("Yes", False), ("no.", False), ("maybe", False)]
)
def test_the_written_answer_decides_if_asked(says: str, kept: bool, tmp_path: Path) -> None:
    """As in the released code: in lower case, nothing but "no" keeps an image."""
    pieces = [says] if says != "no." else ["no", "."]
    folder = save_qwen2_5_vl(tmp_path, says=pieces)
    config = PhotographicConfig(
        enabled=True, model=str(folder), dtype="float32", question="released", reading="text"
    )
    stage = Photographic(config)
    stage.setup()
    rows = make_rows(3)
    batch = stage.prepare(rows)
    asked = stage.tokenizer.decode(batch["input_ids"][0])
    assert (
        "if the given image is an **artwork or anime style** image. Respond with **only**" in asked
    )
    assert stage.compute(batch) == [says.lower()] * 3
    in_batches(stage, rows)
    for row in rows:
        assert ("reject_reason" in row) is not kept
        assert kept or row["reject_message"] == f"the model's answer is '{says.lower()}'"


def test_an_answer_is_that_of_greedy_decoding_alone(stage: Photographic) -> None:
    """Token by token by hand, of each image by itself."""
    images = [open_png(row["chosen"]) for row in make_rows(3)]
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32).eval()
    ends = {stage.model.generation_config.eos_token_id, tokenizer.eos_token_id}
    for image, answer in zip(images, stage.texts(stage.inputs(images)), strict=True):
        alone = stage.inputs([image])
        ids, said = alone["input_ids"], []
        for _ in range(8):
            more = torch.zeros_like(ids)
            more[:, : alone["input_ids"].shape[1]] = alone["mm_token_type_ids"]
            with torch.no_grad():
                logits = model(
                    input_ids=ids,
                    pixel_values=alone["pixel_values"],
                    image_grid_thw=alone["image_grid_thw"],
                    mm_token_type_ids=more,
                ).logits[0, -1]
            said.append(int(logits.argmax()))
            if said[-1] in ends:
                break
            ids = torch.cat([ids, torch.tensor([[said[-1]]])], 1)
        assert answer == tokenizer.decode(said, skip_special_tokens=True).strip().lower()


def test_the_default_is_what_it_was() -> None:
    before = results_of({"photographic": CONFIG})
    assert "photographic.reading" not in before
    asked = PhotographicConfig(reading="text", question="released")
    assert results_of({"photographic": asked})["photographic.reading"] == "text"
    assert CONFIG.asked == CONFIG.question


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = PhotographicConfig(model=str(tmp_path / "none"), resources=Resources())
    with pytest.raises(InputError, match=r"photographic\.model"):
        config.folder()
