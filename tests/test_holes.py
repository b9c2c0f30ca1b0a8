"""Holes of photographs: what is repainted, whatever says so."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from corpus import encode, scene
from diffusers import UNet2DConditionModel
from PIL import Image
from u2net_states import narrow

from raypref.core.config import InputError, build, results_of
from raypref.core.ledger import Ledger
from raypref.core.rows import INDEX, MASKS, Row
from raypref.curate.captions import CaptionsConfig, write_captions
from raypref.curate.holes import HolesConfig, SegmentedHole, hole_stage, strokes
from raypref.curate.perturb import Inpaint, PerturbConfig
from raypref.curate.saliency import Saliency, SaliencyConfig
from raypref.engine.batches import in_batches
from raypref.engine.stream import StreamConfig
from raypref.images.decode import ImageConfig, as_image, as_png, center_square
from raypref.run.config import RunConfig
from raypref.sources.holes import read_holes
from raypref.sources.index import SourceConfig, entries, write_index

SIZE = 64
IMAGES = ImageConfig(size=SIZE)


def row(number: int = 0, **columns: object) -> Row:
    return {"key": f"key {number}", "chosen": scene(number, size=(SIZE, SIZE)), **columns}


def made(stage: Any, rows: list[Row]) -> list[Row]:
    stage.setup()
    in_batches(stage, rows)
    return rows


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> SaliencyConfig:
    path = tmp_path_factory.mktemp("detector") / "narrow.pth"
    torch.save(narrow().state_dict(), path)
    return SaliencyConfig(weights=str(path), side=SIZE)


def test_by_default_holes_are_what_they_were(detector: SaliencyConfig) -> None:
    assert results_of({"holes": HolesConfig()}) == {}, "older fingerprints stay"
    stage = hole_stage(HolesConfig(), detector, 7)
    assert type(stage) is Saliency
    before, now = made(Saliency(detector), [row(1)]), made(stage, [row(1)])
    for column in ("saliency", "mask"):
        assert as_png(before[0][column]) == as_png(now[0][column])


@pytest.mark.parametrize("grow", [0, 5])
def test_what_saliency_finds_can_be_grown_and_limited(detector: SaliencyConfig, grow: int) -> None:
    [plain] = made(Saliency(detector), [row(1)])
    part = float((np.asarray(plain["mask"]) > 0).mean())
    assert 0.05 < part < 0.95
    config = HolesConfig(grow=grow, min_share=0.01)
    grown, same = made(hole_stage(config, detector, 0), [row(1), row(1)])
    assert as_png(grown["mask"]) == as_png(same["mask"])
    assert (np.asarray(grown["mask"]) >= np.asarray(plain["mask"])).all()
    if grow:
        assert np.asarray(grown["mask"]).mean() > np.asarray(plain["mask"]).mean()
        assert as_png(grown["saliency"]) == as_png(grown["mask"]), "the painter paints the mask"
    else:
        assert as_png(grown["saliency"]) == as_png(plain["saliency"])
    for limits, reason in [
        ({"min_share": 0.99}, "hole_too_small"),
        ({"max_share": 0.01}, "hole_too_large"),
    ]:
        [dropped] = made(hole_stage(HolesConfig(grow=grow, **limits), detector, 0), [row(1)])
        assert (dropped["reject_stage"], dropped["reject_reason"]) == ("saliency", reason)
        assert "mask" not in dropped and "holes." in dropped["reject_message"]


def test_strokes_depend_on_seed_and_key_alone(detector: SaliencyConfig) -> None:
    stage = hole_stage(HolesConfig(kind="brush"), detector, 3)
    rows = made(stage, [row(number) for number in range(6)])
    backwards = made(stage, [row(number) for number in reversed(range(6))])[::-1]
    masks = [as_png(each["mask"]) for each in rows]
    assert masks == [as_png(each["mask"]) for each in backwards]
    assert len(set(masks)) == 6
    other = made(hole_stage(HolesConfig(kind="brush"), detector, 4), [row(0)])
    assert as_png(other[0]["mask"]) != masks[0]
    for each in rows:
        assert each["mask"].mode == "L" and set(np.unique(each["mask"])) == {0, 255}
        assert as_png(each["saliency"]) == as_png(each["mask"])


def test_strokes_are_those_of_the_recipe_at_every_size() -> None:
    """Its masks cover about a quarter of the picture; the share does not depend on the size."""
    shares = {}
    for side in (64, 256, 512):
        drawn = [strokes(np.random.default_rng(n), (side, side)) for n in range(150)]
        shares[side] = np.mean([np.asarray(mask).mean() / 255 for mask in drawn])
    assert 0.1 < shares[256] < 0.4
    assert abs(shares[64] - shares[256]) < 0.05 and abs(shares[512] - shares[256]) < 0.02


def test_strokes_are_drawn_again_until_they_are_of_a_size(detector: SaliencyConfig) -> None:
    limits = {"min_share": 0.1, "max_share": 0.3}
    stage = hole_stage(HolesConfig(kind="brush", **limits), detector, 0)
    rows = made(stage, [row(number) for number in range(40)])
    shares = [np.asarray(each["mask"]).mean() / 255 for each in rows if "mask" in each]
    assert len(shares) >= 38 and min(shares) >= 0.1 and max(shares) <= 0.3
    [never] = made(hole_stage(HolesConfig(kind="brush", min_share=0.99), detector, 0), [row()])
    assert never["reject_reason"] == "hole_too_small"


def test_settings_that_allow_no_hole_or_name_no_masks_are_refused() -> None:
    with pytest.raises(InputError, match=r"holes.min_share=0.5: it must lie below holes.max_share"):
        build(HolesConfig, {"min_share": 0.5, "max_share": 0.5})
    with pytest.raises(InputError, match=r"source.layout=auto has no masks; source.layout=masked"):
        HolesConfig(kind="segmentation").check(SourceConfig(path="/photos"))
    HolesConfig(kind="segmentation").check(SourceConfig(path="/photos", layout="brushdata"))
    given = {"source": {"path": "x"}, "evaluate": {"prompts": "p"}, "holes": {"kind": "brush"}}
    assert build(RunConfig, given).holes.kind == "brush"


# --- the masks that a source has ---


def columnwise(hole: np.ndarray) -> str:
    """Run lengths as BrushData has them, pixel by pixel down the columns."""
    flat = [bool(hole[y, x]) for x in range(hole.shape[1]) for y in range(hole.shape[0])]
    runs: list[int] = []
    for number, inside in enumerate(flat, start=1):
        if inside and (number == 1 or not flat[number - 2]):
            runs += [number, 0]
        if inside:
            runs[-1] += 1
    return ",".join(map(str, runs))


def box(size: tuple[int, int], left: int, top: int, right: int, bottom: int) -> np.ndarray:
    hole = np.zeros((size[1], size[0]), bool)
    hole[top:bottom, left:right] = True
    return hole


WIDE = (128, 96)
OBJECT = box(WIDE, 40, 20, 90, 50)
OTHER = box(WIDE, 60, 30, 70, 40)
PHOTO = encode(scene(2, size=WIDE), "PNG")


def shard(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for ending, data in members.items():
                header = tarfile.TarInfo(f"{key}.{ending}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))


def sample(masks: object, **members: bytes) -> dict[str, bytes]:
    segmentation = masks if isinstance(masks, bytes) else json.dumps({"mask": masks}).encode()
    own = {"image": PHOTO, "caption": b"a thing", "segmentation": segmentation}
    own |= {"height": b"96", "width": b"128"}
    return {name: data for name, data in {**own, **members}.items() if data != b"-"}


def segmented(folder: Path, samples: dict[str, dict[str, bytes]], **holes: Any) -> list[Row]:
    """The rows of a shard with their crops and holes."""
    shard(folder / "0.tar", samples)
    source = SourceConfig(path=str(folder), layout="brushdata")
    rows = list(entries(source))
    for each in rows:
        each |= {"key": each["id"], "chosen": center_square(scene(2, size=WIDE), SIZE)}
        each |= {"whole_width": WIDE[0], "whole_height": WIDE[1]}  # of the crop's stage
    config = HolesConfig(kind="segmentation", **holes)
    return made(hole_stage(config, SaliencyConfig(), 0, source=source, images=IMAGES), rows)


def crop_of(hole: np.ndarray) -> np.ndarray:
    """The hole as the crop of a photograph shows it."""
    picture = Image.fromarray(hole.astype(np.uint8) * 255).convert("RGB")
    return np.asarray(center_square(picture, SIZE).convert("L")) >= 128


def test_a_mask_of_the_source_is_the_hole_in_the_crop_of_its_photograph(tmp_path: Path) -> None:
    [found] = segmented(tmp_path, {"a": sample([columnwise(OBJECT)])})
    assert {*MASKS.names} <= set(found) and found["caption"] == "a thing"
    np.testing.assert_array_equal(np.asarray(found["mask"]) == 255, crop_of(OBJECT))
    assert as_png(found["saliency"]) == as_png(found["mask"])
    [small_] = segmented(tmp_path, {"a": sample([columnwise(OBJECT)])}, grow=4)
    assert np.asarray(small_["mask"]).mean() > np.asarray(found["mask"]).mean()


def test_the_photograph_is_not_read_a_second_time_for_its_mask(tmp_path: Path) -> None:
    [found] = segmented(tmp_path, {"a": sample([columnwise(OBJECT)], image=b"no picture")})
    np.testing.assert_array_equal(np.asarray(found["mask"]) == 255, crop_of(OBJECT))


def test_one_mask_is_drawn_by_seed_and_key_among_those_of_a_size(tmp_path: Path) -> None:
    masks = [columnwise(OBJECT), columnwise(OTHER)]
    rows = segmented(tmp_path, {f"{n}": sample(masks) for n in range(24)})
    shares = {each["id"]: np.asarray(each["mask"]).mean() for each in rows}
    assert len(set(shares.values())) == 2, "each of the two is drawn for some"
    again = segmented(tmp_path, {f"{n}": sample(masks) for n in reversed(range(24))})
    assert {each["id"]: np.asarray(each["mask"]).mean() for each in again} == shares
    large = segmented(tmp_path, {f"{n}": sample(masks) for n in range(24)}, min_share=0.1)
    assert len({np.asarray(each["mask"]).mean() for each in large}) == 1
    none = segmented(tmp_path, {"a": sample(masks)}, min_share=0.9)
    assert none[0]["reject_reason"] == "hole_too_small"


OUTSIDE = columnwise(box(WIDE, 0, 0, 10, 96))  # the crop begins at column 16


@pytest.mark.parametrize(
    ("given", "reason", "said"),
    [
        (sample([], segmentation=b"-"), "no_mask", "no mask for this photograph"),
        (sample([]), "no_mask", "empty"),
        (sample([""]), "hole_too_small", "no pixel"),
        (sample([OUTSIDE]), "hole_too_small", "no pixel of the crop"),
        (sample(["1,2,3"]), "bad_mask", "twos"),
        (sample(["1,99999"]), "bad_mask", "ends at pixel"),
        (sample([{"counts": "x"}]), "bad_mask", "text or a list"),
        (sample("1,2"), "bad_mask", "must be a list"),
        (sample(["1,2"] * 300), "bad_mask", "at most 256"),
        (sample(b"{"), "bad_mask", "no JSON"),
        (sample(b"[1]"), "bad_mask", "no JSON object"),
        (sample(b"[" * 10**5), "bad_mask", "no JSON"),
        (sample(b"\xff\xfe\x00"), "bad_mask", "no JSON"),
        (sample([columnwise(OBJECT)], height=b"128", width=b"96"), "bad_mask", "96x128 pixels"),
        (sample([columnwise(OBJECT)], height=b"999999", width=b"999999"), "bad_mask", "at most"),
        (sample(b'{"mask": ["' + b"1 " * 2**23 + b'"]}'), "too_many_bytes", "more than"),
    ],
)
def test_a_photograph_whose_mask_cannot_be_used_is_dropped_with_a_reason(
    given: dict[str, bytes], reason: str, said: str, tmp_path: Path
) -> None:
    bad, good = segmented(tmp_path, {"a": given, "b": sample([columnwise(OBJECT)])})
    assert bad["reject_reason"] == reason and said in bad["reject_message"]
    assert "\n" not in bad["reject_message"] and "mask" not in bad
    assert "mask" in good


def test_a_sample_without_an_image_is_a_row_with_a_problem(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", {"a": sample([], image=b"-"), "b": sample([])})
    rows = list(entries(SourceConfig(path=str(tmp_path), layout="brushdata")))
    assert [each["problem"] for each in rows] == [
        "bad_record: sample a of 0.tar has no image",
        None,
    ]


def test_the_sizes_of_a_mask_are_those_of_its_photograph_where_none_are_told(
    tmp_path: Path,
) -> None:
    told = {"height": b"-", "width": b"x"}
    [found] = segmented(tmp_path, {"a": sample([columnwise(OBJECT)], **told)})
    np.testing.assert_array_equal(np.asarray(found["mask"]) == 255, crop_of(OBJECT))


def test_published_bug_1_the_object_is_repainted_and_not_what_is_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From run lengths to the network: its mask channel is 1 in the object, and only there."""
    [hole] = segmented(tmp_path, {"a": sample([columnwise(OBJECT)])})
    seen: list[torch.Tensor] = []
    plain = UNet2DConditionModel.forward

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(x)
        return plain(self, x, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", forward)
    made(Inpaint(PerturbConfig(model=str(small.path("sd15-inpaint")), steps=1), seed=0), [hole])
    object_ = torch.from_numpy(crop_of(OBJECT)[None, None]).float()
    expected = torch.nn.functional.interpolate(object_, seen[0].shape[-2:])[0, 0]
    assert 0.05 < expected.mean() < 0.5
    torch.testing.assert_close(seen[0][0, 4], expected)


def test_a_stage_travels_to_a_worker_as_settings_alone(tmp_path: Path) -> None:
    stage = hole_stage(
        *(HolesConfig(kind="segmentation"), SaliencyConfig(), 0),
        source=SourceConfig(path=str(tmp_path), layout="brushdata"),
        images=IMAGES,
    )
    assert isinstance(stage, SegmentedHole) and not hasattr(stage, "store")
    assert as_image(row()["chosen"]).size == (SIZE, SIZE)


def test_a_mask_that_is_a_picture_beside_its_photograph(tmp_path: Path) -> None:
    photo = scene(2, size=WIDE)
    masks = {"a_mask.png": OBJECT, "a_mask_2.png": OTHER, "masks/b.png": OTHER}
    (tmp_path / "masks").mkdir()
    for name in ("a.png", "b.png", "c.png", "c_depth.png"):
        photo.save(tmp_path / name)
    for name, hole in masks.items():
        Image.fromarray(hole.astype(np.uint8) * 255).save(tmp_path / name)
    Image.new("L", WIDE).save(tmp_path / "d_mask.png")
    photo.save(tmp_path / "d.png")
    captions = "file,caption\na.png,a\nb.png,b\nc.png,c\nd.png,d\n"
    (tmp_path / "captions.csv").write_text(captions)
    source = SourceConfig(path=str(tmp_path), layout="masked")
    rows = {each["id"]: each for each in entries(source)}
    plain = {each["id"]: each for each in entries(SourceConfig(path=str(tmp_path)))}
    assert {
        name: {k: v for k, v in each.items() if k in INDEX.names} for name, each in rows.items()
    } == plain, "else it lists what a folder lists"
    taken = [rows[name] for name in ("a.png", "b.png", "c.png", "d.png")]
    for each in taken:
        each |= {"key": each["id"], "chosen": center_square(photo, SIZE)}
        each |= {"whole_width": WIDE[0], "whole_height": WIDE[1]}
    config = HolesConfig(kind="segmentation")
    made(hole_stage(config, SaliencyConfig(), 0, source=source, images=IMAGES), taken)
    for each, hole in zip(taken, (OBJECT, OTHER), strict=False):
        assert ((np.asarray(each["mask"]) == 255) != crop_of(hole)).mean() < 0.001  # its rim
    assert [each.get("reject_reason") for each in taken] == [None, None, "no_mask", "bad_mask"]


def test_an_index_has_the_columns_of_masks_where_its_layout_gives_them(tmp_path: Path) -> None:
    """And written captions leave them there."""
    shard(tmp_path / "0.tar", {"a": sample([columnwise(OBJECT)]), "b": sample([])})
    source = SourceConfig(path=str(tmp_path), layout="brushdata")
    index, captions, captioned = (
        Ledger(str(tmp_path / "ledgers" / name), {}) for name in ("index", "captions", "captioned")
    )
    write_index(source, index, part_rows=1)
    assert index.schema().names == [*INDEX.names, *MASKS.names]
    write_captions(  # no photograph lacks one: no model is loaded
        *(CaptionsConfig(model="MODEL"), source, IMAGES),
        index=index,
        captions=captions,
        captioned=captioned,
        streaming=StreamConfig(),
    )
    assert captioned.schema().names == [*INDEX.names, *MASKS.names, "caption_source"]
    starts = [each["mask_member"] for each in captioned.rows(["mask_member"])]
    assert starts == [each["mask_member"] for each in entries(source)] and all(starts)


def test_a_json_object_of_too_many_bytes_is_not_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mapping_file.json").write_text('{"a": {"caption": "x"}}')
    monkeypatch.setattr("raypref.sources.benchmarks.WHOLE_BYTES", 10)
    with pytest.raises(InputError, match="23 bytes, more than 10"):
        read_holes(str(tmp_path / "mapping_file.json"), limit=None)
