"""All models beside one another: in a real browser it sorts by gain, searches, and asks nobody."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_runs import LABELS, MODELS, image_ledgers, scene, write_evaluation

from raypref.report.side_by_side import FILE, MOST_ROWS, write_side_by_side

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
ATTACK = """</script><script>alert(1)</script><img src=x onerror='alert(2)'>"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten prompts, two seeds, four models; one image of the base has no PickScore."""
    folder = tmp_path_factory.mktemp("run")
    photos = [(scene(i, 64), f"a disc, number {i}") for i in range(10)]
    photos[0] = (photos[0][0], ATTACK)
    write_evaluation(folder, photos)
    path = folder / "evaluation" / "scores.parquet"
    scores = pd.read_parquet(path)
    row = (scores["model"] == "base") & (scores["prompt_id"] == 3) & (scores["seed"] == 42)
    scores.loc[row & (scores["metric"] == "pickscore"), "score"] = float("nan")
    scores.to_parquet(path)
    assert write(folder)
    return folder


def write(folder: Path) -> bool:
    scores = pd.read_parquet(folder / "evaluation" / "scores.parquet")
    return write_side_by_side(
        image_ledgers(folder), scores, report=str(folder / "report"), labels=LABELS
    )


def data(folder: Path) -> dict[str, Any]:
    text = (folder / "report" / FILE).read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found[1])


def expected_gains(folder: Path, metric: str, model: str) -> pd.Series:
    """The gains over the base, best first, by pandas."""
    scores = pd.read_parquet(folder / "evaluation" / "scores.parquet")
    own = scores[scores["metric"] == metric]
    wide = own.pivot_table(index=["prompt_id", "seed"], columns="model", values="score")
    return (wide[model] - wide["base"]).dropna().sort_values(ascending=False)


def test_every_image_is_within_the_page(run: Path) -> None:
    page = data(run)
    assert [name for name, _ in page["models"]] == list(MODELS)
    assert len(page["rows"]) == page["total"] == 20 <= MOST_ROWS
    images = [image for row in page["rows"] for image in row[2]]
    assert len(images) == 80
    assert all(image.startswith("data:image/webp;base64,") for image in images)
    missing = [row for row in page["rows"] if row[3][0][0] is None]
    assert [(row[0], row[1]) for row in missing] == [("a disc, number 3", 42)]
    text = (run / "report" / FILE).read_text()
    assert not re.search(r'(src|href)="(https?:)?//', text) and "<script>alert" not in text


def test_it_is_written_again_only_when_something_changed(run: Path, tmp_path: Path) -> None:
    path = run / "report" / FILE
    before = path.stat().st_mtime_ns
    assert write(run)
    assert path.stat().st_mtime_ns == before
    scores = pd.read_parquet(run / "evaluation" / "scores.parquet")
    alone = {"base": image_ledgers(run)["base"]}
    assert not write_side_by_side(alone, scores, report=str(tmp_path), labels=LABELS)


# ------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine; CHROMIUM=PATH names one")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(params=[1280, 390], ids=["desktop", "phone"])
def page(browser: Any, run: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": request.param, "height": 900})
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("dialog", lambda dialog: complaints.append(dialog.message))
    opened.on("request", lambda asked: complaints.append(asked.url[:80]))
    opened.goto((run / "report" / FILE).as_uri())
    opened.wait_for_selector('[data-part="list"] figure img')
    yield opened
    asked = [text for text in complaints if not text.startswith(("data:", "file:"))]
    assert asked == []
    width = opened.evaluate("document.documentElement.scrollWidth")
    assert width == request.param, "it scrolls sideways"
    opened.close()


def gains(page: Any, model: int) -> list[float]:
    """Of the shown rows: the number in parentheses under the model's picture."""
    shown = page.locator(f".models > figure:nth-child({model + 1})").all_text_contents()
    return [float(found[1]) for text in shown if (found := re.search(r"\(([+-][\d.]+)\)", text))]


def test_sorting_by_gain_finds_wins_and_losses(page: Any, run: Path) -> None:
    expected = expected_gains(run, "pickscore", "stage2")
    page.locator('[data-part="metric"]').select_option("0")
    assert gains(page, 3) == pytest.approx(expected.head(10).tolist(), abs=0.006)
    page.locator('[data-part="turn"]').click()
    assert gains(page, 3) == pytest.approx(expected.tail(10).tolist()[::-1], abs=0.006)
    page.locator('#rows .pager [data-part="last"]').first.click()
    assert len(gains(page, 3)) == 9, "the image without a score comes last"
    assert "no score" in page.locator('[data-part="list"] > figure').last.text_content()
    page.locator('[data-part="model"]').select_option("stage1")
    lowest = expected_gains(run, "pickscore", "stage1").tail(10).tolist()[::-1]
    assert gains(page, MODELS.index("stage1")) == pytest.approx(lowest, abs=0.006)


def test_search_and_strangers_words(page: Any) -> None:
    page.locator('[data-part="search"]').fill("number 7")
    titles = page.locator('[data-part="list"] > figure > figcaption').all_text_contents()
    assert titles == ["a disc, number 7 · seed 42", "a disc, number 7 · seed 123"]
    page.locator('[data-part="search"]').fill("alert(1)")
    assert ATTACK in page.locator('[data-part="list"] > figure > figcaption').first.text_content()


def test_pictures_open_large(page: Any) -> None:
    page.locator('[data-part="list"] a[data-zoom]').nth(2).click()
    dialog = page.locator("dialog.lightbox")
    assert dialog.locator(".place").text_content() == "3 of 40"  # ten rows of four models
    page.keyboard.press("ArrowRight")
    words = str(dialog.locator(".words").text_content())
    assert words.startswith("stage 1 + stage 2: ") and words.endswith(ATTACK)
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
