"""A run's page in a real browser, looked at closely: lightbox, dropped files, charts, code."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from browsing import Opened, chromium
from report_runs import make, scene, write_page

from raypref.report.page import render
from raypref.report.views import PairView, Picture, ReportData


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with 30 pairs of 64 px."""
    folder = tmp_path_factory.mktemp("run")
    photos = [(scene(i, 64), f"a disc, number {i}") for i in range(8)]
    write_page(folder, make(folder, photos, pairs=30))
    return folder


@pytest.fixture
def opened(browser: Any, run: Path) -> Iterator[Opened]:
    opened = Opened(browser, run / "report" / "index.html")
    yield opened
    assert opened.complaints == []
    inside = ("data:", (run / "report").as_uri())
    assert all(url.startswith(inside) for url in opened.requests)
    opened.page.close()


def test_pictures_open_large_and_are_gone_through_by_keys(opened: Opened) -> None:
    page, dialog = opened.page, opened.page.locator("dialog.lightbox")
    second = page.locator("#pairs article a[data-zoom]").nth(1)
    second.click()
    assert dialog.get_attribute("aria-label") == "Picture, enlarged"
    assert str(dialog.locator("img").get_attribute("alt")).startswith("Region")
    assert dialog.locator(".place").text_content() == "2 of 72"
    assert dialog.locator("img").bounding_box()["width"] > 500
    assert dialog.locator("img").evaluate("(own) => getComputedStyle(own).imageRendering") == (
        "pixelated"
    )
    page.keyboard.press("ArrowRight")
    assert str(dialog.locator("img").get_attribute("alt")).startswith("Rejected")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")  # there is none before the first
    assert dialog.locator(".place").text_content() == "1 of 72"
    assert dialog.locator("button.back").is_disabled()
    inside = "document.querySelector('dialog').contains(document.activeElement)"
    for _ in range(5):
        page.keyboard.press("Tab")
        focus = page.evaluate("document.activeElement.tagName")
        assert page.evaluate(inside) or focus == "BODY", "the focus stays in the dialog"
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    first = page.locator("#pairs article a[data-zoom]").first
    assert first.evaluate("(link) => link === document.activeElement")
    page.keyboard.press("Enter")
    dialog.wait_for()
    dialog.locator("button.close").click()
    dialog.wait_for(state="detached")
    for group in (".medians", "#samples .samples"):
        page.locator(f"{group} a[data-zoom]").first.click()
        assert opened.broken() == []
        page.keyboard.press("Escape")
        dialog.wait_for(state="detached")


def test_the_first_screen_has_the_result_and_its_pictures(opened: Opened) -> None:
    assert "PickScore" in str(opened.page.locator(".result").text_content())
    pictures = opened.page.locator(".medians img")
    assert pictures.count() == 8
    assert pictures.last.bounding_box()["y"] < 900, "without scrolling"
    assert "around the median gain" in str(opened.page.locator("header").text_content())


def test_dropped_photographs_are_looked_through_by_reason(opened: Opened) -> None:
    page = opened.page
    assert page.locator("#dropped details[open]").count() == 1, "the first reason"
    page.locator('#photographs .reasons a[href="#dropped-low_colorfulness"]').click()
    grey = page.locator("#dropped-low_colorfulness")
    page.locator("#dropped-low_colorfulness[open]").wait_for()
    assert grey.locator("li").count() == 7
    assert "color.enabled=false keeps all" in str(grey.text_content())
    grey.locator("a[data-zoom]").nth(3).click()
    dialog = page.locator("dialog.lightbox")
    assert dialog.locator(".place").text_content() == "4 of 7"
    assert "photo-" in str(dialog.locator(".words").text_content())
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    broken = page.locator("#dropped-unreadable")
    assert "no picture" in str(broken.text_content()) and "<b>.png" in str(broken.text_content())
    assert opened.broken() == []


