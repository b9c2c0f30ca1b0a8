"""Masks in one form: run lengths of both orders, pictures, photographs painted black."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from corpus import encode, scene
from PIL import Image

from raypref.images.decode import ImageConfig, center_square
from raypref.images.masks import (
    MOST_RUNS,
    BadMask,
    binarised,
    cropped_mask,
    from_masked,
    from_picture,
    from_runs,
    grown,
    share,
)

LIMITS = ImageConfig()


def plain_runs(hole: np.ndarray, *, columns: bool) -> list[int]:
    """Run lengths of a boolean picture, pixel by pixel."""
    height, width = hole.shape
    order = (
        [(y, x) for x in range(width) for y in range(height)]
        if columns
        else [(y, x) for y in range(height) for x in range(width)]
    )
    runs: list[int] = []
    before = False
    for number, place in enumerate(order, start=1):
        inside = bool(hole[place])
        if inside and not before:
            runs += [number, 0]
        if inside:
            runs[-1] += 1
        before = inside
    return runs


def plain_mask(runs: list[int], height: int, width: int, *, columns: bool) -> np.ndarray:
    """The picture of run lengths, pixel by pixel."""
    mask = np.zeros((height, width), np.uint8)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        for pixel in range(start - 1, start - 1 + length):
            y, x = (pixel % height, pixel // height) if columns else (pixel // width, pixel % width)
            mask[y, x] = 255
    return mask


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("text", [False, True])
def test_run_lengths_of_both_orders_go_there_and_back(columns: bool, text: bool) -> None:
    rng = np.random.default_rng(0)
    for height, width in [(1, 1), (1, 9), (7, 1), (5, 8), (16, 3)]:
        for part in (0, 0.1, 0.5, 0.9, 1):
            hole = rng.random((height, width)) < part
            runs = plain_runs(hole, columns=columns)
            given = ",".join(map(str, runs)) if text else runs
            mask = from_runs(given, height=height, width=width, columns=columns)
            assert (mask.mode, mask.size) == ("L", (width, height))
            np.testing.assert_array_equal(np.asarray(mask), hole * 255)


def test_whatever_the_numbers_are_the_mask_is_that_of_a_plain_loop_or_refused() -> None:
    ends = {"read": 0, "refused": 0}
    for seed in range(3000):
        rng = random.Random(seed)
        height, width = rng.randint(1, 6), rng.randint(1, 6)
        runs = [rng.randint(-1, 9) for _ in range(rng.randint(0, 6))]
        if rng.random() < 0.5:  # likelier to be sound
            runs = sorted(runs)
            runs[1::2] = [1] * (len(runs) // 2)
        columns = rng.random() < 0.5
        pieces = [
            range(a - 1, a - 1 + b) for a, b in zip(runs[::2], runs[1::2], strict=False) if b > 0
        ]
        pixels = [pixel for piece in pieces for pixel in piece]
        sound = (
            len(runs) % 2 == 0
            and all(start >= 1 for start in runs[::2])
            and all(length >= 0 for length in runs[1::2])
            and len(set(pixels)) == len(pixels)
            and max(pixels, default=0) < height * width
        )
        try:
            mask = from_runs(runs, height=height, width=width, columns=columns)
        except BadMask as error:
            assert not sound and "\n" not in str(error), seed
            ends["refused"] += 1
            continue
        assert sound, seed
        expected = plain_mask(runs, height, width, columns=columns)
        np.testing.assert_array_equal(np.asarray(mask), expected, str(seed))
        ends["read"] += 1
    assert min(ends.values()) > 500, ends


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ("1,2,3", "in twos"),
        ("1,2,2,2", "overlap"),
        ("0,2", "before pixel 1"),
        ("-5,2", "before pixel 1"),
        ("3,-1", "negative"),
        ("60,9", "ends at pixel 68"),
        ("1,99999999999", "at most"),
        ("1," + "9" * 5000, "whole numbers"),
        ("1,x", "whole numbers"),
        ("1,2.5", "whole numbers"),
        ([1, 2.0], "whole numbers"),
        ([1, True], "whole numbers"),
        ([[1, 2]] * 2, "whole numbers"),
        ({"counts": "1"}, "text or a list"),
        (None, "text or a list"),
        ([1] * (2 * MOST_RUNS + 2), "runs; at most"),
        ("1 " * 2**24, "characters; at most"),
    ],
    ids=range(17),
)
def test_run_lengths_that_lie_are_refused_in_a_line(runs: object, said: str) -> None:
    with pytest.raises(BadMask, match=said) as caught:
        from_runs(runs, height=8, width=8, columns=True)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200


def test_a_size_that_no_memory_holds_is_refused_before_it_is_made() -> None:
    with pytest.raises(BadMask, match="at most 50000000"):
        from_runs("1,2", height=10**6, width=10**6, columns=False)


def disc(size: tuple[int, int]) -> Image.Image:
    width, height = size
    y, x = np.mgrid[:height, :width]
    inside = (x - width * 0.4) ** 2 + (y - height / 2) ** 2 < (min(size) / 3) ** 2
    return Image.fromarray(inside.astype(np.uint8) * 255)


@pytest.mark.parametrize("form", ["L", "1", "RGB", "P", "I;16", "opaque alpha", "jpeg"])
def test_white_says_repaint_in_every_kind_of_picture(form: str) -> None:
    mask = disc((96, 80))
    buffer = io.BytesIO()
    if form == "opaque alpha":
        mask.convert("RGBA").save(buffer, "PNG")
    elif form == "jpeg":
        mask.save(buffer, "JPEG", quality=90)
    elif form == "I;16":
        Image.fromarray(np.asarray(mask).astype(np.uint16) * 257).save(buffer, "PNG")
    else:
        mask.convert(form).save(buffer, "PNG")
    found = from_picture(buffer.getvalue(), LIMITS)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(mask))


def test_a_soft_mask_is_cut_where_the_pipelines_cut_it() -> None:
    soft = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(1, -1).repeat(64, 0))
    assert np.asarray(binarised(soft))[0].tolist() == [0] * 128 + [255] * 128


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (Image.new("L", (64, 64)), "no pixel of the mask is bright.*the brightest is 0"),
        (Image.new("L", (64, 64), 1), "the brightest is 1"),  # a label map of 0 and 1
        (Image.new("RGB", (64, 64), (255, 0, 0)), "colours"),
        (Image.new("RGBA", (64, 64), (0, 0, 0, 0)), "partly transparent"),
        (Image.new("LA", (64, 64), (255, 100)), "partly transparent"),
    ],
)
def test_a_picture_that_could_mean_two_things_is_refused(picture: Image.Image, said: str) -> None:
    with pytest.raises(BadMask, match=said):
        from_picture(encode(picture, "PNG"), LIMITS)


def test_a_mask_all_white_is_the_whole_picture() -> None:
    assert share(from_picture(encode(Image.new("L", (64, 64), 255), "PNG"), LIMITS)) == 1


def test_a_decompression_bomb_is_no_mask() -> None:
    bomb = encode(Image.new("1", (9000, 9000)), "PNG")
    with pytest.raises(BadMask, match="too_large"):
        from_picture(bomb, LIMITS)


@pytest.mark.parametrize("size", [(200, 120), (120, 200), (64, 64), (97, 97), (512, 333)])
@pytest.mark.parametrize("mask_size", [None, 2])
def test_a_mask_gets_the_crop_of_its_photograph(
    size: tuple[int, int], mask_size: int | None
) -> None:
    """A photograph that shows its own mask, cropped as photographs are, shows the cropped mask."""
    mask = disc(size)
    crop = center_square(mask.convert("RGB"), 64).convert("L")
    given = mask.resize((size[0] * 2, size[1] * 2), Image.Resampling.NEAREST) if mask_size else mask
    found = cropped_mask(given, size, (64, 64))
    assert (found.size, set(np.unique(found))) == ((64, 64), {0, 255})
    rim = np.abs(np.asarray(crop).astype(int) - np.asarray(found)) > 128
    assert rim.mean() < 0.02  # Lanczos and nearest differ at the rim alone


def test_a_mask_of_another_aspect_would_be_stretched() -> None:
    with pytest.raises(BadMask, match="64x64 pixels for a photograph of 128x64"):
        cropped_mask(Image.new("L", (64, 64), 255), (128, 64), (64, 64))


def test_growing_adds_what_is_near() -> None:
    hole = np.zeros((21, 21), bool)
    hole[10, 10] = hole[3, 4] = True
    y, x = np.mgrid[:21, :21]
    for pixels in (0, 1, 3):
        near = np.zeros_like(hole)
        for a, b in zip(*np.nonzero(hole), strict=True):
            near |= (y - a) ** 2 + (x - b) ** 2 <= pixels**2
        mask = Image.fromarray(hole.astype(np.uint8) * 255)
        np.testing.assert_array_equal(np.asarray(grown(mask, pixels)), near * 255)
    assert share(grown(Image.new("L", (9, 9)), 5)) == 0


def night() -> Image.Image:
    """A photograph with a black sky, a black hat in the middle, and colours below."""
    pixels = np.asarray(scene(1, size=(96, 96))).copy()
    pixels = np.maximum(pixels, 30)
    pixels[:24] = 0
    pixels[50:60, 40:56] = (2, 1, 3)
    return Image.fromarray(pixels)


def test_published_bug_9_dark_pixels_of_the_photograph_are_not_the_hole() -> None:
    photo = night()
    hole = np.zeros((96, 96), bool)
    hole[40:80, 30:70] = True  # the hat lies in it, the sky does not
    masked = Image.fromarray(np.where(hole[..., None], 0, np.asarray(photo)).astype(np.uint8))
    released = np.asarray(masked).astype(int).sum(-1) < 15
    assert released[:24].all(), "by darkness alone the sky is repainted too"
    found = np.asarray(from_masked(masked, photo)) == 255
    np.testing.assert_array_equal(found, hole)


def test_where_a_hole_leads_into_dark_pixels_the_photograph_is_kept() -> None:
    photo = night()
    hole = np.zeros((96, 96), bool)
    hole[20:44, 30:70] = True  # four rows of it lie in the sky
    masked = Image.fromarray(np.where(hole[..., None], 0, np.asarray(photo)).astype(np.uint8))
    found = np.asarray(from_masked(masked, photo)) == 255
    hole[:24] = False  # of the sky nothing says where the hole ends
    np.testing.assert_array_equal(found, hole)


def test_a_masked_copy_may_be_compressed_and_of_another_size() -> None:
    photo = scene(2, size=(128, 96))
    photo = Image.fromarray(np.maximum(np.asarray(photo), 40))
    hole = np.asarray(disc((128, 96))) == 255
    pixels = np.where(hole[..., None], 0, np.asarray(photo)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    masked = Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")
    assert ((np.asarray(from_masked(masked, photo)) == 255) == hole).mean() > 0.97
    large = Image.fromarray(pixels).resize((256, 192), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(np.asarray(from_masked(large, photo)) == 255, hole)


def test_a_mask_in_the_place_of_a_masked_copy_is_a_mask() -> None:
    photo, mask = scene(3, size=(96, 80)), disc((96, 80))
    np.testing.assert_array_equal(
        np.asarray(from_masked(mask.convert("RGB"), photo)), np.asarray(mask)
    )


@pytest.mark.parametrize(
    ("masked", "photo", "said"),
    [
        (scene(0, size=(64, 64)), None, "no hole"),
        (Image.new("RGB", (64, 32)), Image.new("RGB", (64, 64), "white"), "for a photograph of"),
        (Image.new("RGB", (64, 64)), Image.new("RGB", (64, 64)), "nothing tells the hole"),
        ("other", scene(5, size=(64, 64)), "another picture"),
    ],
)
def test_a_masked_copy_that_tells_nothing_is_refused(
    masked: Image.Image | str, photo: Image.Image | None, said: str
) -> None:
    if isinstance(masked, str):
        pixels = 255 - np.asarray(scene(5, size=(64, 64)))
        pixels[:8] = 0
        masked = Image.fromarray(pixels)
    with pytest.raises(BadMask, match=said):
        from_masked(masked, photo or Image.fromarray(np.maximum(np.asarray(masked), 9)))
