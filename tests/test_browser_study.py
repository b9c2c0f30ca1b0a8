"""A study in a real browser: five raters at once, keys alone, a phone, a page without a server."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import chromium
from studies import MODELS, made, served

from raypref.study.export import read_in
from raypref.study.folder import Study
from raypref.study.votes import Vote, VoteStore

RATERS = ("ann", "bob", "cyd", "dee", "eve")
READY = (
    "#compare:not([hidden])[aria-busy='false'], #done:not([hidden])"  # for a vote, or at the end
)
# Contrast of every text that is seen with what lies behind it, by WCAG 2.
CONTRASTS = """() => {
    const light = (text) => {
        const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
        const part = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        return [0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b), a];
    };
    const behind = (node) => {
        for (; node; node = node.parentElement) {
            const [value, opacity] = light(getComputedStyle(node).backgroundColor);
            if (opacity === 1) return value;
        }
        return 1;
    };
    const found = {};
    for (const node of document.querySelectorAll("h1, h2, p, label, button, kbd, b, input")) {
        if (!node.checkVisibility() || node.matches(".unseen")) continue;
        const [one, other] = [light(getComputedStyle(node).color)[0], behind(node)];
        const [high, low] = [Math.max(one, other), Math.min(one, other)];
        found[node.outerHTML.slice(0, 60)] = (high + 0.05) / (low + 0.05);
    }
    return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


class Rater:
    """A page of one rater."""

    def __init__(self, context: Any, url: str, code: str = "") -> None:
        self.page = context.new_page()
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.goto(url)
        if code:
            self.page.get_by_label("Your code").fill(code)
            self.page.keyboard.press("Enter")
        self.wait()

    def wait(self) -> None:
        """Until a vote would be taken, or all is done."""
        self.page.wait_for_selector(READY)

    def done(self) -> int:
        return int(self.page.locator("#bar").get_attribute("value") or 0)

    def wait_for(self, done: int) -> None:
        self.page.wait_for_selector(f"#bar[value='{done}']", state="attached")
        self.wait()


def votes_of(study: Study) -> list[Vote]:
    store = VoteStore(study.folder)
    try:
        return store.all()
    finally:
        store.close()


def test_five_raters_at_once_lose_nothing(browser: Any, tmp_path: Path) -> None:
    """Clicks and keys, a reload, two tabs, undo, a server that is killed in between."""
    prompts = 12
    study = made(tmp_path, prompts, prompts=prompts)
    said: dict[tuple[str, str], str] = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(served(study, "--rate=200"))
        contexts = {code: browser.new_context() for code in RATERS}
        raters = {code: Rater(contexts[code], server.url, code) for code in RATERS}
        for number in range(prompts):
            for place, (code, rater) in enumerate(raters.items()):
                side = ("left", "right", "tie")[(number + place) % 3]
                said[code, study.order(code)[number].task] = side
                if (number + place) % 2:
                    key = {"left": "ArrowLeft", "right": "ArrowRight", "tie": "ArrowUp"}[side]
                    rater.page.keyboard.press(key)
                else:
                    rater.page.locator(f"[data-choice={side}]").last.click()
            if number == prompts // 3:
                server.kill()
                stack.enter_context(served(study, "--rate=200", port=server.port))
            for rater in raters.values():
                rater.wait_for(number + 1)
            if number == prompts // 6:
                raters["ann"].page.reload()
                raters["ann"].wait()
                assert raters["ann"].done() == number + 1, "resumed without the code being typed"
            if number == prompts // 2:
                second = Rater(contexts["bob"], server.url)
                assert second.done() == number + 1
                second.page.keyboard.press("ArrowLeft")
                second.wait_for(number + 2)
                raters["bob"].page.keyboard.press("ArrowRight")  # of a pair answered elsewhere
                raters["bob"].wait_for(number + 2)
                second.page.keyboard.press("u")
                second.wait_for(number + 1)
                raters["bob"].page.reload()
                raters["bob"].wait()
                second.page.close()
        for code, rater in raters.items():
            assert rater.page.get_by_role("heading", name="Thank you").is_visible()
            lost = [text for text in rater.complaints if "net::ERR" not in text]
            assert [text for text in lost if "409" not in text] == [], code
    votes = votes_of(study)
    assert len(votes) == 5 * prompts
    assert {(vote.rater, vote.task): vote.choice for vote in votes} == said
    assert all(0 < vote.seconds < 300 for vote in votes)


