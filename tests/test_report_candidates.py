"""The page of candidates: pairs with hole and numbers, all candidates, bias of rewards."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from candidate_runs import config, key_of, write_candidates
from report_runs import fill

from raypref.core.ledger import Ledger
from raypref.evaluate import statistics
from raypref.pairs.choice import ChoiceConfig
from raypref.report import bias
from raypref.report import candidates as report
from raypref.report.bias import drift_tables
from raypref.report.page import render
from raypref.report.views import InputsView, ReportData

ATTACK = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>"


def gathered(folder: Path, pairs: Ledger, **choice: Any) -> InputsView:
    own = config(folder).model_copy(update={"choice": ChoiceConfig(**{"by": "bright"} | choice)})
    return report.candidate_inputs(str(folder), own, pairs)


def page_of(folder: Path, view: InputsView) -> str:
    own = {name: getattr(view, name) for name in InputsView.__dataclass_fields__}
    terms = report.kind_of(config(folder)).terms
    return render(ReportData(title="t", subtitle="s", config_toml="", terms=terms, **own))


def listed(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="pairs-data">(.*?)</script>', page)
    assert found
    return json.loads(found[1])


def test_the_gallery_shows_hole_chosen_and_rejected_with_their_numbers(tmp_path: Path) -> None:
    pairs = write_candidates(tmp_path, photographs=1)
    data = listed(page_of(tmp_path, view := gathered(tmp_path, pairs)))
    assert [kind for kind, *_ in data["kinds"]] == ["region", "chosen", "rejected"]
    assert [caption for _, caption, _ in data["kinds"]] == ["hole", "chosen", "rejected"]
    rows = {row[0]: row for row in data["pairs"]}
    table = pairs.table(["prompt", "candidate_chosen", "candidate_rejected"]).to_pylist()
    for row in table:
        _, chosen, rejected = rows[row["prompt"]][3]
        number = row["candidate_chosen"]
        assert chosen == ("photograph, score –" if number < 0 else f"no. {number}, score 0.9")
        assert rejected == f"no. {row['candidate_rejected']}, score 0.1"
    how = "The chosen image is the best candidate by the reward bright"
    assert how in view.pairs_are and "6 candidates" in view.pairs_are
    assert view.pairs[0].region is not None


@pytest.mark.parametrize(
    ("choice", "how"),
    [
        (
            {"by": "random"},
            "The chosen image is a candidate drawn at random, the rejected image a candidate drawn "
            "at random. No reward chose.",
        ),
        (
            {"by": "ensemble", "chosen": "photograph"},
            "The chosen image is the photograph itself, the rejected image the worst candidate by "
            "the rule ensemble.",
        ),
    ],
)
def test_page_and_candidates_say_what_chose_the_pairs(choice, how, tmp_path: Path) -> None:
    pairs = write_candidates(tmp_path, photographs=8 if "chosen" in choice else 0)
    view = gathered(tmp_path, pairs, **choice)
    [file] = tmp_path.glob("report/files/pairs-*/candidates-1.html")
    for text in (view.pairs_are, " ".join(file.read_text().split()).replace(" </p>", "")):
        assert how in text and "picked them" not in text and "rule's score decides" not in text


def test_without_holes_the_gallery_has_two_pictures(tmp_path: Path) -> None:
    pairs = write_candidates(tmp_path, masked=False)
    view = gathered(tmp_path, pairs)
    assert [kind for kind, *_ in listed(page_of(tmp_path, view))["kinds"]] == ["chosen", "rejected"]
    assert "images of one prompt" in view.pairs_are and "hole" not in view.pairs_are
    assert view.bias is not None and [own.title for own in view.bias.tables] == [
        "In the whole picture"
    ]


def test_all_candidates_of_a_pair_lie_beside_the_page(tmp_path: Path) -> None:
    """In order, each with every reward's score, whatever the order in which they are stored."""
    pairs = write_candidates(tmp_path, holes=30, count=5, order=-1, photographs=2, prompt=ATTACK)
    view = gathered(tmp_path, pairs)
    files = sorted(tmp_path.glob("report/files/pairs-*/candidates-*.html"))
    assert [file.name for file in files] == ["candidates-1.html", "candidates-2.html"]
    assert view.candidate_pages == (
        f"files/pairs-{pairs.fingerprint}-drawn/candidates-{{page}}.html#pair-{{pair}}"
    )
    scores = Ledger(str(tmp_path / "candidates" / "scores"), {}).table().to_pandas()
    facts = pairs.table(["key", "candidate_chosen", "candidate_rejected"]).to_pandas()
    seen = 0
    for file in files:
        text = file.read_text()
        assert "<script>alert" not in text and "onerror='" not in text
        for section in text.split('<section id="pair-')[1:]:
            rank = int(section[: section.index('"')])
            own = scores[scores["key"] == key_of(rank - 1)].sort_values("candidate")
            numbers = re.findall(r"<b>no\. (\d+)", section)
            assert numbers == [str(n) for n in own["candidate"]]
            told = re.findall(r"<dt>bright</dt><dd>(?:<b>)?([\d.]+)", section)
            assert told == [f"{value:.2f}" for value in own["bright"]]
            best = re.findall(r"<dt>PickScore</dt><dd><b>([\d.]+)", section)
            assert best == [f"{own['pickscore'].max():.2f}"]
            [fact] = facts[facts["key"] == key_of(rank - 1)].itertuples()
            shown = "photograph" if fact.candidate_chosen < 0 else f"no. {fact.candidate_chosen}"
            assert f'<b>{shown} · <span class="better">chosen' in section
            assert f'<b>no. {fact.candidate_rejected} · <span class="worse">rejected' in section
            assert section.count("<img") == 5 + 1 + (fact.candidate_chosen < 0)
            seen += 1
    assert seen == 30


