"""Which statements hold in this run, the paper's and others, each with the test behind it.

A statement is a contrast: a weighted sum of rows' means that it says is above 0 (below, where less
is better). "Both stages beat one" is `both - stage1`; "less is gained from 512 to 1024 than from
256 to 512" is `2 n512 - n256 - n1024`. Some claims have several: "hacked" is the
own reward up and a judge down. "Comparable" is another test: the contrast is inside a margin.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from raypref.ablate.results import Results
from raypref.ablate.table import Claim, Contrast
from raypref.evaluate import statistics
from raypref.evaluate.labels import digits as digits_of
from raypref.evaluate.labels import (
    gain_text,
    lower_is_better,
    metric_names,
    neutral,
    ordered,
    plain_label,
)

NOT_TESTED = "not tested: a row is missing"
TESTED = (
    "Tested: the stated difference of means against 0, 95% interval of a paired bootstrap over "
    "prompts. Confirmed: the interval is above 0; contradicted: below; not decided: it includes 0. "
    "Intervals do not cover the spread between trainings: see the seeds."
)
COMPARABLE = (
    "Equivalent, not worse: two one-sided tests, or one, at 5% by the same bootstrap, with the 90% "
    "interval shown. Confirmed: the difference is inside the margin; contradicted: outside."
)
LEVEL = 0.05  # of one-sided tests against a margin, and of Holm's correction
FINEST = 4  # decimals of a difference that the metric's own number of decimals would hide


@dataclass(frozen=True)
class Verdict:
    """How a claim fares by one metric.

    Attributes:
        value: the contrast, turned so that more is what the claim says.
        low: of its 95% interval over prompts.
        high: of its 95% interval over prompts.
        seeds: training seeds in which it is above 0, and how many there are.
        paper: the same contrast of the published means, NaN where they are not.
        of: the contrast in words, where the claim has several.
        margin: inside which rows are comparable, NaN where the claim is not of that kind.
        test: as `Contrast.test`.
        p: of the test, by a normal approximation; NaN where the interval is.
        inside: whether the margin holds (1), is overstepped (-1), or neither is shown (0).
    """

    metric: str
    value: float
    low: float
    high: float
    seeds: tuple[int, int]
    paper: float
    of: str = ""
    margin: float = math.nan
    test: str = "above"
    p: float = math.nan
    inside: int = 0

    @property
    def outcome(self) -> str:
        """Whether the interval is on one side of 0, or of a margin."""
        if self.test != "above":
            return {1: "confirmed", -1: "contradicted", 0: "not decided"}[self.inside]
        if math.isnan(self.low) or self.low <= 0 <= self.high:
            return "not decided"
        return "confirmed" if self.low > 0 else "contradicted"


class Tested(NamedTuple):
    """A claim with the verdicts of each of its contrasts, one per metric."""

    claim: Claim
    parts: list[list[Verdict]]

    @property
    def verdicts(self) -> list[Verdict]:
        """Those of all contrasts."""
        return [verdict for part in self.parts for verdict in part]


def verdicts(results: Results, claim: Contrast, *, resamples: int, of: str = "") -> list[Verdict]:
    """Test a contrast by every metric that all of its rows have, of prompts that they share.

    The contrast's interval is a paired bootstrap: all rows are drawn with the same prompts.
    """
    scores = results.scores.dropna(subset=["score"])
    found = []
    metrics = ordered(sorted(scores["metric"].unique()), [*results.table.columns, *metric_names()])
    for metric in metrics:
        if metric not in claim.metrics if claim.metrics else neutral(metric):
            continue
        part = scores[scores["metric"] == metric]
        if (set(claim.contrast) | set(claim.of)) - set(part["model"]):
            continue
        sign = -1.0 if lower_is_better(metric) else 1.0
        weights, of_weights = (
            {name: sign * weight for name, weight in contrast.items()}
            for contrast in (claim.contrast, claim.of)
        )
        if claim.margin and metric not in claim.margin:
            continue
        (values_r, of_r), n_prompts = _contrasts(part, (weights, of_weights), resamples=resamples)
        if not n_prompts:
            continue
        paper = sum(
            weight * results.published.get((name, metric), math.nan)
            for name, weight in weights.items()
        )
        seeds = _by_seed(part, weights, failed=results.problems)
        if claim.test == "above":
            low, high = statistics.percentiles(values_r[1:], n_prompts)
            above = sum(v > 0 for v in seeds), len(seeds)
            p = _p(values_r, n_prompts, sides=2)
            found.append(Verdict(metric, values_r[0], low, high, above, paper, of, p=p))
            continue
        margin_r = claim.share * of_r if claim.of else np.full(len(values_r), claim.margin[metric])
        verdict = _against_margin(claim.test, values_r, margin_r, n_prompts)
        near = sum(
            v > -margin_r[0] and (v < margin_r[0] or claim.test == "not_worse") for v in seeds
        )
        found.append(replace(verdict, metric=metric, seeds=(near, len(seeds)), paper=paper, of=of))
    return found


def _against_margin(
    test: str, values_r: np.ndarray, margin_r: np.ndarray, n_prompts: int
) -> Verdict:
    """Two one-sided tests, or one, of a difference against a margin (Schuirmann 1987).

    Args:
        test: "equivalent" or "not_worse".
        values_r: the difference, then of each draw of prompts, [1 + resamples].
        margin_r: the margin, which may be estimated from the same prompts, [1 + resamples].
        n_prompts: that were drawn from.
    """
    sides = [margin_r + values_r] + ([margin_r - values_r] if test == "equivalent" else [])
    low = high = p = math.nan
    inside = 0
    if n_prompts > 1:
        low, high = (float(q) for q in np.quantile(values_r[1:], [LEVEL, 1 - LEVEL]))
        if all(np.quantile(side[1:], LEVEL) > 0 for side in sides):
            inside = 1
        elif margin_r[0] > 0 and any(np.quantile(side[1:], 1 - LEVEL) < 0 for side in sides):
            inside = -1
        p = max(_p(side, n_prompts, sides=1) for side in sides)
    margin = float(margin_r[0])
    return Verdict(
        "", values_r[0], low, high, (0, 0), math.nan, "", margin, test, p=p, inside=inside
    )


def _p(values_r: np.ndarray, n_prompts: int, *, sides: int) -> float:
    """How likely chance puts a value so far above 0, or so far from it, by its bootstrap's SD."""
    if n_prompts < 2:
        return math.nan
    spread, value = float(values_r[1:].std()), float(values_r[0])
    if not spread:
        return 1.0 if value == 0 or (sides == 1 and value < 0) else 0.0
    z = abs(value) / spread if sides == 2 else value / spread
    return sides * 0.5 * math.erfc(z / math.sqrt(2))


