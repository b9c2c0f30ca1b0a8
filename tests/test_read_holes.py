"""Holes to evaluate on, of every form in which people keep them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import pytest
from PIL import Image

from raypref.core.config import InputError
from raypref.core.rows import Row
from raypref.evaluate.holes import LoadHole
from raypref.images.decode import center_square
from raypref.sources.holes import HOLE, read_holes

SIZE = 64


def loaded(rows: list[Row], size: int = SIZE) -> list[Row]:
    """The rows after a worker has read their images."""
    load = LoadHole(size)
    load.setup()
    load(rows)
    return rows


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def half(size: tuple[int, int]) -> Image.Image:
    """A mask whose left half is the hole."""
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[:, : size[0] // 2] = 255
    return Image.fromarray(pixels)


def test_a_folder_of_photographs_masks_and_captions(tmp_path: Path) -> None:
    photo = corpus.scene(0, size=(120, 80))
    photo.save(tmp_path / "a.png")
    half((120, 80)).save(tmp_path / "a_mask.png")
    (tmp_path / "a.txt").write_text("a red ball")
    [row] = read_holes(str(tmp_path), limit=None)
    assert {"id", "prompt", *HOLE.names} == row.keys()
    assert (row["id"], row["prompt"]) == ("a_mask.png", "a red ball")
    loaded([row])
    assert row["mask"].mode == "L" and row["photograph"].mode == "RGB"
    np.testing.assert_array_equal(levels(row["photograph"]), levels(center_square(photo, SIZE)))
    np.testing.assert_array_equal(levels(row["mask"]), levels(half((SIZE, SIZE))))


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelname == "WARNING"]


def test_every_mask_of_a_folder_is_a_hole_and_other_pictures_are_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["a.png", "b.png", "bare.png", "deep/c.png", "masked.png"]
    masks = ["a_mask_0.png", "a_mask_1.png", "masks/b.png", "deep/c.mask.png", "bare_mask.png"]
    for name in ("deep", "masks"):
        (tmp_path / name).mkdir()
    for number, name in enumerate([*names, "b_depth.png", "masked_depth.png"]):
        corpus.scene(number, size=(80, 80)).save(tmp_path / name)
    for name in masks:
        half((80, 80)).save(tmp_path / name)
    table = "file,caption\na.png,one\nb.png,two\ndeep/c.png,three\nmasked.png,four\n"
    (tmp_path / "captions.csv").write_text(table)
    rows = read_holes(str(tmp_path), limit=None)
    found = {row["id"]: (row["photo_file"], row["prompt"]) for row in rows}
    assert found == {
        "a_mask_0.png": ("a.png", "one"),
        "a_mask_1.png": ("a.png", "one"),
        "deep/c.mask.png": ("deep/c.png", "three"),
        "masks/b.png": ("b.png", "two"),
    }
    said = "evaluate.holes: 2 entries left out: masked.png has no mask such as masked_mask.png"
    assert warned(caplog) == [said]
    assert [row["id"] for row in read_holes(str(tmp_path), limit=2)] == [*found][:2]
    assert all("mask" in row for row in loaded(rows))


# --- benchmarks as they are published ---

SIDE = 512
HOLE_BOX = (slice(100, 300), slice(150, 420))  # rows, columns


def photograph(number: int = 0, size: int = SIDE) -> Image.Image:
    """Nothing in it is nearly black."""
    return Image.fromarray(np.maximum(np.asarray(corpus.scene(number, size=(size, size))), 40))


def hole(size: int = SIDE) -> np.ndarray:
    inside = np.zeros((size, size), bool)
    inside[HOLE_BOX] = True
    return inside


def along_rows(inside: np.ndarray) -> list[int]:
    """Run lengths as BrushBench has them, counted from 1 along the rows."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.ravel().astype(int), [0]])))
    return [int(n) for a, b in edges.reshape(-1, 2) for n in (a + 1, b - a)]


def entry(name: str = "images/0.png", **other: object) -> dict[str, Any]:
    own = {"image": name, "caption": "a dog", "inpainting_mask": along_rows(hole())}
    return own | {"outpainting_mask": [1, 5]} | other


def brushbench(root: Path, content: object, file: str = "mapping_file.json") -> Path:
    (root / "images").mkdir(exist_ok=True)
    photograph().save(root / "images" / "0.png")
    text = content if isinstance(content, str) else json.dumps(content)
    (root / file).write_text(text)
    return root