def test_no_image_is_read_but_those_of_shown_pairs(tmp_path: Path, monkeypatch) -> None:
    pairs = write_candidates(tmp_path, holes=200, count=2, side=16)  # 64 rows per part
    monkeypatch.setattr(report, "MOST_PAIRS", 70)
    monkeypatch.setattr(bias, "MOST_HOLES", 5)
    opened: set[tuple[str, str]] = set()
    part, rows = Ledger.part, Ledger.rows
    images = {"image", "mask", "chosen", "rejected", "source"}

    def of_part(self: Ledger, name: str, columns: Any = None, **words: Any) -> Any:
        if columns is None or images & {*columns}:
            opened.add((self.path, name))
        return part(self, name, columns, **words)

    def of_all(self: Ledger, columns: Any = None, **words: Any) -> Any:
        one_row = words.get("batch_size") == 1
        assert one_row or (columns is not None and not images & {*columns}), self.path
        return rows(self, columns, **words)

    monkeypatch.setattr(Ledger, "part", of_part)
    monkeypatch.setattr(Ledger, "rows", of_all)
    view = gathered(tmp_path, pairs)
    assert len(view.pairs) == 70 and "Shown are 70 of 200" in view.pairs_are
    first = pairs.parts()[:2]
    keys = [key for name in first for key in part(pairs, name, ["key"])["key"].to_pylist()][:70]
    assert [own.prompt for own in view.pairs] == [
        f"a disc, number {number}" for key in keys for number in range(200) if key_of(number) == key
    ]
    assert {name for path, name in opened if path == pairs.path} == {*first}
    for path in ("holes", "candidates/images/00", "candidates/images/01"):
        own = Ledger(str(tmp_path / path), {})
        wanted = {
            name for name in own.parts() if {*part(own, name, ["key"])["key"].to_pylist()} & {*keys}
        }
        first_five = {key_of(number) for number in range(5)}
        for_bias = {
            name
            for name in own.parts()
            if {*part(own, name, ["key"])["key"].to_pylist()} & first_five
        }
        assert {name for at, name in opened if at == own.path} == wanted | for_bias


def test_a_candidate_that_was_not_made_leaves_its_place(tmp_path: Path) -> None:
    pairs = write_candidates(tmp_path, holes=3, count=4)
    ledger = Ledger(str(tmp_path / "candidates" / "images" / "02"), {"n": 2})
    first, *others = ledger.table().to_pylist()
    schema = ledger.schema()
    ledger.clear()
    fill(ledger, [{**first, "image": None, "reject_reason": "no_image"}, *others], schema)
    gathered(tmp_path, pairs)
    [file] = tmp_path.glob("report/files/pairs-*/candidates-1.html")
    first, *others = file.read_text().split('<section id="pair-')[1:]
    assert "not made" in first and not any("not made" in other for other in others)


