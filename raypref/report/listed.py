"""The list that the gallery's script shows, sorts and searches: every pair, as plain values."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from raypref.report.views import PairView, PictureKind, ReportData

PAGE_OF_PAIRS = 24  # of the gallery, and of the candidates beside it
LONGEST_CAPTION = 500  # characters in the gallery; thousands of captions weigh on the page


class _Number(NamedTuple):
    """A number of the pairs in the gallery."""

    key: str
    label: str
    digits: int
    shown: bool = True  # under the images; else it only sorts
    sorts_by: str = ""  # the words of the menu, where they are not the label


TWIN_NUMBERS = (
    _Number("pickscore", "PickScore", 2, shown=False, sorts_by="PickScore of the chosen image"),
    _Number("gap", "PickScore gap", 2),
    _Number("colorfulness", "colorfulness", 0),
)
LABEL_NUMBERS = (
    _Number("gap", "gap", 2),
    _Number("gap_std", "± ", 2),
    _Number("vote_share", "vote share", 2),
    _Number("confidence", "confidence", 2),
    _Number("score", "score", 2),
    _Number("flipped", "turned round", 0),
    # Of candidates; the scores themselves stand beside the images.
    _Number("score_chosen", "", 2, shown=False, sorts_by="score of the chosen image"),
    _Number("score_rejected", "", 2, shown=False, sorts_by="score of the rejected image"),
)


def listed(data: ReportData) -> dict[str, Any] | None:
    """What the script shows, sorts and searches: every pair as one short list."""
    if not data.pairs:
        return None
    first = data.pairs[0]
    kinds = [kind for kind in data.pictures if getattr(first, kind.kind) is not None]
    if len(kinds) == 1:  # single images: neither chosen nor rejected
        kinds = [PictureKind("chosen", "image", "Image")]
    facts = [_numbers(pair) for pair in data.pairs]
    known = LABEL_NUMBERS if first.numbers else TWIN_NUMBERS
    numbers = [own for own in known if any(fact.get(own.key) is not None for fact in facts)]
    return {
        "size": PAGE_OF_PAIRS,
        "side": first.chosen.width,
        "pixelated": first.chosen.pixelated,
        "made": data.terms.made,
        "order": "number" if first.numbers else "rank",
        "order_is": _order(first),
        "kinds": kinds,
        "candidates": data.candidate_pages,
        "numbers": [own._asdict() for own in numbers],
        # prompt, rank, numbers, a note per picture, then small and full of each
        "pairs": [
            [
                _shortened(pair.prompt),
                pair.rank,
                [fact.get(own.key) for own in numbers],
                [_note(pair, kind) for kind, *_ in kinds],
                *(file for kind, *_ in kinds for file in getattr(pair, kind)[:2]),
            ]
            for pair, fact in zip(data.pairs, facts, strict=True)
        ],
    }


def _numbers(pair: PairView) -> dict[str, float | None]:
    if pair.numbers:
        return {key: None if n is None else _rounded(n) for key, n in pair.numbers.items()}
    gap = pair.pickscore_chosen - pair.pickscore_rejected
    values = {"pickscore": pair.pickscore_chosen, "gap": gap, "colorfulness": pair.colorfulness}
    return {key: _rounded(value) for key, value in values.items()}


def _order(first: PairView) -> str:
    if first.notes:
        return "number"
    return "number in the source" if first.numbers else "rank (1: taken first)"


def _note(pair: PairView, kind: str) -> str:
    """What stands beside a picture's caption: its score, its generator, or its number."""
    if pair.notes:
        return pair.notes.get(kind, "")
    if pair.numbers:
        return {"chosen": pair.chosen_model, "rejected": pair.rejected_model}.get(kind, "")
    scores = {"chosen": pair.pickscore_chosen, "rejected": pair.pickscore_rejected}
    return number_text(scores[kind], 2) if kind in scores else ""


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_CAPTION else text[: LONGEST_CAPTION - 1] + "…"


def _rounded(value: float) -> float | None:
    """JSON knows no NaN."""
    return round(value, 4) if math.isfinite(value) else None


def number_text(value: float, digits: int) -> str:
    """A number with so many decimals; a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:z.{digits}f}"
