"""A reward's own accuracy: whether it prefers what people prefer, and what else it prefers.

Numbers of labelled pairs of images: pairwise accuracy, agreement between rewards, and the bias of
each reward towards brightness, contrast, saturation and composition, measured against the people's
own (after Follow-Your-Preference, which finds such biases where rewards are hacked).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from raypref.evaluate import statistics
from raypref.judge.pairs import PROPERTIES

ACCURACY = ("reward", "accuracy", "low", "high", "chance", "tie_gap", "n_pairs", "n_unscored")
BIAS = ("reward", "property", "share", "people", "bias", "low", "high", "n_pairs")


def accuracy(pairs: pd.DataFrame, rewards: Sequence[str], *, resamples: int = 2000) -> pd.DataFrame:
    """How often each reward prefers what people preferred.

    Where the labels hold ties (Pick-a-Pic), a reward may say "tie" too, by a gap smaller than
    `tie_gap`. A pair then counts 1 where reward and people agree, 1/2 where exactly one of them
    says tie, else 0 (Kirstain et al. 2023, section 3). The gap is the one that suits the other
    half of the prompts best, so that it is not fitted to what it is tested on. HPD and
    ImageRewardDB count no equal ranks: there a pair counts 1 or 0, and equal scores 1/2.

    Args:
        pairs: one row per pair: `prompt`, `label` (1 the first is preferred, 0 the second, 0.5 tie)
            and for each reward its `<reward>` gap, score of the first minus that of the second;
            NaN where an image got no score.
        rewards: whose columns are read.
        resamples: bootstrap samples; prompts are resampled.

    Returns:
        One row a reward with the columns `ACCURACY`. `chance` is what a judge gets that knows
        nothing: 1/2, or by always saying tie (1 + share of ties) / 2. `tie_gap` is the mean of
        both halves', NaN without ties. Pairs without a score are counted and left out.
    """
    rows = []
    for reward in rewards:
        own = pairs[pairs[reward].notna()]
        missing = len(pairs) - len(own)
        if own.empty:
            rows.append((reward, *statistics.NAN, math.nan, math.nan, 0, missing))
            continue
        gaps, labels = own[reward].to_numpy(np.float64), own["label"].to_numpy(np.float64)
        prompts = own["prompt"].factorize()[0]
        tie_gaps = np.zeros(len(own))
        if (labels == 0.5).any():
            half = prompts % 2 == 0
            for test, fit in ((half, ~half), (~half, half)):
                chosen = fit if fit.any() else test
                tie_gaps[test] = best_tie_gap(gaps[chosen], labels[chosen])
        points = _points(gaps, labels, tie_gaps)
        mean, low, high = _mean_over(prompts, points, resamples)
        shown = float(tie_gaps.mean()) if (labels == 0.5).any() else math.nan
        chance = (1 + float((labels == 0.5).mean())) / 2
        rows.append((reward, mean, low, high, chance, shown, len(own), missing))
    return pd.DataFrame(rows, columns=list(ACCURACY))


def best_tie_gap(gaps: np.ndarray, labels: np.ndarray) -> float:
    """The gap below which "tie" is said, for the highest accuracy on these pairs.

    Args:
        gaps: score of the first minus that of the second, [n].
        labels: 1, 0 or 0.5, [n].
    """
    candidates = np.concatenate([[0.0], np.quantile(np.abs(gaps), np.linspace(0.01, 0.99, 99))])
    means = [_points(gaps, labels, np.full(len(gaps), gap)).mean() for gap in candidates]
    return float(candidates[int(np.argmax(means))])


def agreement(pairs: pd.DataFrame, rewards: Sequence[str]) -> pd.DataFrame:
    """How far two rewards rank the pairs alike.

    Args:
        pairs: as for `accuracy`.
        rewards: whose columns are read; "people" is added.

    Returns:
        One row for two judges: `first`, `second`, `percent` (of pairs with the same winner, among
        those where both name one) and `kendall` (tau-b over the pairs, ties included), `n_pairs`.
    """
    signs = {reward: np.sign(pairs[reward].to_numpy(np.float64)) for reward in rewards}
    signs["people"] = np.sign(pairs["label"].to_numpy(np.float64) - 0.5)
    names = list(signs)
    rows = []
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            product = signs[first] * signs[second]
            known = np.isfinite(product)
            named = known & (product != 0)
            percent = 100 * float((product[named] > 0).mean()) if named.any() else math.nan
            sizes = [float((signs[name][known] ** 2).sum()) for name in (first, second)]
            tau = product[known].sum() / math.sqrt(sizes[0] * sizes[1]) if all(sizes) else math.nan
            rows.append((first, second, percent, float(tau), int(known.sum())))
    return pd.DataFrame(rows, columns=["first", "second", "percent", "kendall", "n_pairs"])


def bias(pairs: pd.DataFrame, rewards: Sequence[str], *, resamples: int = 2000) -> pd.DataFrame:
    """How much more often than people a reward prefers the brighter (...) of two images.

    Args:
        pairs: as for `accuracy`, and for each of `PROPERTIES` its gap, first minus second.
        rewards: whose columns are read.
        resamples: bootstrap samples; prompts are resampled.

    Returns:
        One row a reward and property with the columns `BIAS`: `share` of pairs in which the
        reward prefers the image with more of it, the `people`'s share of the same pairs, and
        `bias`, the difference with its interval. Ties of the one or the other count half.
    """
    rows = []
    people = np.sign(pairs["label"].to_numpy(np.float64) - 0.5)
    for reward in rewards:
        own = np.sign(pairs[reward].to_numpy(np.float64))
        for prop in PROPERTIES:
            more = np.sign(pairs[prop].to_numpy(np.float64))
            known = np.isfinite(own) & np.isfinite(more) & (more != 0)
            if not known.any():
                continue
            share, theirs = ((1 + who[known] * more[known]) / 2 for who in (own, people))
            prompts = pairs.loc[known, "prompt"].factorize()[0]
            mean, low, high = _mean_over(prompts, share - theirs, resamples)
            shares = (float(share.mean()), float(theirs.mean()))
            rows.append((reward, prop, *shares, mean, low, high, int(known.sum())))
    return pd.DataFrame(rows, columns=list(BIAS))


def _points(gaps: np.ndarray, labels: np.ndarray, tie_gaps: np.ndarray) -> np.ndarray:
    said = np.where(np.abs(gaps) < tie_gaps, 0.0, np.sign(gaps))
    return 1 - np.abs(said - np.sign(labels - 0.5)) / 2


def _mean_over(
    prompts: np.ndarray, values: np.ndarray, resamples: int
) -> tuple[float, float, float]:
    """Mean of all pairs with its interval over prompts."""
    frame = pd.DataFrame({"prompt_id": prompts, "seed": range(len(values)), "score": values})
    scores = frame.assign(prompt="", model="base", metric="pairs")
    [row] = statistics.summarise(scores, resamples=resamples).itertuples()
    return row.mean, row.low, row.high
