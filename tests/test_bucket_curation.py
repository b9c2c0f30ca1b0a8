"""Curation and encoding in aspect-ratio buckets: the images of a pair have one size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from candidate_pairs import config
from candidate_pairs import made as made_candidates
from corpus import scene
from in_process import without_ray
from painters import KINDS, make_rows, of_kind, pixels
from PIL import ImageOps
from training import BASES, CPU, rows_of

from raypref.align.cache_config import CacheConfig
from raypref.align.latents import UNCONDITIONAL, Encode, rows_to_encode
from raypref.align.pair_data import PairData, read_pairs
from raypref.align.prompt_latents import encoding
from raypref.core.config import InputError, Resources
from raypref.core.ledger import Ledger, in_folder
from raypref.core.rows import Row
from raypref.curate.graph import Curation
from raypref.engine.batches import in_batches
from raypref.images.decode import ImageConfig, center_crop, decode, encode_png, open_png
from raypref.models.backbone import load_encoder
from raypref.models.families.registry import ONE_BY_ONE

WORLD = ImageConfig(size=64, bucket_step=16)
# Width and height of photographs, and of their crops.
SIZES = [((64, 64), (64, 64)), ((160, 96), (80, 48)), ((96, 160), (48, 80)), ((210, 130), (80, 48))]
BUCKETS = ("images.bucket_step=16", "stream.block_rows=8")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "photographs"
    folder.mkdir()
    for number, (size, _) in enumerate(SIZES * 2):
        scene(number, size=size).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a scene, no. {number}")
    return folder


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)


def images_of(row: Row, *names: str) -> list[Any]:
    return [open_png(row[name]["bytes"]) for name in names]


def encoded(pairs: Ledger, family: str, folder: Path) -> PairData:
    """Through the ledger of latents, in batches of three."""
    base = BASES[family].model_copy(update={"dtype": "float32"})
    stage = encoding(base, CacheConfig(resources=Resources(batch=3)), WORLD, images=True)
    stage.setup()
    rows = rows_of(rows_to_encode(pairs, stage.reads))
    in_batches(stage, rows)
    cache = Ledger(str(folder), {})
    cache.begin()
    schema = pa.schema([("id", pa.string()), *stage.writes])
    own = {name: [row.get(name) for row in rows] for name in schema.names}
    cache.write_part(pa.table(own, schema=schema))
    return read_pairs(cache, base)


def test_a_pair_its_mask_and_its_latents_have_the_bucket_of_the_photograph(
    root: Path, tmp_path: Path
) -> None:
    words = ("pairs.kind=twins", "curate.exhaustive=true", "select.top_k=8", *BUCKETS)
    settings = config(root, *words)
    maker = Curation(settings, place=in_folder(str(tmp_path / "run")))
    maker.run(settings.stream)
    assert {row["status"] for row in maker.photos.rows()} <= {"pair", "not_selected"}
    rows = sorted(maker.pairs.rows(), key=lambda row: row["id"])
    crops = {row["id"]: SIZES[int(Path(row["id"]).stem) % len(SIZES)][1] for row in rows}
    assert {*crops.values()} == {crop for _, crop in SIZES}
    for row in rows:
        images = images_of(row, "chosen", "rejected", "mask")
        assert [image.size for image in images] == [crops[row["id"]]] * 3
        photo = decode((root / row["id"]).read_bytes(), WORLD)
        assert encode_png(images[0]) == encode_png(center_crop(photo, crops[row["id"]]))

    data = encoded(maker.pairs, "sd15_inpaint", tmp_path / "cache")
    assert data.latent_shape == (4, 8, 8), "of what trainings draw"
    encoder = load_encoder(
        BASES["sd15_inpaint"].model_copy(update={"dtype": "float32"}), device=CPU
    )
    for place, row in enumerate(rows):
        width, height = crops[row["id"]]
        assert data.shape_of([place]) == (4, height // 8, width // 8)
        noise = torch.zeros(1, 4, height // 8, width // 8)
        for which, side in enumerate(images_of(row, "chosen", "rejected")):
            for flip in (False, True):
                image = ImageOps.mirror(side) if flip else side
                ours = data.latents([place], [flip], noise, which=which)
                close(ours, encoder.image_moments([image])[:, 0])
        photo, mask = images_of(row, "chosen", "mask")
        around = data.prompts([place], [False], [False]).surroundings_BKHW
        close(around, encoder.surroundings([photo], [mask]))


def close(ours: Any, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["sd15", "text2image"])
def test_candidates_have_the_bucket_of_their_photograph_or_are_squares_of_a_prompt(
    kind: str, root: Path, tmp_path: Path
) -> None:
    settings = config(root, "pairs.limit=4", "candidates.count=2", *BUCKETS, kind=kind)
    pairs = made_candidates(settings, tmp_path / "run").pairs
    found = set()
    for row in pairs.rows():
        crop = SIZES[int(Path(row["id"]).stem) % len(SIZES)][1]
        names = ("source", "chosen", "rejected", "mask")
        images = images_of(row, *(name for name in names if row.get(name)))
        assert {image.size for image in images} == {crop if kind == "sd15" else (64, 64)}
        found.add(crop)
    assert len(found) > 1
    if kind == "text2image":
        with pytest.raises(InputError, match=r"^images\.bucket_step=16: photographs keep"):
            config(root, "choice.chosen=photograph", *BUCKETS, kind=kind)
    data = encoded(pairs, "sd15", tmp_path / "cache")
    assert (data.grids is None) == (kind == "text2image")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ONE_BY_ONE])
def test_a_twin_does_not_feel_the_sizes_of_the_others(kind: str) -> None:
    """To the bit: each size has batches of its own, which are padded."""
    sizes = [(64, 64), (96, 32), (64, 64), (32, 96), (96, 32)]
    rows = [
        row | {name: resized(row[name], size) for name in ("chosen", "saliency")}
        for row, size in zip(make_rows(5), sizes, strict=True)
    ]
    stage = of_kind(kind, resources=Resources(batch=3))  # which no size fills
    together = [dict(row) for row in rows]
    in_batches(stage, together)
    for row, size, mixed in zip(rows, sizes, together, strict=True):
        alone = dict(row)
        in_batches(stage, [alone])
        assert alone["rejected"].size == size
        assert (pixels(alone["rejected"]) == pixels(mixed["rejected"])).all()


def resized(png: bytes, size: tuple[int, int]) -> bytes:
    return encode_png(open_png(png).resize(size))


# ------------------------------------------------------------------ what is encoded


def pair(number: int, *sizes: tuple[int, int]) -> Row:
    names = ("chosen", "rejected")
    images = [{"bytes": encode_png(scene(number, size=size)), "path": "x.png"} for size in sizes]
    return {"id": f"{number}", "prompt": "p", **dict(zip(names, images, strict=True))}


def refusal(rows: Sequence[Row], **sizes: Any) -> str:
    with pytest.raises(InputError) as caught:
        Encode(BASES["sd15"], CacheConfig(), **sizes).prepare([*rows])
    return str(caught.value)


def test_images_of_no_bucket_and_pairs_of_two_sizes_are_refused_by_name() -> None:
    asked = {"side": 64, "buckets": WORLD.crop_sizes}
    other = pair(1, (72, 56), (72, 56))
    assert "image of pair '1' is 72x56, and images.size=64" in refusal([other], **asked)
    uneven = pair(2, (80, 48), (48, 80))
    assert "images of pair '2' are 80x48 and 48x80" in refusal([uneven], **asked)
    assert "images of pair '2' are 80x48 and 48x80" in refusal([uneven])


def test_the_empty_caption_alone_in_a_batch_has_no_image_but_the_squares_shape() -> None:
    stage = Encode(BASES["sd15"], CacheConfig(), side=64, buckets=WORLD.crop_sizes)
    stage.setup()
    empty = {"id": UNCONDITIONAL, "prompt": "", "chosen": None, "rejected": None}
    rows = [pair(1, *[(80, 48)] * 2), pair(2, *[(48, 80)] * 2), dict(empty)]
    in_batches(stage, rows)
    assert rows[-1]["moments_shape"] == [0, 2, 2, 4, 8, 8] and rows[-1]["moments"] == b""
    assert [row["moments_shape"][-2:] for row in rows[:2]] == [[6, 10], [10, 6]]
    alone = [dict(empty)]
    in_batches(stage, alone)
    assert alone[0]["embedding"] == rows[-1]["embedding"]
    assert np.frombuffer(alone[0]["embedding"], np.float32).std() > 0


def test_pairs_that_all_are_in_one_bucket_leave_what_is_drawn_square(tmp_path: Path) -> None:
    pairs = Ledger(str(tmp_path / "pairs"), {})
    pairs.begin()
    pairs.write_part(pa.Table.from_pylist([pair(n, (80, 48), (80, 48)) for n in (1, 2)]))
    pairs.commit(expected=2, counts={})
    data = encoded(pairs, "sd15", tmp_path / "cache")
    assert data.grids is None and data.moments.shape[-2:] == (6, 10)
    assert data.shape_of([0, 1]) == (4, 6, 10) and data.latent_shape == (4, 8, 8)
    assert data.by_shape([1, 0, 1]) == [[0, 1, 2]]
