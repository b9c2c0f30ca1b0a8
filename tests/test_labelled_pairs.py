"""People's labels to pairs: what each label ends as, what a pair holds, and what a kill changes."""

import hashlib
import io
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from in_process import without_ray
from label_listing import Listing, made, picture, png
from PIL import Image

from raypref.core.config import InputError
from raypref.core.ledger import Ledger, in_folder
from raypref.core.rows import content_key, is_rejected
from raypref.curate.export import export
from raypref.engine.batches import in_batches
from raypref.engine.worker import Branch, Sound, Worker, needs_of, shared_worker
from raypref.images.decode import center_square
from raypref.pairs import decide
from raypref.pairs.decide import DECIDED
from raypref.pairs.kinds import maker_of
from raypref.pairs.listing import list_labels, survey
from raypref.pairs.load import LoadImages
from raypref.sources.base import LabelledImage, Ref


@pytest.fixture
def listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Listing:
    return Listing(tmp_path / "labels", monkeypatch)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass over the images in this process."""
    without_ray(monkeypatch)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def every_way(listing: Listing) -> dict[str, str]:
    """One label for each way to end; what each must end as."""
    fates = {
        listing.pair(1.0): "pair",
        listing.pair(0.0): "pair",
        listing.pair(0.5): "tie",
        listing.pair(None): "unlabelled",
        listing.pair(1.0, confidence=0.2): "low_confidence",
        listing.pair(1.0, confidence=0.9): "pair",
        listing.pair(1.0, prompt="  "): "no_caption",
        listing.pair(1.0, prompt="a\0b"): "bad_caption",
        listing.pair(1.0, prompt="a" * 200_000): "caption_too_long",
        listing.pair(0.7): "bad_label",
        listing.pair(1.0, problem="bad_record: line 9 is no record"): "bad_record",
        listing.pair(1.0, first=Ref("../secret.png")): "outside_root",
        listing.pair(1.0, second=Ref("nowhere.png")): "missing_file",
        listing.pair(0.0, second=Ref("broken.png")): "unreadable",
        listing.pair(1.0, first=Ref("1-0.png"), second=Ref("twice.png")): "same_image",
        listing.pair(0.0): "pair",
        listing.pair(1.0): "beyond_limit",
    }
    (listing.folder / "broken.png").write_bytes(b"no picture")
    (listing.folder / "twice.png").write_bytes(png(picture(2)))
    (listing.folder.parent / "secret.png").write_bytes(png(picture(0)))
    return fates


WORDS = ("pairs.min_confidence=0.5", "pairs.limit=8")  # four pairs, four that are dropped later


def test_every_label_ends_exactly_once(listing, tmp_path):
    fates = every_way(listing)
    maker = made(listing.config(*WORDS), tmp_path / "run")
    ended = {row["id"]: row for row in maker.inputs.rows()}
    assert {id_: row["reason"] or row["status"] for id_, row in ended.items()} == fates
    assert len(ended) == maker.inputs.count() == len(fates)
    counts = Counter(fates.values())
    for ledger in (maker.pairs, maker.inputs, maker.rejects):
        assert ledger.manifest()["counts"] == counts
    assert {row["id"] for row in maker.pairs.rows(["id"])} == {
        id_ for id_, fate in fates.items() if fate == "pair"
    }
    not_dropped = {"pair", "tie", "unlabelled", "low_confidence", "beyond_limit"}
    rejects = {row["id"]: row for row in maker.rejects.rows()}
    assert rejects.keys() == {id_ for id_, fate in fates.items() if fate not in not_dropped}
    assert "nowhere.png" in rejects["row 12"]["message"]
    assert ended["row 2"]["status"] == "not_selected" and ended["row 12"]["status"] == "dropped"
    assert ended["row 1"]["first"] == "1-0.png" and ended["row 1"]["label"] == 0


def test_a_pair_holds_the_crops_of_both_sides_and_what_people_said(listing, tmp_path):
    listing.pair(0.0, vote_share=0.25, confidence=0.75, first_model="a", second_model="b")
    maker = made(listing.config(), tmp_path / "run")
    (row,) = maker.pairs.rows()
    for side, number in (("chosen", 1), ("rejected", 0)):  # the second was preferred
        crop = center_square(picture(number), 64)
        with Image.open(io.BytesIO(row[side]["bytes"])) as image:
            assert np.array_equal(np.asarray(image), np.asarray(crop))
    files = [(listing.folder / f"0-{side}.png").read_bytes() for side in (1, 0)]
    digests = b"".join(hashlib.sha256(data).digest() for data in files)
    assert row["key"] == content_key(digests, "prompt 0")
    assert (row["chosen_model"], row["rejected_model"]) == ("b", "a")
    assert (row["vote_share"], row["confidence"], row["flipped"]) == (0.75, 0.75, False)
    assert row["gap"] == pytest.approx(1.0)  # one pair: it is its own mean
    assert "mask" not in row and maker.pairs.schema().names == [
        *("id", "key", "prompt", "chosen", "rejected", "chosen_model", "rejected_model"),
        *("confidence", "vote_share", "gap", "gap_std", "flipped"),
    ]
    loaded = maker.loaded.schema().names
    assert "chosen" not in loaded and "rejected" not in loaded  # no image is stored twice


def test_without_generators_there_is_no_arena_and_no_gap(listing, tmp_path):
    listing.pair(1.0)
    maker = made(listing.config(), tmp_path / "run")
    (row,) = maker.pairs.rows()
    assert row["gap"] is None and row["gap_std"] is None and row["chosen_model"] is None
    assert maker.arena is None and not (tmp_path / "run" / "arena").exists()


def test_single_images_go_the_same_way(listing, tmp_path):
    for number, score in enumerate((1.0, 0.0, 0.5, None)):
        name = f"{number}.png"
        (listing.folder / name).write_bytes(png(picture(number)))
        listing.entries.append(LabelledImage("p", Ref(name), score, "a", id=str(number)))
    listing.entries.append(LabelledImage("p", Ref("gone.png"), 1.0, id="4"))
    maker = made(listing.config(kind="images"), tmp_path / "run")
    assert maker.pairs.manifest()["counts"] == {"pair": 3, "unlabelled": 1, "missing_file": 1}
    rows = {row["id"]: row for row in maker.pairs.rows()}
    assert {id_: row["score"] for id_, row in rows.items()} == {"0": 1.0, "1": 0.0, "2": 0.5}
    assert {row["rejected"] for row in rows.values()} == {None}
    assert rows["1"]["chosen_model"] == "a"
    with Image.open(io.BytesIO(rows["1"]["chosen"]["bytes"])) as image:
        assert np.array_equal(np.asarray(image), np.asarray(center_square(picture(1), 64)))
    noisy = made(listing.config("pairs.flip_labels=1", kind="images"), tmp_path / "noisy")
    assert {row["id"]: row["score"] for row in noisy.pairs.rows(["id", "score"])} == {
        "0": 0.0, "1": 1.0, "2": 0.5,
    }  # fmt: skip


def test_killed_anywhere_the_result_is_the_same_to_the_byte(listing, tmp_path, monkeypatch):
    for number in range(140):  # three parts
        listing.pair(float(number % 2), first_model="a", second_model="b")
    listing.entries[70] = listing.entries[70]._replace(second=Ref("gone.png"))
    whole = tmp_path / "whole"
    made(listing.config(), whole)
    killed = tmp_path / "killed"
    write, left = Ledger.write_part, [0]

    def until_killed(self, table, name=None):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return write(self, table, name)

    kills = 0
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "write_part", until_killed)
        for survives in (0, 1, 2, 3, 2, 2, 3, 4, 5, 100):
            left[0] = survives
            try:
                made(listing.config(), killed)
            except KeyboardInterrupt:
                kills += 1
    assert kills >= 6
    assert contents(killed).keys() == contents(whole).keys()
    different = [name for name, data in contents(whole).items() if contents(killed)[name] != data]
    assert different == []


def test_pairs_that_were_deleted_are_made_again(listing, tmp_path):
    for number in range(70):  # two parts
        listing.pair(float(number % 2), first_model="a", second_model="b")
    listing.entries[3] = listing.entries[3]._replace(second=Ref("gone.png"))
    maker = made(listing.config(), tmp_path)
    whole = contents(tmp_path)
    assert maker.loaded.parts() == maker.pairs.parts() and len(maker.pairs.parts()) == 2
    for damage in (shutil.rmtree, lambda folder: (folder / "part-00000001.parquet").unlink()):
        damage(tmp_path / "pairs")
        (tmp_path / "pairs" / ".manifest.json").unlink(missing_ok=True)
        made(listing.config(), tmp_path)
        assert contents(tmp_path) == whole
        assert maker.pairs.state() == "complete"


def test_a_decided_ledger_of_small_parts_is_cut_into_the_same_pieces(
    listing, tmp_path, monkeypatch
):
    for number in range(150):
        listing.pair(float(number % 2), first_model="a", second_model="b")
    made(listing.config(), tmp_path / "new")
    monkeypatch.setattr(decide, "ROWS_A_PART", 64)  # as an earlier version wrote them
    maker = made(listing.config(), tmp_path / "old")
    assert len(maker.decided.parts()) == len(maker.pairs.parts()) == 3
    for folder in ("pairs", "labels", "curate/loaded"):
        assert contents(tmp_path / "old" / folder) == contents(tmp_path / "new" / folder)


def test_a_block_done_again_leaves_no_pair_that_is_dropped_now(listing, tmp_path):
    listing.pair(1.0)
    config = listing.config()
    maker = made(config, tmp_path)
    stage = LoadImages(config)
    worker = Worker(
        lambda block: (block, "part-00000000.parquet"),
        [stage],
        [Branch([], Ledger(str(tmp_path / "again"), {}), ["key"], Sound(maker.pairs, DECIDED))],
        DECIDED,
        shared_worker(needs_of([stage])),
    )
    assert maker.pairs.has_part("part-00000000.parquet")
    (listing.folder / "0-0.png").unlink()
    worker(maker.decided.part("part-00000000.parquet"))
    assert not maker.pairs.has_part("part-00000000.parquet")


def test_no_pair_left_says_where_the_labels_went(listing, tmp_path):
    listing.pair(0.5)
    listing.pair(None)
    with pytest.raises(InputError, match="no pair was left: 1 tie, 1 unlabelled"):
        made(listing.config(), tmp_path)


def test_the_digest_tells_other_labels_and_other_images(listing, tmp_path):
    for label in (1.0, 0.5, None):
        listing.pair(label, first_model="a", second_model="b")
    config = listing.config()
    first = survey(config)
    assert survey(config) == first
    assert first.counts == {"entries": 3, "ties": 1, "unlabelled": 1, "unusable": 0, "named": 3}
    (listing.folder / "0-1.png").write_bytes(png(picture(77, (90, 90))))
    assert survey(config).digest != first.digest
    changed = survey(config).digest
    listing.entries[0] = listing.entries[0]._replace(label=0.0)
    assert survey(config).digest != changed
    maker = maker_of(config, place=in_folder(str(tmp_path / "run")))
    said = maker.described()
    assert said.startswith("3 labels, 1 tie, 1 without a label, with named generators, in ")


def test_entries_are_rows_with_what_is_wrong_with_them(listing):
    every_way(listing)
    problems = [row["problem"] for row in list_labels(listing.config())]
    assert [p.partition(":")[0] for p in problems if p] == [
        *("no_caption", "bad_caption", "caption_too_long", "bad_label", "bad_record"),
    ]
    row = next(list_labels(listing.config()))
    assert json.loads(row["first"])[0] == "0-0.png"


def test_exports_of_labelled_pairs(listing, tmp_path):
    listing.pair(1.0, first_model="a", second_model="b")
    maker = made(listing.config(), tmp_path)
    (row,) = maker.pairs.rows()
    published = Ledger(str(tmp_path / "pickapic"), {})
    export(maker.pairs, published, "pickapic")
    (out,) = published.rows()
    best = 0 if out["label_0"] == 1 else 1
    assert out[f"jpg_{best}"] == row["chosen"]["bytes"]
    assert (out[f"model_{best}"], out[f"model_{1 - best}"]) == ("a", "b")
    folders = Ledger(str(tmp_path / "folders"), {})
    export(maker.pairs, folders, "folders")
    head, line = (tmp_path / "folders" / "pairs.csv").read_text().splitlines()
    assert head.startswith("uid,prompt,real_image_path,fake_image_path,real_model,fake_model")
    uid = line.split(",")[0]
    assert (tmp_path / "folders" / "fake" / f"{uid}.png").read_bytes() == row["rejected"]["bytes"]
    assert not (tmp_path / "folders" / "mask").exists()


def test_a_dropped_label_names_the_file(listing):
    listing.pair(1.0, second=Ref("nowhere.png"))
    config = listing.config()
    stage = LoadImages(config)
    stage.setup()
    row = {
        "id": "0",
        "prompt": "p",
        "chosen_at": json.dumps(Ref("0-0.png")),
        "rejected_at": json.dumps(Ref("nowhere.png")),
    }
    in_batches(stage, [row])
    assert is_rejected(row) and row["reject_message"].startswith("nowhere.png: ")
