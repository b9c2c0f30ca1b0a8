"""Masks beside photographs are no photographs: dropped with their own reason, and said as such."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_folder import files, photos
from test_found import captioned, lines
from test_layouts import refused
from test_photos import measured
from test_shards import JPEG, OTHER, ended, shard
from test_sources import captions, index

from raypref.images.decode import ImageConfig
from raypref.sources.masks import made_of

MASKS = {
    "a.mask.png": "a.jpg",
    "a_mask.png": "a.jpg",
    "a-Mask.PNG": "a.jpg",
    "a mask.png": "a.jpg",
    "a_mask_0.png": "a.jpg",
    "a.jpg.mask.png": "a.jpg",
    "mask_a.png": "a.jpg",
    "a_seg.png": "a.jpg",
    "a_depth_map.png": "a.jpg",
    "masks/a.png": "a.jpg",
    "masks/a_mask.png": "a.jpg",
    "album.x/deep/masks/b.png": "album.x/deep/b.jpg",
    "masks/train/c.png": "images/train/c.webp",
    "train/SegmentationClass/d.png": "train/JPEGImages/d.jpeg",
    "train_masks/a.png": "a.jpg",
    "album.x/conditioning_images/b.png": "album.x/deep/b.jpg",
    "album.x/gt/b.png": "album.x/deep/b.jpg",
    "images/train/c_instanceIds.png": "images/train/c.webp",
    "depth/cafe\u0301.png": "photos/caf\xe9.jpg",
}
PHOTOGRAPHS = ["e_mask.png", "masks/e.png", "a_1.jpg", "unmasked/a.jpg", "mask.png", "a_masked.png"]


def test_names_of_masks_and_their_photographs():
    plain = sorted({*MASKS.values(), "other/f.jpg"})
    images = [*MASKS, *plain, *PHOTOGRAPHS]
    assert made_of(images, images) == MASKS
    assert made_of(plain, images) == {}
    for mask, photo in MASKS.items():  # each by itself: no mask vouches for another one
        assert made_of([mask, photo], [mask, photo]) == {mask: photo}
        assert made_of([mask], [mask]) == {}


def test_masks_in_folders_are_dropped_with_their_own_reason(tmp_path):
    """Counts as in a shard: every file ends once, and no photograph is said to lack a caption."""
    names = ["a.jpg", "b.jpg", "album/c.jpg"]
    root = files(tmp_path, photos(*names) | {f"{name[:-4]}.txt": name for name in names})
    before = {row["id"]: row for row in index(root)}
    files(root, dict.fromkeys(["a_mask.png", "masks/b.png", "album/masks/c.png"], OTHER))
    rows = measured(root, images=ImageConfig(size=32))
    assert {name: row.get("reject_reason") for name, row in rows.items()} == {
        **dict.fromkeys(names),
        **dict.fromkeys(["a_mask.png", "masks/b.png", "album/masks/c.png"], "not_a_photograph"),
    }
    assert {row["id"]: row for row in index(root) if row["caption"]} == before
    assert lines(root) == [
        "3 images are not photographs and not used: a_mask.png belongs to a.jpg and has no caption "
        "of its own"
    ]


def test_a_mask_with_a_caption_of_its_own_is_what_the_person_says(tmp_path):
    files(tmp_path, photos("a.jpg", "a_mask.png", "b.jpg", "b_mask.png", "c_mask.png"))
    files(tmp_path, {"captions.csv": "file,caption\na.jpg,a\na_mask.png,a carnival mask\n"})
    files(tmp_path, {"b.txt": "b", "b_mask.txt": "a mask of wood"})
    assert captions(tmp_path) == {
        "a.jpg": "a",
        "a_mask.png": "a carnival mask",
        "b.jpg": "b",
        "b_mask.png": "a mask of wood",
        "c_mask.png": None,
    }
    assert not any(row["problem"] for row in index(tmp_path))


def test_missing_captions_are_counted_among_photographs_alone(tmp_path):
    files(tmp_path, captioned(*"abcdefgh") | photos("x.jpg", *(f"masks/{n}.png" for n in "abcdef")))
    assert lines(tmp_path)[0].startswith("1 of 9 photographs have no caption and are not used")
    files(tmp_path / "bare", photos("a.jpg", "b.jpg", "a_mask.png"))
    assert "2 photographs in" in refused(tmp_path / "bare")


@pytest.mark.parametrize("first", ["photographs", "masks"])
def test_masks_of_other_names_in_a_shard(first, tmp_path: Path):
    members = [("set/a.jpg", JPEG), ("set/a.txt", b"a"), ("set/b.jpg", JPEG), ("set/b.txt", b"b")]
    made = [("set/a_mask.png", OTHER), ("set/masks/b.png", OTHER), ("masks/a.png", OTHER)]
    shard(tmp_path / "0.tar", members + made if first == "photographs" else made + members)
    assert dict(ended(tmp_path)) == {
        "0.tar#set/a.jpg": "ok",
        "0.tar#set/b.jpg": "ok",
        "0.tar#set/a_mask.png": "not_a_photograph",
        "0.tar#set/masks/b.png": "not_a_photograph",
        "0.tar#masks/a.png": "not_a_photograph",
    }
