"""A real browser for the tests of pages, and what a page did in it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser; the test is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine; CHROMIUM=PATH names one")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """A page in the browser, and what it did."""

    def __init__(self, browser: Any, file: Path, *, width: int = 1280, dark: bool = False) -> None:
        scheme = "dark" if dark else "light"
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri(), wait_until="commit")
        self.page.wait_for_selector("#pairs article img")

    def broken(self) -> list[str]:
        """Images that were to be seen and are not; the lazy ones are asked for first."""
        return self.page.evaluate(
            """async () => {
                const images = [...document.images].filter((image) => image.getAttribute("src"));
                for (const image of images) image.loading = "eager";
                const decoded = images.map((image) => image.decode().then(() => 1, () => 0));
                const loaded = await Promise.all(decoded);
                return images.filter((_, place) => !loaded[place]).map((i) => i.src.slice(0, 99));
            }"""
        )

    def ranks(self) -> list[int]:
        texts = self.page.locator('[data-part="list"] [data-part="rank"]').all_text_contents()
        return [int(text.replace(",", "")) for text in texts]

    def numbers(self, part: str) -> list[float]:
        texts = self.page.locator(f'[data-part="list"] [data-part="{part}"]').all_text_contents()
        return [float(text) for text in texts]

    def choose(self, part: str, value: str) -> None:
        self.page.locator(f'[data-part="{part}"]').select_option(value)