def expected(size: int = SIZE) -> np.ndarray:
    """The hole in the crop, from the corners of its box."""
    inside = np.zeros((size, size), bool)
    rows, columns = HOLE_BOX
    scale = size / SIDE
    inside[
        round(rows.start * scale) : round(rows.stop * scale),
        round(columns.start * scale) : round(columns.stop * scale),
    ] = True
    return inside


def same_hole(row: Row) -> bool:
    return bool(((levels(row["mask"]) == 255) != expected()).mean() < 0.03)


@pytest.mark.parametrize("form", ["object", "list", "the file itself", "text"])
def test_brushbench_as_an_object_and_as_a_list(form: str, tmp_path: Path) -> None:
    listed = form == "list"
    own = entry(inpainting_mask=",".join(map(str, along_rows(hole())))) if form == "text" else {}
    content: Any = [entry(image_id="7")] if listed else {"7": own or entry()}
    file = "mapping_file_list.json" if listed else "mapping_file.json"
    root = brushbench(tmp_path, content, file)
    [row] = read_holes(str(root / file if form == "the file itself" else root), limit=None)
    assert (row["id"], row["prompt"], row["photo_file"]) == ("7", "a dog", "images/0.png")
    loaded([row])
    assert same_hole(row) and "reject_reason" not in row


def editbench(root: Path, part: str, names: list[str], *, dark: bool = False) -> None:
    lines = ["aos,prompt_mask-simple,prompt_mask-rich,prompt_full"]
    for number, name in enumerate(names):
        lines.append(f'{name},a cat,a red cat,"a cat, {part}"')
        pixels = np.asarray(photograph(number)).copy()
        if dark:
            pixels[:60] = 0
        for kind, picture in (("references", pixels), ("masks", pixels * ~hole()[..., None])):
            (root / f"{kind}_{part}").mkdir(exist_ok=True)
            Image.fromarray(picture).save(root / f"{kind}_{part}" / f"{name}.png")
    (root / f"annotations_{part}.csv").write_text("\n".join(lines) + "\n")


def test_editbench_is_read_with_the_prompts_of_the_whole_picture(tmp_path: Path) -> None:
    editbench(tmp_path, "natural", ["0", "1"])
    editbench(tmp_path, "generated", ["0"])
    rows = read_holes(str(tmp_path), limit=None)
    assert [(row["id"], row["prompt"]) for row in rows] == [
        ("0_natural", "a cat, natural"),
        ("1_natural", "a cat, natural"),
        ("0_generated", "a cat, generated"),
    ]
    assert all(map(same_hole, loaded(rows)))
    part = read_holes(str(tmp_path / "annotations_generated.csv"), limit=None)
    assert [row["id"] for row in part] == ["0_generated"]


def test_a_list_of_editbench_is_read_as_well(tmp_path: Path) -> None:
    editbench(tmp_path, "natural", ["0"])
    item = {
        "aos": 0,
        "type": "natural",
        "caption": "a cat",
        "image_path": "references_natural/0.png",
    }
    masked = {"masked_image_path": "masks_natural/0.png"}
    absolute = item | {"image_path": "/data/0.png", "aos": 1} | masked
    (tmp_path / "list.json").write_text(json.dumps([absolute, item | masked]))
    [row] = read_holes(str(tmp_path / "list.json"), limit=None)
    assert row["id"] == "0_natural"
    assert same_hole(loaded([row])[0])


def test_published_bug_9_dark_photographs_of_editbench_keep_their_dark_pixels(
    tmp_path: Path,
) -> None:
    editbench(tmp_path, "natural", ["0"], dark=True)
    [row] = loaded(read_holes(str(tmp_path), limit=None))
    assert same_hole(row)


