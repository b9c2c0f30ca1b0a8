"""People's choices as numbers, and how far the arena explains them and their votes."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from raypref.pairs.arena import Arena, ArenaConfig, fit, gap, probit_fit

BLOCKS = 2000  # of pairs, which the bootstrap draws
QUANTILES = (0, 5, 25, 50, 75, 95, 100)  # percent


class Choices(NamedTuple):
    """Labelled pairs whose generators are named, in the order of the walk, each [pairs]."""

    names: list[str]  # of the generators, sorted; [generators]
    chosen: np.ndarray  # numbers of the generators; which of a tie's it is means nothing
    rejected: np.ndarray
    ties: np.ndarray  # bool
    vote_share: np.ndarray  # of votes for the chosen image, NaN where not known
    confidence: np.ndarray  # NaN where not known


class Standing(NamedTuple):
    """A generator in the arena."""

    generator: str
    mean: float
    std: float
    games: int  # choices against other generators
    win_rate: float  # of those that were decided; NaN without any


class Correlation(NamedTuple):
    """A correlation with its 95% interval, NaN where one side is constant."""

    value: float
    low: float
    high: float


class Agreement(NamedTuple):
    """The gap against something that people said and the arena was not told."""

    what: str  # a column of `Choices`
    pairs: int
    pearson: Correlation
    spearman: Correlation
    between: float  # share of its variance that lies between pairs of generators


class Findings(NamedTuple):
    """What the arena says, and how it stands up."""

    standings: list[Standing]  # the most capable first
    batch_difference: float  # largest, of centred means, to the batch fit
    decided: int
    ties: int
    within: float  # share of decided pairs whose images have one generator
    upsets: float  # share, between generators, in which the less capable one was chosen
    quantiles: dict[int, float]  # of the gap over its mean, by percent
    predicted: float  # share of held-out choices that the other half's arena foretells
    expected: float  # the share that it expects to
    agreements: list[Agreement]


def arena_findings(choices: Choices, config: ArenaConfig, *, seed: int, resamples: int) -> Findings:
    """Fit the arena to the choices and hold it against them.

    The second half of the walk is held out for what is said of votes and of predictions: the order
    is drawn from a hash, so the halves are drawn at random.

    Args:
        choices: at least one decided pair.
        config: of the arena.
        seed: of the bootstrap.
        resamples: bootstrap samples.
    """
    count = len(choices.names)
    arena = _fitted(choices, config)
    batch = probit_fit(
        choices.chosen, choices.rejected, choices.ties, generators=count, config=config
    )
    chosen, rejected = choices.chosen[~choices.ties], choices.rejected[~choices.ties]
    between = chosen != rejected
    gaps, _ = gap(arena, chosen, rejected, config)
    against = arena.mean[chosen[between]] - arena.mean[rejected[between]]
    half = len(choices.chosen) // 2
    seen, unseen = (_part(choices, half_of) for half_of in (slice(half), slice(half, None)))
    learned = _fitted(seen, config)
    predicted, expected = _foretold(learned, unseen, config)
    return Findings(
        standings=_standings(choices, arena),
        batch_difference=float(
            np.abs((arena.mean - arena.mean.mean()) - (batch - batch.mean())).max()
        ),
        decided=len(chosen),
        ties=int(choices.ties.sum()),
        within=1 - float(between.mean()),
        upsets=float((against < 0).mean()) if len(against) else math.nan,
        quantiles=dict(
            zip(QUANTILES, np.percentile(gaps / gaps.mean(), QUANTILES).tolist(), strict=True)
        ),
        predicted=predicted,
        expected=expected,
        agreements=[
            agreement
            for what in ("vote_share", "confidence")
            if (agreement := _agreement(what, unseen, learned, config, seed, resamples))
        ],
    )


def _fitted(choices: Choices, config: ArenaConfig) -> Arena:
    return fit(
        choices.chosen,
        choices.rejected,
        choices.ties,
        generators=len(choices.names),
        config=config,
    )


def _part(choices: Choices, where: slice) -> Choices:
    return Choices(choices.names, *(column[where] for column in choices[1:]))


def _standings(choices: Choices, arena: Arena) -> list[Standing]:
    count = len(choices.names)
    decided = (choices.chosen != choices.rejected) & ~choices.ties
    won = np.bincount(choices.chosen[decided], minlength=count)
    lost = np.bincount(choices.rejected[decided], minlength=count)
    columns = (arena.mean.tolist(), arena.std.tolist(), arena.games.tolist())
    rows = [
        Standing(name, mean, std, games, wins / (wins + losses) if wins + losses else math.nan)
        for name, mean, std, games, wins, losses in zip(
            choices.names, *columns, won.tolist(), lost.tolist(), strict=True
        )
    ]
    return sorted(rows, key=lambda row: (-row.mean, row.generator))


def _foretold(arena: Arena, unseen: Choices, config: ArenaConfig) -> tuple[float, float]:
    """How often the more capable generator was chosen, and how often that was expected."""
    decided = (unseen.chosen != unseen.rejected) & ~unseen.ties
    if not decided.any():
        return math.nan, math.nan
    codes, times = np.unique(
        unseen.chosen[decided] * len(arena.mean) + unseen.rejected[decided], return_counts=True
    )
    one, other = codes // len(arena.mean), codes % len(arena.mean)
    m = arena.mean[one] - arena.mean[other]
    s = np.sqrt(arena.std[one] ** 2 + arena.std[other] ** 2 + 2 * config.noise**2)
    right = np.where(m == 0, 0.5, m > 0)
    cdf, margin = NormalDist().cdf, config.draw_margin
    # Given that the choice was decided: ties are left out above.
    wins = np.array([cdf(t) for t in ((np.abs(m) - margin) / s).tolist()])
    losses = np.array([cdf(t) for t in ((-np.abs(m) - margin) / s).tolist()])
    told = wins / (wins + losses)
    return float(np.average(right, weights=times)), float(np.average(told, weights=times))


def _agreement(
    what: str, unseen: Choices, arena: Arena, config: ArenaConfig, seed: int, resamples: int
) -> Agreement | None:
    """Of the held-out pairs that are decided and have the number; None where none has."""
    said: np.ndarray = getattr(unseen, what)
    known = np.isfinite(said) & ~unseen.ties
    if not known.any():
        return None
    said, chosen, rejected = said[known], unseen.chosen[known], unseen.rejected[known]
    gaps, _ = gap(arena, chosen, rejected, config)
    return Agreement(
        what,
        len(said),
        correlation(gaps, said, seed=seed, resamples=resamples),
        correlation(_ranks(gaps), _ranks(said), seed=seed, resamples=resamples),
        variance_between(chosen * len(unseen.names) + rejected, said),
    )


def correlation(x: np.ndarray, y: np.ndarray, *, seed: int, resamples: int) -> Correlation:
    """Pearson's correlation with its bootstrap interval over pairs.

    Above `BLOCKS` pairs, blocks of them are drawn: of pairs in random order that is the same, and
    it takes no longer for a million.

    Args:
        x: [pairs], in random order.
        y: [pairs].
        seed: of the draws.
        resamples: bootstrap samples.
    """
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(math.nan, math.nan, math.nan)
    x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    products = np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)
    blocks = min(len(x), BLOCKS)
    sums = np.add.reduceat(products, np.arange(blocks) * len(x) // blocks)
    draws = np.random.default_rng(seed).multinomial(
        blocks, np.full(blocks, 1 / blocks), size=resamples
    )

    def of(total: np.ndarray) -> np.ndarray:
        mean = total[:, 1:] / total[:, :1]
        spread = (mean[:, 2] - mean[:, 0] ** 2) * (mean[:, 3] - mean[:, 1] ** 2)
        with np.errstate(invalid="ignore", divide="ignore"):  # a sample may be constant
            return (mean[:, 4] - mean[:, 0] * mean[:, 1]) / np.sqrt(spread.clip(min=0))

    low, high = np.nanpercentile(of(draws @ sums), [2.5, 97.5])
    return Correlation(float((x * y).mean()), float(low), float(high))


def variance_between(groups: np.ndarray, values: np.ndarray) -> float:
    """The share of the values' variance that lies between groups: epsilon squared.

    What chance puts between groups is taken off (Kelley 1935), so it may be below 0. No number
    that is constant within groups can explain more.

    Args:
        groups: their numbers, [pairs].
        values: [pairs].
    """
    _, group = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group)
    total = float(((values - values.mean()) ** 2).sum())
    if total == 0 or len(sizes) == len(values):
        return math.nan
    means = np.bincount(group, values) / sizes
    inside = float(((values - means[group]) ** 2).sum())
    return 1 - inside / (len(values) - len(sizes)) / (total / (len(values) - 1))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, equal values at their middle."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    middles: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return middles
