"""The arena: what people's choices say of the generators, and how large the gap in a pair is.

Every generator has a Gaussian capability. A walk over the labelled pairs fits them; the gap of a
pair is then inferred from both Gaussians and the choice (ArenaPO, Li et al. 2026,
arXiv 2605.06070). docs/arena.md has the formulas and what was decided where the paper is silent.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np

from raypref.core.config import Section, setting

# A variance is never taken to be less than this share of the prior's.
LEAST_VARIANCE = 1e-12
# Left of it, a continued fraction of this depth is exact to rounding, and nothing cancels.
FAR_LEFT, DEPTH = -5.0, 32
# With a draw margin below it (in standard deviations), a draw says that both were equal.
THIN = 1e-5
NEWTON_STEPS, HALVINGS = 100, 40


class ArenaConfig(Section):
    """How capabilities are fitted to labelled pairs, and gaps inferred from them."""

    prior_mean: float = setting(25.0, "every generator's capability before any choice", later=True)
    prior_std: float = setting(25 / 3, "how unsure that is", gt=0, later=True)
    noise: float = setting(
        25 / 6, "how far one image strays from its generator's capability", gt=0, later=True
    )
    drift: float = setting(
        0.0,
        "what each choice adds to how unsure a capability is; above 0 early choices are forgotten",
        ge=0,
        later=True,
    )
    draw_probability: float = setting(
        0.0, "how often equal generators tie; 0: ties are left out", ge=0, lt=1, later=True
    )
    spread: Literal["noise", "posterior"] = setting(
        "noise",
        "what an image's quality varies by: by the noise and by how unsure its generator's "
        "capability is; or (posterior) by the latter alone, which vanishes with many pairs",
        later=True,
    )

    @property
    def draw_margin(self) -> float:
        """How close two images' qualities must be for a tie."""
        share = NormalDist().inv_cdf((self.draw_probability + 1) / 2)
        return share * math.sqrt(2) * self.noise


class Arena(NamedTuple):
    """The generators' capabilities, each [generators], in the unit of `ArenaConfig.prior_std`."""

    mean: np.ndarray
    std: np.ndarray  # how unsure the mean is
    games: np.ndarray  # choices against another generator, ties included where they are used


class Truncated(NamedTuple):
    """A standard normal x + t that is known to be positive, with t the number given."""

    shift: float  # E[x | x > -t], the density over the distribution function at t
    mean: float  # E[x + t | x > -t] = t + shift
    variance: float  # of x, given that; 1 - shift * mean


def walk_order(ids: Iterable[str], seed: int) -> np.ndarray:
    """The order in which labelled pairs are walked, [pairs]: drawn from the seed and their ids.

    It does not depend on the order in which the pairs are read.
    """
    # `core.rows.seed_of(seed, "arena", id)`, with the hash of what all have in common made once.
    common = hashlib.sha256(f"{seed}\0arena\0".encode())

    def key(id_: str) -> int:
        own = common.copy()
        own.update(id_.encode())
        return int.from_bytes(own.digest()[:8], "big") >> 1

    return np.argsort(np.fromiter(map(key, ids), np.int64), kind="stable")


def fit(
    winners: np.ndarray,
    losers: np.ndarray,
    draws: np.ndarray | None = None,
    *,
    generators: int,
    config: ArenaConfig,
) -> Arena:
    """Walk the labelled pairs in the order given; every choice moves both generators.

    The step is the Gaussian that has the moments of the exact posterior of this one choice. A pair
    of one generator with itself is passed over: it says nothing about a difference.

    Args:
        winners: numbers of the chosen images' generators, int64, [pairs].
        losers: of the rejected images' generators.
        draws: bool, [pairs]: neither was preferred, the two names in any order; None: no ties.
            Where `draw_probability` is 0 they are passed over.
        generators: how many there are; numbers are below it.
        config: prior, noise, drift and the probability of a tie.
    """
    firsts, seconds, ties = _games(winners, losers, draws, generators, config)
    means = [config.prior_mean] * generators
    variances = [config.prior_std**2] * generators
    least = LEAST_VARIANCE * config.prior_std**2
    margin, drift, noise = config.draw_margin, config.drift**2, 2 * config.noise**2
    sqrt, exp, erfc = math.sqrt, math.exp, math.erfc
    root_half, factor = math.sqrt(0.5), math.sqrt(2 / math.pi)
    for first, second, tie in zip(firsts.tolist(), seconds.tolist(), ties.tolist(), strict=True):
        v, u = variances[first] + drift, variances[second] + drift
        both = v + u + noise
        c = sqrt(both)
        if tie:
            shift, kept = drawn((means[first] - means[second]) / c, margin / c)
        else:
            t = (means[first] - means[second] - margin) / c
            if t > FAR_LEFT:  # `truncated` written out: a call per pair would double the time
                shift = factor * exp(-0.5 * t * t) / erfc(-t * root_half)
                kept = 1 - shift * (shift + t)
            else:
                shift, _, kept = truncated(t)
        learned = (1 - kept) / both
        means[first] += v / c * shift
        means[second] -= u / c * shift
        variances[first] = max(v * (1 - v * learned), least)
        variances[second] = max(u * (1 - u * learned), least)
    games = np.bincount(firsts, minlength=generators) + np.bincount(seconds, minlength=generators)
    return Arena(np.array(means), np.sqrt(np.array(variances)), games.astype(np.int64))


