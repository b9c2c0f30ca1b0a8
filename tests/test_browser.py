"""A run's page in a real browser: it shows, sorts, compares, and asks nobody for anything."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from browsing import Opened, chromium
from PIL import Image, ImageOps
from report_runs import gather, make, scene, write_page

from raypref.core.ledger import Ledger, write_bytes
from raypref.evaluate import statistics
from raypref.report.collect import _mlflow, prompt_gains

ATTACK = """</script><script>alert(1)</script><img src=x onerror='alert(2)'>"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with 130 pairs of 64 px: more than lie within the page."""
    folder = tmp_path_factory.mktemp("run")
    photos = [(scene(i, 64), f"a disc, number {i}") for i in range(8)]
    photos[0] = (photos[0][0], ATTACK)
    write_page(folder, make(folder, photos, pairs=130))
    return folder


@pytest.fixture
def opened(browser: Any, run: Path) -> Iterator[Opened]:
    opened = Opened(browser, run / "report" / "index.html")
    yield opened
    assert opened.complaints == []
    inside = ("data:", (run / "report").as_uri())
    assert all(url.startswith(inside) for url in opened.requests)
    opened.page.close()


def test_images_load_on_every_page_of_the_gallery(opened: Opened) -> None:
    seen: list[int] = []
    alts = opened.page.evaluate("[...document.images].map((image) => image.alt)")
    assert len(alts) > 72 and all(alts)
    while True:
        assert opened.broken() == []
        seen += opened.ranks()
        button = opened.page.locator('#pairs .pager [data-part="next"]').first
        if button.is_disabled():
            break
        button.click()
    assert seen == list(range(1, 131))
    assert any("-chosen.png" in url for url in opened.requests)  # the last pages' lie beside


def test_sorting_is_over_all_pairs(opened: Opened) -> None:
    opened.choose("sort", "gap")
    gaps = opened.numbers("gap")
    assert gaps == sorted(gaps, reverse=True) and len(gaps) == 24
    assert max(opened.ranks()) > 48  # from all pages
    opened.page.locator('[data-part="turn"]').click()
    assert opened.numbers("gap") == sorted(opened.numbers("gap"))
    assert opened.numbers("gap")[-1] < gaps[-1]
    for part, shown in (("colorfulness", "colorfulness"), ("pickscore", "chosen-score")):
        opened.choose("sort", part)
        values = opened.numbers(shown)
        assert values == sorted(values, reverse=True)
    opened.choose("sort", "rank")
    assert opened.ranks() == list(range(1, 25))


def test_captions_are_searched_and_stay_text(opened: Opened) -> None:
    search = opened.page.locator('[data-part="search"]')
    search.fill("(NO. 77) disc")
    assert "1 to 1 of 1 pair" in str(opened.page.locator('[data-part="status"]').text_content())
    search.fill("onerror")
    texts = opened.page.locator('[data-part="list"] [data-part="prompt"]').all_text_contents()
    assert len(texts) == 17 and all(text.startswith(ATTACK) for text in texts)
    assert opened.page.locator("img[onerror]").count() == 0
    search.fill("no such caption")
    assert opened.ranks() == []


def test_the_slider_shows_two_models_of_a_prompt(opened: Opened) -> None:
    slider = opened.page.locator('[data-part="at"]')
    opened.page.locator('[data-grid="3"] [data-part="compare"]').click()
    slider.press("Home")
    stage = opened.page.locator('[data-part="stage"]')
    assert stage.evaluate("(node) => node.style.getPropertyValue('--at')") == "0%"
    assert "disc, number 3" in str(stage.locator("img").first.get_attribute("alt"))
    opened.choose("left", "stage1")
    source = stage.locator('[data-part="left-image"]').get_attribute("src")
    assert str(source).endswith("00003-42-stage1.png")
    assert opened.broken() == []


def test_a_page_sent_alone_shows_what_is_within(browser: Any, run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "report" / "index.html", tmp_path)
    alone = Opened(browser, tmp_path / "index.html")
    beside = ("images-", "pairs-", "dropped-")
    assert all(any(name in source for name in beside) for source in alone.broken())
    assert alone.page.locator("#pairs img.gone").count() == 0
    compared = alone.page.locator('[data-part="left-image"]')
    assert str(compared.get_attribute("src")).startswith("data:")
    alone.page.locator('#pairs .pager [data-part="last"]').first.click()
    alone.page.wait_for_selector("#pairs img.gone")
    alone.page.close()


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_needs_no_sideways_scrolling(browser: Any, run: Path, *, dark: bool) -> None:
    phone = Opened(browser, run / "report" / "index.html", width=390, dark=dark)
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 390
    background = phone.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(int(n) for n in re.findall(r"\d+", background)) < 60) == dark
    phone.page.close()