def test_charts_of_a_training_have_one_cursor(opened: Opened, run: Path) -> None:
    page = opened.page
    group = page.locator("[data-cursors]").first
    shown = group.locator("svg[data-cursor]:visible")
    assert shown.count() == 2, "loss and one more"
    group.locator("summary").click()
    assert shown.count() > 5
    loss = shown.first
    loss.scroll_into_view_if_needed()
    box = loss.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] / 2)
    texts = group.locator("output").all_text_contents()
    steps = {text.split(":")[0] for text in texts}
    assert len(steps) == 1 and 90 < int(steps.pop().removeprefix("step ")) < 140
    written = pd.read_parquet(
        Path(page.url.removeprefix("file://")).parents[1] / "stage1/metrics.parquet"
    )
    step, value = texts[0].removeprefix("step ").split(": ")
    assert float(value) == pytest.approx(written["loss"][int(step) - 1], rel=1e-3)
    line = loss.locator("line.cursor").bounding_box()
    assert line["x"] == pytest.approx(box["x"] + box["width"] * 0.6, abs=box["width"] / 100)
    loss.focus()
    page.keyboard.press("ArrowRight")
    assert group.locator("output").first.text_content() != texts[0]
    page.locator("#results svg[data-cursor]").first.hover()
    assert "stage" in str(page.locator("#results output").first.text_content())


def test_the_section_that_is_read_is_marked(opened: Opened) -> None:
    marked = opened.page.locator("nav a[aria-current]")
    for section in ("results", "photographs", "pairs"):
        opened.page.evaluate(f"document.getElementById('{section}').scrollIntoView()")
        opened.page.locator(f'nav a[aria-current][href="#{section}"]').wait_for()
        assert marked.count() == 1


def test_the_code_can_be_copied(browser: Any, run: Path) -> None:
    opened = Opened(browser, run / "report" / "index.html")
    button = opened.page.locator("button[data-copy]")
    button.click()
    opened.page.get_by_text(re.compile("^(Copied|Selected)")).wait_for()
    assert opened.complaints == []
    opened.page.close()


def test_a_copied_folder_is_a_whole_page(browser: Any, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "report", tmp_path / "report")
    copied = Opened(browser, tmp_path / "report" / "index.html")
    links = copied.page.evaluate("[...document.links].map((link) => link.getAttribute('href'))")
    there = [link for link in links if not link.startswith(("#", "data:", "https:"))]
    assert len(there) > 100
    assert all((tmp_path / "report" / link).is_file() for link in there)
    assert copied.broken() == [] and copied.complaints == []
    copied.page.close()


def test_five_thousand_pairs_stay_light(browser: Any, tmp_path: Path) -> None:
    """Of a ledger as it would be: counts and bytes; the pictures of the ledger are not drawn."""
    dot = "data:image/gif;base64,R0lGODlhAQABAAAAACw="

    def view(rank: int) -> PairView:
        own = [
            Picture(
                dot if rank <= 96 else f"files/pairs-0123456789abcdef/{rank}-{kind}-small.jpg",
                f"files/pairs-0123456789abcdef/{rank}-{kind}.png",
                192,
                192,
                False,
            )
            for kind in ("chosen", "region", "rejected")
        ]
        return PairView(
            rank=rank,
            prompt=f"number {rank}, " + "a long caption of a photograph " * 4,
            pickscore_chosen=25 - rank / 1000,
            pickscore_rejected=20.0,
            colorfulness=rank % 90,
            chosen=own[0],
            region=own[1],
            rejected=own[2],
        )

    data = ReportData(title="many", subtitle="", config_toml="", pairs=[*map(view, range(1, 5001))])
    page = tmp_path / "index.html"
    page.write_text(render(data), encoding="utf-8")
    # 96 x 3 small pictures of at most 15 kB lie within a real page.
    assert page.stat().st_size + 96 * 3 * 15e3 < 15e6
    opened = Opened(browser, page)
    timing = opened.page.evaluate(
        "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
    )
    assert timing < 20_000, "2 s on a free machine"
    assert opened.page.evaluate("document.querySelectorAll('*').length") < 1500
    assert len([url for url in opened.requests if not url.startswith("data:")]) == 1
    opened.choose("sort", "colorfulness")
    opened.page.locator('[data-part="search"]').fill("number 4999")
    assert opened.ranks() == [4999]
    assert [c for c in opened.complaints if "ERR_FILE_NOT_FOUND" not in c] == []
    opened.page.close()