def gap(
    arena: Arena, chosen: np.ndarray, rejected: np.ndarray, config: ArenaConfig
) -> tuple[np.ndarray, np.ndarray]:
    """How much better the chosen image is, given its being chosen: expectation and deviation.

    Positive, larger the more capable the chosen image's generator is against the other's. A choice
    that contradicts the arena gets a small gap. All pairs of the same two generators, in the same
    order, have one gap.

    Args:
        arena: the fitted capabilities.
        chosen: numbers of the chosen images' generators, int64, [pairs].
        rejected: of the rejected images' generators.
        config: as it was fitted with.

    Returns:
        Two arrays of float64, [pairs], in the unit of the capabilities.
    """
    count = len(arena.mean)
    codes, inverse = np.unique(chosen * count + rejected, return_inverse=True)
    own = 2 * config.noise**2 if config.spread == "noise" else 0.0
    margin = config.draw_margin
    means, variances = arena.mean.tolist(), np.square(arena.std).tolist()
    found = np.empty((len(codes), 2))
    for row, code in enumerate(codes.tolist()):
        one, other = divmod(code, count)
        s = math.sqrt(variances[one] + variances[other] + own)
        _, mean, kept = truncated((means[one] - means[other] - margin) / s)
        found[row] = margin + s * mean, s * math.sqrt(kept)
    return found[inverse, 0], found[inverse, 1]