def test_a_second_report_writes_no_picture_again(run: Path) -> None:
    def times() -> dict[Path, int]:
        return {f: f.stat().st_mtime_ns for f in (run / "report" / "files").rglob("*.png")}

    before = times()
    old = run / "report" / "files" / "pairs-0000"
    old.mkdir()
    pairs = Ledger(str(run / "pairs"), {"pairs": 130})
    data = gather(run, pairs)
    dropped, strips = 32 + 16, 2 * 5
    assert times() == before and len(before) == 3 * 130 + 4 * 20 + dropped + strips
    assert len(data.pairs) == 130
    next((run / "report" / "files").glob("pairs-*/*-rejected.png")).unlink()
    gather(run, pairs)
    assert times().keys() == before.keys() and not old.exists()


def test_what_the_run_holds_is_gathered(run: Path) -> None:
    pairs = Ledger(str(run / "pairs"), {"pairs": 130})
    write_bytes(str(run / "sft" / "pytorch_lora_weights.safetensors"), b"")
    data = gather(run, pairs)
    colors, gaps = data.histograms
    assert len(colors.values) == 178 and len(gaps.values) == 146 and gaps.threshold == 0.02
    assert colors.threshold is not None and 40 < colors.threshold < 60
    assert [strip.step for strip in data.training[0].strips] == [0, 50, 100, 150, 200]
    links = {(link.what, link.text) for link in data.links}
    lora = "stage2/pytorch_lora_weights.safetensors (stage 1 + stage 2)"
    assert ("LoRA", lora) in links
    assert not [text for _, text in links if "sft" in text]  # of settings that were replaced
    assert not [link for link in data.links if link.href.startswith("..")]
    assert data.costs[0].device_share == 0.42 and data.costs[1].device_share is None
    assert data.links[-1].text.endswith("sqlite:///mlflow.db") and str(run) not in str(data.links)
    assert _mlflow("1f", "https://me:secret@host/x").href == "https://host/x/#/runs/1f"


def test_prompt_gains_count_wins_ties_and_losses() -> None:
    rows = [
        (f"p{prompt}", prompt, seed, model, metric, float(value))
        for metric, values in {"pickscore": (21.5, 21.0, 20.0), "cmmd": (21.5, 21.0, 20.0)}.items()
        for prompt, value in enumerate(values)
        for seed in (1, 2)
        for model, value in (("base", 21.0), ("stage2", value + (seed - 1.5) * 1e-3))
    ]
    better, lower = prompt_gains(
        pd.DataFrame(rows, columns=list(statistics.SCORES)), model="stage2", base="base"
    )
    assert (better.wins, better.ties, better.losses) == (1, 1, 1)
    assert [prompt for prompt, _ in better.gains] == ["p0", "p1", "p2"]
    assert lower.metric == "cmmd" and [prompt for prompt, _ in lower.gains] == ["p2", "p1", "p0"]


def test_real_photographs(browser: Any, shared_data: Path, tmp_path: Path) -> None:
    captions = pd.read_csv(shared_data / "photos" / "captions.csv").head(8)
    photos = [
        (
            ImageOps.fit(Image.open(shared_data / "photos" / row.file).convert("RGB"), (192, 192)),
            str(row.caption),
        )
        for row in captions.itertuples()
    ]
    opened = Opened(browser, write_page(tmp_path, make(tmp_path, photos, pairs=8)))
    assert opened.broken() == [] and opened.complaints == []
    assert opened.page.locator("#pairs article").count() == 8
    opened.page.close()


@pytest.mark.slow
def test_five_thousand_pairs_can_be_looked_through(browser: Any, tmp_path: Path) -> None:
    photos = [(scene(i, 160), f"a disc before a gradient, number {i}, " * 3) for i in range(24)]
    page = write_page(tmp_path, make(tmp_path, photos, pairs=5000))
    assert page.stat().st_size < 15e6
    opened = Opened(browser, page)
    opened.choose("sort", "colorfulness")
    opened.page.locator('#pairs .pager [data-part="last"]').first.click()
    assert opened.broken() == [] and opened.complaints == []
    assert "of 5,000 pairs" in str(opened.page.locator('[data-part="status"]').text_content())
    opened.page.close()
