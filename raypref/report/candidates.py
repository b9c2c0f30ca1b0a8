"""What the page shows of candidates: funnel, pairs, all candidates, bias of the rewards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raypref.core.ledger import Ledger, join
from raypref.core.rows import Row
from raypref.pairs.choice import RANDOM
from raypref.pairs.config import PairingConfig
from raypref.pairs.kinds import kind_of
from raypref.pairs.words import how_chosen
from raypref.report.bias import bias_of_rewards
from raypref.report.candidate_pages import shown_in, write_candidate_pages
from raypref.report.candidate_rows import Candidates
from raypref.report.gallery import pictured
from raypref.report.photographs import (
    colorfulness_histogram,
    dropped_photographs,
    mean_colorfulness,
    photograph_funnel,
)
from raypref.report.views import InputsView, PictureKind

CANDIDATES = "candidates"  # the kind of pairs
MOST_PAIRS = 5000  # shown; their candidates lie beside the page
PICTURES = (
    PictureKind("region", "hole", "Photograph with its hole tinted"),
    PictureKind("chosen", "chosen", "Chosen"),
    PictureKind("rejected", "rejected", "Rejected"),
)
FACTS = ("key", "prompt", "candidate_chosen", "candidate_rejected", "rule")
NUMBERS = ("score_chosen", "score_rejected", "gap")


def candidate_inputs(folder: str, config: PairingConfig, pairs: Ledger) -> InputsView:
    """All of it, of complete pairs.

    Args:
        folder: the run's.
        config: the settings that the pairs were made by.
        pairs: the complete pairs.
    """
    filters = kind_of(config).filters
    colors = colorfulness_histogram(folder)
    report = join(folder, "report")
    candidates = Candidates(folder)
    count = pairs.count()
    parts = _shown_parts(pairs)
    facts = _facts(pairs, parts)
    holes = bool(facts) and _has_holes(pairs)
    shown = [own.kind for own in PICTURES if holes or own.kind != "region"]
    ranks = {row["key"]: row["rank"] for row in facts}
    return InputsView(
        funnel=photograph_funnel(folder, filters),
        histograms=colors,
        dropped=dropped_photographs(folder, config, filters, mean=mean_colorfulness(colors)),
        pairs=pictured(
            pairs,
            facts,
            _images(pairs, parts, ranks, holes),
            report=report,
            kinds=shown,
            name=shown_in(pairs),
        ),
        pairs_are=_are(facts, config, len(candidates.numbers), count, holes=holes),
        pictures=PICTURES,
        candidate_pages=write_candidate_pages(
            candidates, pairs, facts, how=how_chosen(config.choice), report=report
        ),
        bias=bias_of_rewards(folder, candidates, pairs),
    )


def _shown_parts(pairs: Ledger) -> list[str]:
    """The parts that hold the shown pairs: the first ones, which are in the drawn order."""
    found, count = [], 0
    for part in pairs.parts():
        if count >= MOST_PAIRS:
            break
        found.append(part)
        count += pairs.part(part, ["id"]).num_rows
    return found


def _facts(pairs: Ledger, parts: Sequence[str]) -> list[dict[str, Any]]:
    """The shown pairs, in their order: it stays when the candidates are deleted."""
    rows = [row for part in parts for row in pairs.part(part, [*FACTS, *NUMBERS]).to_pylist()]
    return [
        {
            **{name: row[name] for name in FACTS},
            "rank": rank,
            "numbers": {name: row[name] for name in NUMBERS},
            "notes": {
                side: f"{_name(row[f'candidate_{side}'])}, score {_score(row[f'score_{side}'])}"
                for side in ("chosen", "rejected")
            },
        }
        for rank, row in enumerate(rows[:MOST_PAIRS])
    ]


def _name(number: int) -> str:
    return "photograph" if number < 0 else f"no. {number}"


def _score(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3g}"


def _has_holes(pairs: Ledger) -> bool:
    return next(pairs.rows(["mask"], batch_size=1))["mask"] is not None


def _images(
    pairs: Ledger, parts: Sequence[str], ranks: Mapping[str, int], holes: bool
) -> Iterator[Row]:
    """Images of the shown pairs, a part in memory at a time."""
    columns = ["key", "chosen", "rejected", *(["source", "mask"] if holes else [])]
    for part in parts:
        for row in pairs.part(part, columns).to_pylist():
            if row["key"] in ranks:
                yield {"rank": ranks[row["key"]], **row}


def _are(
    facts: list[dict[str, Any]], config: PairingConfig, numbers: int, count: int, *, holes: bool
) -> str:
    if not facts:
        return ""
    made = "paintings of one hole" if holes else "images of one prompt"
    score = "number" if config.choice.by == RANDOM else "number and its score by the rule"
    said = [
        f"Of {numbers} candidates, {made}: {how_chosen(config.choice)} Beside each stands its "
        f"{score}."
    ]
    if holes:
        said.insert(0, "Left the photograph with its hole tinted.")
    if any(row["candidate_chosen"] < 0 for row in facts):
        said.append("A photograph has no score.")
    if len(facts) < count:
        said.append(f"Shown are {len(facts):,} of {count:,} in the order in which they were drawn.")
    return " ".join([*said, "A click enlarges."])
