"""What rewards prefer besides quality, without labels: from candidates' scores and looks.

A hole's candidates share photograph, hole and prompt. So a reward that ranks them by brightness
prefers bright pictures, whatever they show (after Follow-Your-Preference, arXiv 2509.23082, which
describes such biases in words). Every interval resamples holes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd

from raypref.evaluate import statistics
from raypref.evaluate.labels import plain_label
from raypref.evaluate.tables import markdown_row

Looks: TypeAlias = Mapping[tuple[str, str], np.ndarray]  # (where, property) -> values

FEWEST = 3  # candidates; the ranks of two correlate by 1 or -1, whatever they are
WITHIN = ("reward", "where", "property", "spearman", "low", "high", "n_holes", "n_left_out")
TILT = ("where", "property", "tilt", "low", "high", "spread", "n_pairs")
RULE = "rule"  # what the rule's own score is called among the rewards


def rank_correlations(first_hc: np.ndarray, second_hc: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation within each hole; ties have their mean rank.

    Args:
        first_hc: a value per hole and candidate; NaN where there is none.
        second_hc: of the same shape.

    Returns:
        [holes], -1..1. NaN where fewer than `FEWEST` candidates have both values, and where either
        value is the same for all of them: there is nothing to rank.
    """
    known_hc = np.isfinite(first_hc) & np.isfinite(second_hc)
    ranks = []
    for values_hc in (first_hc, second_hc):
        own = pd.DataFrame(np.where(known_hc, values_hc, math.nan)).rank(axis=1).to_numpy()
        means_h1 = np.nansum(own, axis=1, keepdims=True) / known_hc.sum(1, keepdims=True).clip(1)
        ranks.append(np.where(known_hc, own - means_h1, 0.0))
    first, second = ranks
    sizes_h = np.sqrt((first**2).sum(1) * (second**2).sum(1))
    usable_h = (known_hc.sum(1) >= FEWEST) & (sizes_h > 0)
    products_h = (first * second).sum(1)
    return np.divide(products_h, sizes_h, out=np.full(len(sizes_h), math.nan), where=usable_h)


def within_holes(
    scores: Mapping[str, np.ndarray], looks: Looks, *, resamples: int = 2000
) -> pd.DataFrame:
    """How far each reward ranks the candidates of a hole by their looks.

    Args:
        scores: by reward, [holes, candidates]; NaN where there is none.
        looks: by where they are measured and property, of the same shape.
        resamples: bootstrap samples behind each interval.

    Returns:
        One row per reward and property with the columns `WITHIN`: `spearman` is the mean over
        holes of `rank_correlations`, NaN where no hole has one. `n_left_out` holes have none.
    """
    rows: list[tuple[object, ...]] = []
    for reward, scores_hc in scores.items():
        for (where, prop), values_hc in looks.items():
            found_h = rank_correlations(scores_hc, values_hc)
            left_out = int(np.isnan(found_h).sum())
            mean = _mean_interval(found_h, resamples)
            rows.append((reward, where, prop, *mean, len(found_h) - left_out, left_out))
    return pd.DataFrame(rows, columns=list(WITHIN))


def tilt(looks: Looks, chosen: Looks, rejected: Looks, *, resamples: int = 2000) -> pd.DataFrame:
    """How much more of a property the chosen images have than the rejected ones.

    Args:
        looks: of the candidates, by where they are measured and property, [holes, candidates].
        chosen: of each hole's chosen image, [holes]; NaN where a hole has no pair.
        rejected: the same of the rejected image.
        resamples: bootstrap samples behind each interval.

    Returns:
        One row per property with the columns `TILT`: the mean of chosen minus rejected in units of
        `spread`, the property's standard deviation among a hole's candidates (pooled over holes).
        NaN where the candidates do not differ.
    """
    rows: list[tuple[object, ...]] = []
    for (where, prop), values_hc in looks.items():
        spread = _spread(values_hc)
        found_h = chosen[where, prop] - rejected[where, prop]
        found_h = found_h / spread if spread > 0 else np.full(len(found_h), math.nan)
        pairs = int(np.isfinite(found_h).sum())
        rows.append((where, prop, *_mean_interval(found_h, resamples), spread, pairs))
    return pd.DataFrame(rows, columns=list(TILT))


def _spread(values_hc: np.ndarray) -> float:
    """Standard deviation within a hole, pooled over holes; NaN where no hole has two candidates."""
    known_hc = np.isfinite(values_hc)
    counts_h = known_hc.sum(1)
    means_h1 = (np.nansum(values_hc, axis=1) / counts_h.clip(1))[:, None]
    squares = float((np.where(known_hc, values_hc - means_h1, 0.0) ** 2).sum())
    degrees = int((counts_h - 1).clip(0).sum())
    return math.sqrt(squares / degrees) if degrees else math.nan


def _mean_interval(values_h: np.ndarray, resamples: int) -> tuple[float, float, float]:
    known = values_h[np.isfinite(values_h)]
    return statistics.interval(known, resamples=resamples) if len(known) else statistics.NAN


def reward_text(reward: str, rule: str) -> str:
    """A reward's name for people; the rule's own score by the rule's name."""
    return f"rule: {rule}" if reward == RULE else plain_label(reward)


def cell_text(value: float, low: float, high: float) -> str:
    """A value with its interval, `+0.41 [0.30, 0.52]`."""
    if math.isnan(value):
        return "–"
    shown = f"{value:+z.2f}"
    return shown if math.isnan(low) else f"{shown} [{low:z.2f}, {high:z.2f}]"


def bias_markdown(found: pd.DataFrame, tilted: pd.DataFrame, *, rule: str) -> str:
    """Both tables as Markdown, one grid per place where the looks were measured.

    Args:
        found: of `within_holes`.
        tilted: of `tilt`.
        rule: by which the pairs were chosen.
    """
    parts = []
    for where in dict.fromkeys(tilted["where"]):
        rows = tilted[tilted["where"] == where]
        names = [str(name) for name in rows["property"]]
        own = found[found["where"] == where]
        lines = [markdown_row([f"in the {where}", *names])]
        lines.append(markdown_row(["---"] * (1 + len(names))))
        for reward, part in own.groupby("reward", sort=False):
            lines.append(_line(reward_text(str(reward), rule), part, "spearman"))
        lines.append(_line("tilt: chosen minus rejected", rows, "tilt"))
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, EXPLAINED]) + "\n"


EXPLAINED = (
    "Of each reward: Spearman's rank correlation of score and property among the candidates of one "
    "hole or prompt, mean over holes; above 0 the reward prefers more. Tilt: property of the "
    "chosen image minus that of the rejected one, in units of the property's standard deviation "
    "among a hole's candidates. 95% intervals over holes."
)


def _line(head: str, rows: pd.DataFrame, column: str) -> str:
    values: Sequence[tuple[float, float, float]] = rows[[column, "low", "high"]].to_numpy().tolist()
    return markdown_row([head, *(cell_text(*each) for each in values)])
