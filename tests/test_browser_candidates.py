"""The page of candidates in a real browser: gallery, all candidates beside it, holes, bias."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import Opened, chromium
from candidate_runs import make_run
from report_runs import write_page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with 30 pairs of 64 px, each of 4 candidates."""
    folder = tmp_path_factory.mktemp("run")
    write_page(folder, make_run(folder, holes=30, count=4))
    return folder


def test_a_pair_opens_all_its_candidates(browser: Any, run: Path) -> None:
    opened = Opened(browser, run / "report" / "index.html")
    page = opened.page
    assert opened.broken() == []
    first = page.locator("#pairs article").first
    assert first.locator("img").count() == 3
    assert str(first.locator("img").first.get_attribute("alt")).startswith("Photograph with its")
    notes = first.locator("b").all_text_contents()
    assert notes[0] == "" and all("score 0." in note for note in notes[1:])
    page.locator('#pairs .pager [data-part="next"]').first.click()
    page.locator('#pairs [data-part="candidates"]').first.click()
    page.wait_for_selector("#pair-25")
    assert page.url.endswith("candidates-2.html#pair-25")
    section = page.locator("#pair-25")
    assert section.locator("img").count() == 1 + 4
    assert (
        section.locator("figure.chosen").count() == 1 == section.locator("figure.rejected").count()
    )
    assert opened.broken() == [] and opened.complaints == []
    section.locator("a[data-zoom]").nth(2).click()
    dialog = page.locator("dialog.lightbox")
    assert dialog.locator(".place").text_content() == "3 of 5"
    page.keyboard.press("Escape")
    page.get_by_text("Back to the pairs").click()
    page.wait_for_selector("#pairs article img")
    inside = ("data:", (run / "report").as_uri())
    assert all(url.startswith(inside) for url in opened.requests)
    page.close()


def test_the_evaluation_shows_the_photograph_with_its_hole(browser: Any, run: Path) -> None:
    opened = Opened(browser, run / "report" / "index.html")
    grids = opened.page.locator("#samples [data-grid]")
    tinted = grids.first.locator("img").first
    assert str(tinted.get_attribute("alt")).startswith("Photograph with its hole tinted")
    assert grids.first.locator("img").count() == 1 + 4
    assert grids.nth(9).locator("img").count() == 4, "its photograph could not be read"
    assert "the same hole" in str(opened.page.locator("#samples").text_content()).lower()
    assert "An inpainting model" in str(opened.page.locator(".lead").text_content())
    assert "Drift in the hole" in str(opened.page.locator("#bias").text_content())
    opened.page.close()


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_scrolls_nothing_sideways(browser: Any, run: Path, *, dark: bool) -> None:
    phone = Opened(browser, run / "report" / "index.html", width=390, dark=dark)
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 390
    phone.page.goto(next(run.glob("report/files/pairs-*/candidates-1.html")).as_uri())
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 390
    phone.page.close()