def probit_fit(
    winners: np.ndarray,
    losers: np.ndarray,
    draws: np.ndarray | None = None,
    *,
    generators: int,
    config: ArenaConfig,
) -> np.ndarray:
    """The capabilities that all choices together make most probable, [generators]; no order counts.

    The mode of the posterior that the walk approaches (with drift 0): a probit regression with the
    same prior, which keeps a generator that always wins finite. The arguments are those of `fit`.
    """
    firsts, seconds, ties = _games(winners, losers, draws, generators, config)
    # Every distinct game once, with how often it was played: there are few generators.
    codes, times = np.unique((firsts * generators + seconds) * 2 + ties, return_counts=True)
    tie, code = (codes % 2).astype(bool), codes // 2
    one, other = code // generators, code % generators
    c = math.sqrt(2) * config.noise
    margin, precision = config.draw_margin / c, (c / config.prior_std) ** 2

    def onto(per_game: np.ndarray) -> np.ndarray:
        return np.bincount(one, per_game, generators) - np.bincount(other, per_game, generators)

    def derivatives(at: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Log posterior, its gradient, and per game the curvature."""
        rows = [
            _drawn_log(u, margin) if is_tie else _won_log(u - margin)
            for u, is_tie in zip((at[one] - at[other]).tolist(), tie.tolist(), strict=True)
        ]
        logs, slopes, curvatures = np.array(rows).reshape(-1, 3).T
        value = float((times * logs).sum() - 0.5 * precision * (at * at).sum())
        return value, onto(times * slopes) - precision * at, times * curvatures

    at = np.zeros(generators)  # in standard deviations of a game, from the prior's mean
    value, slope, curvature = derivatives(at)
    for _ in range(NEWTON_STEPS):
        step = _solve(slope, one, other, curvature, precision)
        if np.abs(step).max(initial=0.0) < 1e-13 * (1 + np.abs(at).max(initial=0.0)):
            break
        for halving in range(HALVINGS):
            # Rounding of the sum must not stop the last steps.
            new = derivatives(at + 0.5**halving * step)
            if new[0] >= value - 1e-13 * abs(value):
                break
        at = at + 0.5**halving * step
        value, slope, curvature = new
    return config.prior_mean + c * at


def truncated(t: float) -> Truncated:
    """Moments of a standard normal above -t, with relative errors below 1e-12 for any t."""
    if t > FAR_LEFT:
        shift = math.sqrt(2 / math.pi) * math.exp(-0.5 * t * t) / math.erfc(-t * math.sqrt(0.5))
        return Truncated(shift, t + shift, 1 - shift * (t + shift))
    # shift = x + 1/(x + 2/(x + 3/(x + ...))), x = -t: the tail of Mills' ratio. t + shift and
    # 1 - shift * (t + shift) would cancel; written with the fraction's tails they do not.
    x = -t
    rest = 0.0
    for depth in range(DEPTH, 1, -1):
        rest = depth / (x + rest)
    mean = 1 / (x + rest)
    return Truncated(x + mean, mean, mean * (rest - mean))


def drawn(u: float, margin: float) -> tuple[float, float]:
    """Mean and variance of a standard normal x, given that x + u lies within the margin around 0.

    Args:
        u: difference of the means, in standard deviations of a game.
        margin: of a draw, in the same unit.
    """
    if margin < THIN:
        return -u, margin * margin / 3
    size = abs(u)
    shift, squares, _ = _between(size, margin)
    return math.copysign(shift, -u), 1 - (shift * shift + squares)


def _between(u: float, margin: float) -> tuple[float, float, float]:
    """For u >= 0: minus the mean of x, what its square adds to the curvature, log of the mass.

    All is relative to the density at the nearer end: nothing underflows when u is large.
    """
    low, high = -margin - u, margin - u
    ratio = math.exp(-2 * margin * u)  # density at the farther end, over that at the nearer
    mass = 1 / truncated(high).shift - ratio / truncated(low).shift
    shift = (1 - ratio) / mass
    return shift, (high - low * ratio) / mass, math.log(mass) - 0.5 * high * high


def _won_log(t: float) -> tuple[float, float, float]:
    """Log probability of a choice up to a constant, slope, and minus the second derivative."""
    shift, _, kept = truncated(t)
    # Where the density underflows, its logarithm does not.
    log = 0.0 if t > 30 else -0.5 * t * t - math.log(shift) - 0.5 * math.log(2 * math.pi)
    return log, shift, 1 - kept


def _drawn_log(u: float, margin: float) -> tuple[float, float, float]:
    """The same of a draw."""
    shift, kept = drawn(u, margin)
    log = -0.5 * u * u if margin < THIN else _between(abs(u), margin)[2]
    return log, shift, 1 - kept


def _games(
    winners: np.ndarray,
    losers: np.ndarray,
    draws: np.ndarray | None,
    generators: int,
    config: ArenaConfig,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs that say something: of two generators, ties only where they may happen."""
    ties = np.zeros(len(winners), bool) if draws is None else draws
    assert len(winners) == len(losers) == len(ties), "one winner, loser and draw per pair"
    for side in (winners, losers):
        assert not len(side) or (side.min() >= 0 and side.max() < generators), "unknown generator"
    used = winners != losers
    if config.draw_probability == 0:
        used &= ~ties
    return winners[used], losers[used], ties[used]


def _solve(
    right: np.ndarray, one: np.ndarray, other: np.ndarray, weight: np.ndarray, ridge: float
) -> np.ndarray:
    """Newton's step by conjugate gradients: no matrix of generators by generators is made.

    The matrix is that of a graph: `weight` per edge from `one` to `other`, and `ridge` on the
    diagonal.
    """
    size = len(right)
    diagonal = np.bincount(one, weight, size) + np.bincount(other, weight, size) + ridge
    found, residual = np.zeros(size), right.copy()
    direction = residual / diagonal
    product = float(residual @ direction)
    enough = 1e-30 * product
    for _ in range(4 * size + 10):
        if product <= enough:
            break
        flow = weight * (direction[one] - direction[other])
        image = np.bincount(one, flow, size) - np.bincount(other, flow, size) + ridge * direction
        length = product / float(direction @ image)
        found += length * direction
        residual -= length * image
        scaled = residual / diagonal
        product, before = float(residual @ scaled), product
        direction = scaled + product / before * direction
    return found