def test_pages_that_are_there_are_not_written_again(tmp_path: Path) -> None:
    pairs = write_candidates(tmp_path)
    gathered(tmp_path, pairs)
    made = [
        *tmp_path.glob("report/files/pairs-*/candidates-1.html"),
        *tmp_path.glob("bias/looks/part-*"),
    ]
    before = {file: file.stat().st_mtime_ns for file in made}
    assert len(before) == 1 + 6 + 1  # a page; looks of six candidates and the photographs
    view = gathered(tmp_path, pairs)
    assert {file: file.stat().st_mtime_ns for file in made} == before
    other = write_candidates(tmp_path / "other", count=6)
    for file in (tmp_path / "other" / "candidates").rglob("part-*"):
        file.unlink()  # removed to save space
    assert view.candidate_pages and gathered(tmp_path / "other", other).candidate_pages == ""


def test_funnel_and_reasons_are_those_of_the_kind(tmp_path: Path) -> None:
    view = gathered(tmp_path, write_candidates(tmp_path))
    assert view.funnel[0].remaining == 14
    assert view.funnel[-1].remaining == 8
    assert {own.reason for own in view.dropped} >= {"hole_too_small", "draw", "too_few_candidates"}
    assert all(own.keep for own in view.dropped)


def test_the_planted_taste_is_found_in_the_hole_and_its_pairs_are_tilted(tmp_path: Path) -> None:
    view = gathered(tmp_path, write_candidates(tmp_path, holes=12, photographs=1))
    assert view.bias is not None
    found = pd.read_csv(tmp_path / "bias" / "within.csv").set_index(["reward", "where", "property"])
    own = found.loc[("bright", "hole", "brightness")]
    assert own["spearman"] == pytest.approx(1) and (own["n_holes"], own["n_left_out"]) == (12, 0)
    assert found.loc[("rule", "hole", "brightness")]["spearman"] == pytest.approx(1)
    assert abs(found.loc[("pickscore", "hole", "brightness")]["spearman"]) < 0.5
    tilted = pd.read_csv(tmp_path / "bias" / "tilt.csv").set_index(["where", "property"])
    row = tilted.loc[("hole", "brightness")]
    # Shades 0.1 to 0.9 in six steps: standard deviation 0.3, best minus worst 0.8. The photograph
    # that is chosen once is darker than the brightest candidate.
    assert 2 < row["tilt"] <= 0.8 / 0.299 and row["n_pairs"] == 12
    assert row["spread"] == pytest.approx(0.2993, abs=0.01)
    said = " ".join(view.bias.sentences)
    assert "bright ranks candidates with more brightness in the" in said
    assert "The chosen images have more brightness in the" in said
    text = (tmp_path / "bias" / "bias.md").read_text()
    assert text.startswith("| in the hole | brightness | contrast |")
    page = page_of(tmp_path, view)
    assert '<section id="bias">' in page and "rule: bright" in page


def test_drift_is_the_gain_of_looks_over_the_base() -> None:
    rows = [
        (f"p{prompt}", prompt, 1, model, metric, 0.5 + shift * (1 + prompt / 10))
        for metric in ("pickscore", "brightness", "brightness_in_hole")
        for model, shift in (("base", 0.0), ("bright", 0.1))
        for prompt in range(6)
    ]
    table = statistics.summarise(pd.DataFrame(rows, columns=list(statistics.SCORES)))
    data = ReportData(title="t", subtitle="s", config_toml="", table=table, labels={"bright": "B"})
    hole, whole = drift_tables(data)
    assert (hole.title, whole.title) == ("Drift in the hole", "Drift in the whole picture")
    assert hole.properties == whole.properties == ["brightness"]
    [(label, [cell])] = hole.rows
    assert label == "B" and cell.startswith("+0.125 [")
    assert not math.isnan(float(cell.split()[0])) and "What the trainings changed" in render(data)
