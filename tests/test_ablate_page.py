"""What a person sees of a table: its page, its lines in the terminal, its warning about toys."""

import math
import re
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import pytest
from ablated import made

from raypref.ablate import claims, results
from raypref.ablate.driver import make
from raypref.ablate.page import Placed, render
from raypref.ablate.plan import load_config
from raypref.ablate.results import direction, embedded
from raypref.ablate.table import Table
from raypref.ablate.terminal import printed


def of_rows(**changes: Any) -> results.Results:
    """Three rows: b is better than a, c failed; the paper has values of all."""
    found = made(
        {"base": 20.0, "a": 21.0, "b": 22.0},
        columns=("pickscore",),
        claims=[{"says": "B improves on A", "contrast": {"b": 1, "a": -1}}],
    )
    found.labels = {"base": "base", "a": "A <script>", "b": "B", "c": "C"}
    found.problems = {"c": "not given: add x=..."}
    found.published = {("base", "pickscore"): 20.65, ("a", "pickscore"): 20.74}
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def page(found: results.Results) -> str:
    banner = results.BANNER if found.paper == results.REAL_MODELS else ""
    return render(
        found,
        claims.tested(found, resamples=200),
        lead="3 of 4 runs are done.",
        banner=banner,
        positions={},
        runs=[Placed("B", 0, "0123abcd", "/runs/ablations/t/b-seed0")],
    )


LOADING = ("src", "href", "xlink:href")


class Texts(HTMLParser):
    """The texts of a page with the tags that they stand in, and what it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href")
        ]

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(" ".join(data.split()))


def read(html: str) -> Texts:
    found = Texts()
    found.feed(html)
    return found


def test_the_page_has_numbers_claims_figure_and_runs_and_loads_nothing():
    found = of_rows()
    seen = read(page(found))
    text = " | ".join(seen.texts)
    gain = found.summary.set_index("model").loc["b", "gain"]
    for expected in (
        "B improves on A",
        "Confirmed by 1 of 1 metrics.",
        f"▲ {gain:+.2f}",
        "paper 20.74",
        "not given: add x=...",
        "/runs/ablations/t/b-seed0",
        "0123abcd",
    ):
        assert expected in text
    assert "svg" in seen.tags  # though the table names no figure
    assert "script" not in seen.tags and "A <script>" in text
    assert all(load.startswith(("#", "data:")) for load in seen.loads)
    assert results.BANNER not in text


def test_published_values_beside_toys_say_so_everywhere():
    found = of_rows(paper=results.REAL_MODELS)
    html, text = page(found), results.table_markdown(found)
    moved = claims.what_moved(found, claims.tested(found, resamples=100))
    said = printed(found, [], width=100)
    for where in (" ".join(read(html).texts), text, " ".join(said.split())):
        assert results.BANNER in where
    told = " ".join(read(html).texts) + text + moved
    values = re.findall(r"paper[^|\[]{0,25}?\s([-+]?\d+\.\d+)", told)
    marked = re.findall(r"paper \(real models\) ([-+]?\d+\.\d+)", told)
    assert marked and values == marked


@pytest.mark.parametrize(
    ("preset", "change", "toys"),
    [("tiny", "seed=0", True), ("sd15", "seed=0", False), ("sd15", "base.model=tiny:sd15", True)],
)
def test_the_embedded_models_are_known_by_their_scheme(preset, change, toys):
    words = [change, "source.path=photos", "evaluate.prompts=prompts.txt"]
    assert embedded(load_config(preset, words)) is toys


@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_terminal_gets_no_line_wider_than_it_is(width):
    found = of_rows()
    more = [found.summary.assign(metric=name) for name in ("hpsv3", "deqa", "aesthetic", "fid")]
    found.summary = type(found.summary)(
        [row for frame in (found.summary, *more) for row in frame.to_dict("records")]
    )
    said = printed(found, claims.tested(found, resamples=100), width=width)
    assert max(map(len, said.splitlines())) <= width
    for heading in ("PickScore ↑", "HPSv3 ↑", "FID ↓"):
        assert said.count(heading) == 1
    gain = found.summary[found.summary["metric"] == "pickscore"].set_index("model").loc["a"]
    assert f"{gain['mean']:.2f} ({gain['gain']:+.2f}) ▲" in said
    assert re.search(r"^ +paper +20\.74$", said, re.MULTILINE) or width > 60
    assert "B improves on A: confirmed by 1 of 1 metrics" in " ".join(said.split())
    assert "C: not given: add x=..." in said


@pytest.mark.parametrize(
    ("metric", "low", "high", "shown"),
    [
        ("pickscore", 0.1, 0.3, ("▲", "better")),
        ("pickscore", -0.3, -0.1, ("▼", "worse")),
        ("cmmd", -0.3, -0.1, ("▼", "better")),
        ("cmmd", 0.1, 0.3, ("▲", "worse")),
        ("pickscore", -0.1, 0.3, ("≈", "flat")),
        ("pickscore", math.nan, math.nan, ("", "flat")),
    ],
)
def test_a_gain_has_a_direction_where_its_interval_has_one(metric, low, high, shown):
    assert direction(SimpleNamespace(metric=metric, gain_low=low, gain_high=high)) == shown


def test_a_table_is_written_though_no_row_can_run(tmp_path):
    """All files, without Ray; its tracker and its failed rows are told apart from waiting ones."""
    rows = [
        {"name": "base", "set": {"train.stage2.beta": -1}},
        {"name": "waits", "copy": {"base.network": "ablate.spo"}},
    ]
    table = Table.model_validate({"title": "Nothing", "rows": rows})
    words = [f"storage={tmp_path}", "tracking.uri=none"]
    (made,) = make({"nothing": table}, load_config("tiny", words))
    folder = tmp_path / "ablations" / "nothing"
    assert made.page == f"{folder}/index.html"
    assert {path.name for path in folder.iterdir()} == {
        *("index.html", "table.md", "table.csv", "config.toml", "run.json")
    }
    assert made.failed.keys() == {"base"}
    said = " ".join(read((folder / "index.html").read_text()).texts)
    for where in (said, made.text, (folder / "table.md").read_text()):
        assert "train.stage2.beta=-1: input should be greater than 0" in " ".join(where.split())
        assert "not given: add ablate.spo=..." in " ".join(where.split())
