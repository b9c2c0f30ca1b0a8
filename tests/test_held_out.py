"""The prompts that are taken where no file is named: texts of no pair, drawn by the seed."""

from __future__ import annotations

from pathlib import Path

from report_runs import fill

from raypref.core.ledger import Ledger
from raypref.core.rows import seed_of
from raypref.curate.publish import PHOTOS
from raypref.evaluate import sets
from raypref.evaluate.plain_prompts import PLAIN
from raypref.pairs.columns import OUTCOMES


def photos(folder: Path, outcomes: list[tuple[str, str, str | None]]) -> Ledger:
    ledger = Ledger(str(folder / "photos"), {})
    rows: list[dict[str, object]] = [
        {"id": str(i), "caption": caption, "status": status, "reason": reason}
        for i, (caption, status, reason) in enumerate(outcomes)
    ]
    fill(ledger, rows, PHOTOS)
    return ledger


def test_without_a_file_captions_of_no_pair_are_drawn_by_the_seed(tmp_path):
    outcomes: list[tuple[str, str, str | None]] = [
        *((f"kept {i}", "pair", None) for i in range(5)),
        *((f"grey {i}", "not_selected", "low_colorfulness") for i in range(20)),
        *((f"small {i}", "rejected", "too_small") for i in range(20)),
        *((f"again {i}", "not_selected", "duplicate") for i in range(20)),
        ("kept 0", "not_selected", "low_colorfulness"),
        ("", "rejected", "no_caption"),
        ("long", "rejected", "caption_too_long"),
    ]
    (one, words), (two, _) = (
        sets.held_out(photos(tmp_path / str(n), order), count=30, seed=0)
        for n, order in enumerate((outcomes, outcomes[::-1]))
    )
    assert one == two, "not the order of the photographs"
    texts = {prompt.text for prompt in one}
    assert len(texts) == 30
    assert texts <= {text for text, *_ in outcomes[5:45]}
    assert words == "30 captions of the 40 that are in no pair, drawn by the seed"
    other, _ = sets.held_out(photos(tmp_path / "again", outcomes), count=30, seed=1)
    assert {prompt.text for prompt in other} != texts
    more, _ = sets.held_out(photos(tmp_path / "more", outcomes), count=10, seed=0)
    assert more == one[:10]


def test_prompts_of_labels_that_were_dropped_are_not_drawn(tmp_path):
    ledger = Ledger(str(tmp_path / "labels"), {})
    outcomes = [
        *((f"kept {i}", "pair", None) for i in range(5)),
        *((f"tie {i}", "not_selected", "tie") for i in range(10)),
        *((f"gone {i}", "dropped", "missing_file") for i in range(10)),
        ("a prompt that was cut o", "dropped", "caption_too_long"),
        ("kept 1", "not_selected", "tie"),
    ]
    rows: list[dict[str, object]] = [
        {"id": str(i), "prompt": prompt, "status": status, "reason": reason}
        for i, (prompt, status, reason) in enumerate(outcomes)
    ]
    fill(ledger, rows, OUTCOMES["labelled"])
    prompts, words = sets.held_out(ledger, count=100, seed=0)
    # As a person would write it.
    texts = sorted((f"tie {i}" for i in range(10)), key=lambda t: seed_of(0, "held-out", t))
    assert [prompt.text for prompt in prompts] == texts
    assert words == "10 prompts of the 10 that are in no pair, drawn by the seed"


def test_without_captions_to_take_plain_prompts_are(tmp_path):
    few: list[tuple[str, str, str | None]] = [("a", "pair", None), ("b", "rejected", "too_small")]
    prompts, words = sets.held_out(photos(tmp_path, few), count=100, seed=0)
    assert [prompt.text for prompt in prompts] == list(PLAIN)
    assert len(set(PLAIN)) == len(PLAIN) >= 24
    assert words.startswith(f"{len(PLAIN)} plain prompts that come with raypref, since 1 captions")