def test_published_bug_4_masks_of_every_benchmark_are_of_one_form(tmp_path: Path) -> None:
    """Blending took run lengths alone, so that EditBench could not be evaluated."""
    for name in ("brush", "edit", "own"):
        (tmp_path / name).mkdir()
    brushbench(tmp_path / "brush", {"0": entry()})
    editbench(tmp_path / "edit", "natural", ["0"])
    photograph().save(tmp_path / "own" / "a.png")
    (tmp_path / "own" / "a.txt").write_text("a dog")
    Image.fromarray(hole().astype(np.uint8) * 255).save(tmp_path / "own" / "a_mask.png")
    rows = [
        loaded(read_holes(str(tmp_path / name), limit=None))[0] for name in ("brush", "edit", "own")
    ]
    assert len({frozenset(row) for row in rows}) == 1
    for row in rows:
        assert (row["mask"].mode, row["mask"].size) == ("L", (SIZE, SIZE))
        assert {*np.unique(row["mask"])} == {0, 255} and same_hole(row)


def test_photograph_and_mask_get_the_same_crop(tmp_path: Path) -> None:
    """The hole is where the photograph is red."""
    pixels = np.full((300, 500, 3), 90, np.uint8)
    inside = np.zeros((300, 500), np.uint8)
    inside[30:200, 150:330] = 255
    pixels[inside == 255] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("red")
    half_size = Image.fromarray(inside).resize((250, 150), Image.Resampling.NEAREST)
    half_size.save(tmp_path / "a_mask.png")
    [row] = loaded(read_holes(str(tmp_path), limit=None))
    red = levels(row["photograph"])[..., 0] > 170
    assert ((levels(row["mask"]) == 255) != red).mean() < 0.01


# --- what strangers write ---

BAD_WHOLES = {
    "not JSON": "{",
    "not UTF-8": "\x00\xff",
    "a number": "3",
    "nested": "[" * 10**5,
    "an object nested": '{"a":' * 10**5,
    "an empty list": "[]",
    "an empty object": "{}",
    "of another kind": '[{"url": "x"}]',
    "of texts": '["a"]',
    "no hole left": json.dumps([{"inpainting_mask": [1, 2], "caption": "a", "image": "gone.png"}]),
}


@pytest.mark.parametrize("name", BAD_WHOLES)
def test_a_file_that_is_wrong_as_a_whole_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    root = brushbench(tmp_path, BAD_WHOLES[name])
    with pytest.raises(InputError, match=r"^evaluate\.holes: ") as caught:
        read_holes(str(root), limit=None)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


BAD_ENTRIES: dict[str, Any] = {
    "no object": "x",
    "no caption": {k: v for k, v in entry().items() if k != "caption"},
    "blank caption": entry(caption="  "),
    "caption of a number": entry(caption=3),
    "half a character": entry(caption="\ud800"),
    "no image": {k: v for k, v in entry().items() if k != "image"},
    "missing image": entry("images/gone.png"),
    "image outside": entry("../secret.png"),
    "absolute image": entry("/etc/hostname"),
    "image of NUL": entry("a\0b.png"),
    "no mask": {k: v for k, v in entry().items() if k != "inpainting_mask"},
    "empty mask": entry(inpainting_mask=[]),
    "odd runs": entry(inpainting_mask=[1, 2, 3]),
    "negative run": entry(inpainting_mask=[5, -2]),
    "overlapping runs": entry(inpainting_mask=[1, 9, 3, 2]),
    "runs too long": entry(inpainting_mask=[1, 512 * 512 + 1]),
    "a bomb of a run": entry(inpainting_mask=[1, 10**18]),
    "runs of texts": entry(inpainting_mask=["a", "b"]),
    "nested runs": entry(inpainting_mask=[[1, 2]]),
    "a bomb of a size": entry(width=10**6, height=10**6),
    "a size of text": entry(width="512"),
    "a size of nothing": entry(width=0, height=0),
    "there twice": entry(image_id="good"),
}


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_a_bad_entry_is_left_out_and_counted(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "set").mkdir()
    photograph().save(tmp_path / "secret.png")
    good = entry(image_id="good")
    root = brushbench(tmp_path / "set", [good, BAD_ENTRIES[name], entry(image_id="last")])
    assert [row["id"] for row in read_holes(str(root), limit=None)] == ["good", "last"]
    [said] = warned(caplog)
    assert said.startswith("evaluate.holes: 1 entry left out: ")
    assert "\n" not in said and len(said) < 300 and said.encode()