def test_keys_alone_are_enough_and_the_focus_is_seen(browser: Any, tmp_path: Path) -> None:
    study = made(tmp_path, 3, prompts=3)
    with served(study) as server:
        page = browser.new_context().new_page()
        page.goto(server.url)
        assert page.evaluate("document.activeElement.id") == "code"
        page.keyboard.type("keys only")
        page.keyboard.press("Enter")
        assert page.locator("#compare").is_hidden(), "the browser says what a code is"
        page.get_by_label("Your code").fill("keys-only")
        page.keyboard.press("Enter")
        page.wait_for_selector("#compare[aria-busy='false']")
        reached = []
        for _ in range(8):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.innerText.trim()"))
            if page.evaluate("document.activeElement.tagName") == "BUTTON":
                style = "getComputedStyle(document.activeElement).outlineStyle"
                assert page.evaluate(style) == "solid"
        assert {"Change", "A", "B", "← A is better", "↑ Neither", "B is better →"} <= {*reached}
        page.get_by_role("button", name="Neither").focus()
        page.keyboard.press("Space")
        page.wait_for_selector("#bar[value='1']")
        assert page.evaluate("document.activeElement.dataset.choice") == "tie", "it stays"
        page.wait_for_selector("#compare[aria-busy='false']")
        page.keyboard.press("u")
        page.wait_for_selector("#bar[value='0']")
        page.locator("#status", has_text="taken back").wait_for()
        page.wait_for_selector("#compare[aria-busy='false']")
        for number in range(3):
            page.keyboard.press("ArrowRight")
            page.keyboard.press("ArrowRight")  # a second press is no vote on the next pair
            page.wait_for_selector(f"#bar[value='{number + 1}']", state="attached")
            if number < 2:
                page.wait_for_selector("#compare[aria-busy='false']")
        page.wait_for_selector("#done:not([hidden])")
        assert page.evaluate("document.activeElement.id") == "done"
    votes = votes_of(study)
    assert [vote.choice for vote in votes] == ["right"] * 3


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
def test_all_of_it_is_seen_without_scrolling(
    browser: Any, tmp_path: Path, dark: bool, phone: bool
) -> None:
    study = made(tmp_path, 3)
    size = {"width": 390, "height": 780} if phone else {"width": 1280, "height": 800}
    scheme = "dark" if dark else "light"
    with served(study) as server:
        context = browser.new_context(viewport=size, color_scheme=scheme, has_touch=phone)
        rater = Rater(context, server.url, "ann")
        page = rater.page
        assert page.locator(".picture img").count() == 2
        for selector in (".picture >> nth=0", ".picture >> nth=1", "#choices"):
            box = page.locator(selector).bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= size["width"]
            assert box["y"] >= 0 and box["y"] + box["height"] <= size["height"], selector
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 6 and min(contrasts.values()) >= 4.5, contrasts
        heights = [page.locator("#choices button").nth(n).bounding_box()["height"] for n in (0, 2)]
        assert min(heights) >= 44, "for a thumb"
        if phone:
            page.locator(".picture").first.tap()
        else:
            page.locator(".picture").first.click()
        rater.wait_for(1)
        unnamed = (
            "[...document.querySelectorAll('button')].filter((b) => !(b.ariaLabel || b.innerText))"
        )
        assert page.evaluate(f"{unnamed}.filter((b) => b.checkVisibility()).length") == 0
        assert rater.complaints == []
    assert [vote.choice for vote in votes_of(study)] == ["left"]


def test_a_page_without_a_server_saves_its_votes(browser: Any, tmp_path: Path) -> None:
    study = made(tmp_path, 4, static=True, ties=False)
    file = study.folder / "page.html"
    context = browser.new_context(accept_downloads=True)
    requests: list[str] = []
    context.on("request", lambda request: requests.append(request.url))
    rater = Rater(context, file.as_uri(), "ann")
    shown = []
    for number in range(4):
        shown.append([image.get_attribute("src") for image in rater.page.locator("img").all()])
        rater.page.keyboard.press("ArrowUp")  # no tie is allowed
        rater.page.keyboard.press("ArrowLeft" if number % 2 else "ArrowRight")
        rater.wait_for(number + 1)
        if number == 1:
            rater.page.reload()
            rater.wait()
            assert rater.done() == 2
    assert all(len({*pair}) == 2 for pair in shown)
    saved = []
    for form in ("JSON", "CSV"):
        with rater.page.expect_download() as told:
            rater.page.get_by_role("button", name=f"Save votes ({form})").click()
        saved.append(tmp_path / told.value.suggested_filename)
        told.value.save_as(saved[-1])
    assert rater.complaints == []
    assert {url.split(":")[0] for url in requests} <= {"file", "data", "blob"}
    assert all(model not in file.read_text() for model in MODELS)
    store = VoteStore(study.folder)
    assert [read_in(study, store, [str(path)]) for path in saved] == [4, 0], "the same votes"
    votes = store.all()
    store.close()
    assert [vote.choice for vote in votes] == ["right", "left", "right", "left"]
    assert Counter(vote.rater for vote in votes) == {"ann": 4}
    assert json.loads(saved[0].read_text())["study"] == study.id