def _contrasts(
    part: pd.DataFrame, several: Sequence[Mapping[str, float]], *, resamples: int
) -> tuple[np.ndarray, int]:
    """Contrasts as they are, then of each draw of prompts that all their rows share.

    Returns:
        [contrasts, 1 + resamples], zeros for one without rows; number of prompts.
    """
    own = part[part["model"].isin({name for weights in several for name in weights})]
    # The text too: rows may have other prompts of the same numbers.
    grouped = own.groupby(["model", "prompt_id", "prompt"])["score"]
    sums, counts = grouped.sum().unstack("model"), grouped.count().unstack("model")
    shared = sums.dropna().index
    if shared.empty:
        return np.empty((len(several), 0)), 0
    drawn_rn = statistics.draws(len(shared), resamples, seed=0).astype(np.float64)
    drawn_rn = np.concatenate([np.ones((1, len(shared))), drawn_rn])
    totals = np.zeros((len(several), len(drawn_rn)))
    for total_r, weights in zip(totals, several, strict=True):
        for name, weight in weights.items():
            sums_n = sums.loc[shared, name].to_numpy(np.float64)
            counts_n = counts.loc[shared, name].to_numpy(np.float64)
            total_r += weight * (drawn_rn @ sums_n) / (drawn_rn @ counts_n)
    return totals, len(shared)


def _by_seed(
    part: pd.DataFrame, weights: Mapping[str, float], *, failed: Collection[str]
) -> list[float]:
    """The contrast per training seed.

    A row that was trained with one seed is reused for every seed, unless its other seeds failed.
    """
    means = part.groupby(["model", "training_seed"])["score"].mean()
    values = []
    for seed in sorted(part["training_seed"].unique()):
        own = {name: means[name] for name in weights}
        if all(seed in m.index or (len(m) == 1 and n not in failed) for n, m in own.items()):
            values.append(
                sum(w * float(own[n].get(seed, own[n].iloc[0])) for n, w in weights.items())
            )
    return values


def tested(results: Results, *, resamples: int) -> list[Tested]:
    """The table's claims about rows of the base's family, each with its verdicts."""
    found = []
    for claim in results.table.claims:
        rows = {name for part in claim.parts for name in (*part.contrast, *part.of)}
        if rows <= set(results.labels):
            said = [_in_words(part.contrast) if claim.and_ else "" for part in claim.parts]
            parts = [
                verdicts(results, part, resamples=resamples, of=of)
                for part, of in zip(claim.parts, said, strict=True)
            ]
            found.append(Tested(claim, parts))
    return found