@pytest.mark.parametrize("name", ["no object", "no mask", "no image"])
def test_a_bad_first_entry_does_not_decide_the_form(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = brushbench(tmp_path, [BAD_ENTRIES[name], entry(image_id="good")])
    assert [row["id"] for row in read_holes(str(root), limit=None)] == ["good"]
    [said] = warned(caplog)
    assert said.startswith("evaluate.holes: 1 entry left out: entry 000000")


def test_messages_about_holes_name_no_setting_of_the_source(tmp_path: Path, caplog) -> None:
    """`source.roots` and `source.image_column` would change nothing."""
    (tmp_path / "set").mkdir()
    for name, at in (("secret", tmp_path), ("b", tmp_path / "set")):
        photograph().save(at / f"{name}.png")
        half((120, 120)).save(at / f"{name}_mask.png")
    (tmp_path / "set" / "a.png").symlink_to(tmp_path / "secret.png")
    half((120, 120)).save(tmp_path / "set" / "a_mask.png")
    (tmp_path / "set" / "a.txt").write_text("a")
    (tmp_path / "set" / "b.txt").write_text("b")
    rows = loaded(read_holes(str(tmp_path / "set"), limit=None))
    told = [row.get("reject_message") or "" for row in rows]
    (tmp_path / "set" / "captions.csv").write_text("picture,words\na.png,x\n")
    with pytest.raises(InputError) as caught:
        read_holes(str(tmp_path / "set"), limit=None)
    said = [*told, *warned(caplog), str(caught.value)]
    assert any("points outside the source's folder" in line for line in said)
    assert not any("source." in line for line in said), said


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    for text, said in (
        ("aos,prompt\n0,x\n", "no column prompt_full"),
        ("", "no column aos or prompt_full"),
        ('aos,prompt_full\n0,"a cat\n', "quote is left open"),
    ):
        (tmp_path / "annotations_natural.csv").write_text(text)
        with pytest.raises(
            InputError, match=rf"evaluate\.holes: .*annotations_natural.csv.*{said}"
        ):
            read_holes(str(tmp_path), limit=None)


def test_a_name_in_a_table_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    editbench(tmp_path / "set", "natural", ["0"])
    photograph().save(tmp_path / "secret.png")
    with (tmp_path / "set" / "annotations_natural.csv").open("a") as table:
        table.write("../../secret,a,b,c\n,a,b,c\n1,a,b,\n")
    assert [row["id"] for row in read_holes(str(tmp_path / "set"), limit=None)] == ["0_natural"]
    link = tmp_path / "set" / "references_natural" / "0.png"
    link.unlink()
    link.symlink_to(tmp_path / "secret.png")
    with pytest.raises(InputError, match="no hole that can be used"):
        read_holes(str(tmp_path / "set"), limit=None)


def test_a_place_that_holds_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for path, said in (
        (tmp_path / "gone", "there is no folder or file"),
        (tmp_path, "holds no hole that can be used"),
        (tmp_path / "notes.txt", r"is a file, but no \.json"),
    ):
        with pytest.raises(InputError, match=rf"^evaluate\.holes: .*{said}"):
            read_holes(str(path), limit=None)


BAD_PICTURES = {
    "colours": (Image.new("RGB", (80, 80), "red"), "bad_mask"),
    "transparent": (Image.new("RGBA", (80, 80), (255, 255, 255, 9)), "bad_mask"),
    "black": (Image.new("L", (80, 80)), "bad_mask"),
    "another aspect": (half((160, 80)), "bad_mask"),
    "outside the crop": (half((120, 80)), "hole_too_small"),
    "no picture": (b"x" * 99, "bad_mask"),
    "cut": (corpus.encode(half((80, 80)), "PNG")[:60], "bad_mask"),
    "a bomb": (corpus.png_header(60_000, 60_000), "bad_mask"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_mask_that_cannot_be_used_drops_its_hole_with_a_reason(name: str, tmp_path: Path) -> None:
    picture, reason = BAD_PICTURES[name]
    size = (80, 80)
    if name == "outside the crop":
        size = (120, 80)
        pixels = np.zeros((80, 120), np.uint8)
        pixels[:, :15] = 255
        picture = Image.fromarray(pixels)
    corpus.scene(0, size=size).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a ball")
    data = picture if isinstance(picture, bytes) else corpus.encode(picture, "PNG")
    (tmp_path / "a_mask.png").write_bytes(data)
    [row] = loaded(read_holes(str(tmp_path), limit=None))
    assert (row["reject_stage"], row["reject_reason"]) == ("hole", reason)
    assert "\n" not in row["reject_message"] and "mask" not in row
