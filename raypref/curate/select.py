"""Which photographs go on: above the mean colorfulness, a visible gap, the best K.

Pure functions on tables of facts; no pixels (method: section 1, paper section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from raypref.config import Section, setting
from raypref.rows import Row


class SelectConfig(Section):
    """The two filters on scores."""

    min_gap: float = setting(
        0.02, "smallest PickScore gap between photograph and twin, on the scale of about 20"
    )
    top_k: int = setting(512, "pairs taken, best photographs first", ge=1)


def drop_duplicates(photos: Sequence[Row]) -> dict[str, str]:
    """Ids of repeated content (same bytes, same caption) to the id kept, the smallest."""
    first: dict[str, str] = {}
    repeated = {}
    for photo in sorted(photos, key=lambda photo: photo["id"]):
        kept = first.setdefault(photo["key"], photo["id"])
        if kept != photo["id"]:
            repeated[photo["id"]] = kept
    return repeated


def mean_colorfulness(photos: Sequence[Row]) -> float:
    """The threshold of the color filter: the mean over the set, order-independent to the bit."""
    return math.fsum(photo["colorfulness"] for photo in photos) / max(len(photos), 1)


def rank_pairs(candidates: Sequence[Row], config: SelectConfig) -> Mapping[str, int | str]:
    """Rank 0 .. K-1 for each selected id, or the reason why it was not selected.

    A pair passes when the photograph scores more than `min_gap` above its twin; of those the
    `top_k` with the best photograph are taken, ties in order of id, so the result is one set.
    """
    outcome: dict[str, int | str] = {}
    passed = []
    for row in candidates:
        if row["pickscore_chosen"] - row["pickscore_rejected"] > config.min_gap:
            passed.append(row)
        else:
            outcome[row["id"]] = "negligible_degradation"
    passed.sort(key=lambda row: (-row["pickscore_chosen"], row["id"]))
    for rank, row in enumerate(passed):
        outcome[row["id"]] = rank if rank < config.top_k else "beyond_top_k"
    return outcome
