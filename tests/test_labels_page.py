"""The page of a run on people's labels: their words, their numbers, no photograph."""

import json
import os
import re
from pathlib import Path

import pytest
from browsing import Opened, chromium
from in_process import without_ray
from label_listing import Listing, made, picture, png

from raypref.core.ledger import Ledger
from raypref.report import labels
from raypref.report.collect import collect
from raypref.report.page import render
from raypref.sources.base import LabelledImage, Ref


@pytest.fixture
def listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Listing:
    without_ray(monkeypatch)
    return Listing(tmp_path / "labels", monkeypatch)


def page_of(listing: Listing, folder: Path, *words: str, kind: str = "labelled") -> str:
    config = listing.config(*words, kind=kind)
    maker = made(config, folder)
    return render(
        collect(
            name="mine",
            config_toml="",
            seed=0,
            record={"steps": {}},
            folder=str(folder),
            curated_by=config,
            pairs=maker.pairs,
            trained={},
            labels={},
            images={},
            table=None,
            categories=None,
            final="",
            published={},
        )
    )


def seen(page: str) -> str:
    """What a reader sees, in one line."""
    page = re.sub(r"<(style|script|template)\b.*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def gallery_of(page: str) -> dict:
    found = re.search(r'id="pairs-data">(.*?)</script>', page, flags=re.DOTALL)
    assert found is not None
    return dict(json.loads(found.group(1)))


def test_the_page_speaks_of_labels(listing: Listing, tmp_path: Path) -> None:
    facts = {"first_model": "sharp <b>", "second_model": "dull"}
    listing.pair(1.0, confidence=0.75, vote_share=0.9, **facts)
    listing.pair(0.0, confidence=0.5, vote_share=0.2, **facts)
    listing.pair(0.5, **facts)
    listing.pair(None, prompt="nobody asked")
    listing.pair(1.0, second=Ref("nowhere.png"), **facts)
    page = page_of(listing, tmp_path / "run", "pairs.flip_labels=1")
    text = seen(page)
    assert re.findall(r"(?i)photo\w*|twin\w*|colorful\w*|pickscore|salien\w*", text) == []
    assert "2 pairs from 5 labels" in text and "From labels to pairs" in text
    assert "5 labels = 2 pairs + 3 dropped for the reasons below." in text
    assert "nowhere.png" in text and "nobody asked" in text
    assert "Neither image was preferred" in text and "Dropped labels" in text
    assert "labels/" in text and "sharp <b>" not in page
    shown = gallery_of(page)
    assert [kind[0] for kind in shown["kinds"]] == ["chosen", "rejected"]
    keys = [number["key"] for number in shown["numbers"]]
    assert keys == ["gap", "gap_std", "vote_share", "confidence", "flipped"]
    rows = {row[0]: row for row in shown["pairs"]}
    prompt, rank, numbers, notes, *files = rows["prompt 0"]  # turned round
    assert (rank, notes) == (1, ["dull", "sharp <b>"])
    assert dict(zip(keys, numbers, strict=True)) | {"gap": 0, "gap_std": 0} == {
        "gap": 0,
        "gap_std": 0,
        "vote_share": pytest.approx(0.1),
        "confidence": 0.75,
        "flipped": 1,
    }
    run = tmp_path / "run"
    stored = {row["prompt"]: row for row in Ledger(str(run / "pairs"), {}).rows()}
    assert len(files) == 4
    for full, side in zip(files[1::2], ("chosen", "rejected"), strict=True):
        assert (run / "report" / full).read_bytes() == stored[prompt][side]["bytes"]


def test_the_gallery_of_labels_is_sorted_and_seen_in_a_browser(
    listing: Listing, tmp_path: Path
) -> None:
    for share in (0.9, 0.6, 0.75):
        listing.pair(1.0, vote_share=share, first_model="sharp", second_model="dull")
    file = tmp_path / "run" / "report" / "index.html"
    file.write_text(page_of(listing, tmp_path / "run"))
    with chromium() as browser:
        opened = Opened(browser, file)
        assert opened.ranks() == [1, 2, 3]
        opened.choose("sort", "vote_share")
        assert opened.ranks() == [1, 3, 2]
        cards = opened.page.locator("#pairs article")
        said = " ".join(str(cards.first.inner_text()).split())
        assert "chosen sharp" in said and "rejected dull" in said
        assert "gap 1.00 ± " in said and "vote share 0.90" in said
        assert cards.locator("img").count() == 6
        assert opened.broken() == [] and opened.complaints == []
        if shot := os.environ.get("SHOT"):
            opened.page.screenshot(path=shot, full_page=True)
        opened.page.close()


def test_single_images_are_neither_chosen_nor_rejected(listing: Listing, tmp_path: Path) -> None:
    for number in range(2):
        (listing.folder / f"{number}.png").write_bytes(png(picture(number)))
        entry = LabelledImage(f"p {number}", Ref(f"{number}.png"), float(number), id=str(number))
        listing.entries.append(entry)
    page = page_of(listing, tmp_path / "run", kind="images")
    text = seen(page)
    assert "2 images from 2 labels" in text and "Labelled images" in text
    shown = gallery_of(page)
    assert [kind[1] for kind in shown["kinds"]] == ["image"]
    assert [number["key"] for number in shown["numbers"]] == ["score"]
    assert [row[2] for row in shown["pairs"]] == [[0.0], [1.0]]


def test_very_many_pairs_are_shown_by_a_sample(
    listing: Listing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(64 * 3):
        listing.pair(1.0)
    monkeypatch.setattr(labels, "PARTS_SHOWN", 2)
    page = page_of(listing, tmp_path / "run")
    assert "Shown are 128 of 192, evenly spread over the source." in seen(page)
    prompts = [row[0] for row in gallery_of(page)["pairs"]]
    assert prompts == [f"prompt {n}" for n in (*range(64), *range(128, 192))]
    assert gallery_of(page)["numbers"] == []  # no generator, no votes