def _in_words(contrast: Mapping[str, float]) -> str:
    """`bright - base`, `2 n512 - n256`."""
    terms = [f"{abs(w):g} {name}" if abs(w) != 1 else name for name, w in contrast.items()]
    signs = ["-" if weight < 0 else "+" for weight in contrast.values()]
    text = " ".join(f"{sign} {term}" for sign, term in zip(signs, terms, strict=True))
    return text.removeprefix("+ ")


def what_moved(results: Results, found: Sequence[Tested]) -> str:
    """Which of the table's claims hold in this run, each with the test behind it, as Markdown."""
    if not found:
        return ""
    lines = ["### What moved", ""]
    for each in found:
        lines.append(f"- {each.claim.says}: {summary_of(each, results.table.columns)}")
        lines += [f"  - {verdict_text(verdict, paper=results.paper)}" for verdict in each.verdicts]
    return "\n".join([*lines, "", how_tested(found), ""])


def how_tested(found: Sequence[Tested]) -> str:
    """What the outcomes mean, and what is left where all tests are taken together."""
    several = [verdict for each in found for verdict in each.verdicts if not math.isnan(verdict.p)]
    said = [TESTED]
    if any(verdict.test != "above" for verdict in several):
        said.append(COMPARABLE)
    if len(several) > 1:
        confirmed = [v for v in several if v.outcome == "confirmed"]
        said.append(
            f"{len(several)} tests were made, none of them corrected for the others. Holm's "
            f"correction leaves {holm(several)} of the {len(confirmed)} confirmed."
        )
    return " ".join(said)


def holm(verdicts: Sequence[Verdict]) -> int:
    """How many of the confirmed stay at a level of 5% for all tests together (Holm 1979)."""
    left = 0
    for place, verdict in enumerate(sorted(verdicts, key=lambda v: v.p)):
        if verdict.p > LEVEL / (len(verdicts) - place):
            break
        left += verdict.outcome == "confirmed"
    return left


def summary_of(tested: Tested, columns: Collection[str]) -> str:
    """How often a claim holds; by the columns of the paper's table apart from other metrics.

    One of several contrasts holds where all of them do, by all of their metrics.
    """
    found = tested.verdicts
    if not all(tested.parts):
        return NOT_TESTED
    if len(tested.parts) > 1:
        counts = Counter(verdict.outcome for verdict in found)
        for outcome in ("contradicted", "not decided", "confirmed"):
            if counts[outcome]:
                return f"{outcome} ({_counts(found)} of {len(found)} parts)"
    of_paper = [verdict for verdict in found if verdict.metric in columns]
    others = [verdict for verdict in found if verdict.metric not in columns]
    if not columns or not others:
        return f"{_counts(found)} of {len(found)} metrics"
    if not of_paper:
        return f"{_counts(others)} of {len(others)} metrics, none of them the paper's"
    return (
        f"paper's metrics: {_counts(of_paper)} of {len(of_paper)}; "
        f"others: {_counts(others)} of {len(others)}"
    )


def _counts(found: Sequence[Verdict]) -> str:
    counts = Counter(verdict.outcome for verdict in found)
    against = f", contradicted by {counts['contradicted']}" if counts["contradicted"] else ""
    return f"confirmed by {counts['confirmed']}{against}"


def verdict_text(verdict: Verdict, *, paper: str) -> str:
    """A verdict in one line; `paper` is what the published value is called."""
    digits = _digits(verdict)
    name = ", ".join(filter(None, [verdict.of, plain_label(verdict.metric)]))
    parts = [f"{name}: {verdict.outcome}, {verdict.value:+z.{digits}f}"]
    if not math.isnan(verdict.low):
        parts.append(f"[{verdict.low:z.{digits}f}, {verdict.high:z.{digits}f}]")
    if not math.isnan(verdict.margin):
        sign = "±" if verdict.test == "equivalent" else "-"
        parts.append(f"for a margin of {sign}{verdict.margin:.{digits}f}")
    if verdict.seeds[1] > 1:
        parts.append(f"in {verdict.seeds[0]} of {verdict.seeds[1]} seeds")
    if not math.isnan(verdict.paper):
        parts.append(f"({paper} {gain_text(verdict.metric, verdict.paper)})")
    return " ".join(parts)


def _digits(verdict: Verdict) -> int:
    """Decimals with which a decided claim has no bound that reads as 0, and no other reads as 0."""
    shown = digits_of(verdict.metric)
    bounds = [abs(verdict.low), abs(verdict.high)]
    needed = max(bounds) if verdict.outcome == "not decided" else min(bounds)
    while shown < FINEST and round(needed, shown) == 0:
        shown += 1
    return shown
