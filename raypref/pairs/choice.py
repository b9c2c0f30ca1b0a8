"""Which of a hole's candidates become chosen and rejected, by what rewards say of them.

The rules are those of Follow-Your-Preference (arXiv 2509.23082): a single reward, the ensemble of
their ranks, CaPO and CaEN; and `zscore`, which is not in the paper. docs/candidates.md has the
formulas and where they differ from the released code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from raypref.core.config import InputError, Section, setting
from raypref.core.rows import seed_of

PHOTOGRAPH = -1  # stands for it where a candidate's number stands
RANDOM = "random"
TOO_FEW, DRAW = "too_few_candidates", "draw"  # why a hole has no pair
DECIMALS = 12  # of what a rule says: sums that differ by their order alone are a tie, everywhere
# Of CaEN; every other reward has 5/7. Those of the nine published rewards sum to nine.
CAEN_WEIGHTS, CAEN_OTHER = {"clipscore": 2.0, "perception": 2.0}, 5 / 7


class ChoiceConfig(Section):
    """Which candidates become chosen and rejected."""

    by: str = setting(
        "ensemble",
        "the rule: ensemble (sum of ranks), capo, caen, zscore, random, or one of "
        "candidates.rewards alone",
        later=True,
    )
    candidates: int = setting(
        0, "choose among the first N candidates; 0: among all", ge=0, later=True
    )
    ranks: Literal["chosen", "all"] = setting(
        "chosen",
        "what a candidate is compared with: those to choose among, or all that were made, as in "
        "the released code",
        later=True,
    )
    weights: dict[str, float] = setting(
        {},
        "weights of rewards by name in ensemble, capo, caen and zscore; others have 1",
        later=True,
    )
    draws: Literal["drop", "random"] = setting(
        "drop",
        "where all candidates are alike: make no pair, or take two at random, drawn by the seed; "
        "with choice.rejected=first, one besides the first",
        later=True,
    )
    chosen: Literal["best", "photograph"] = setting(
        "best", "the chosen image: the best candidate, or the photograph itself", later=True
    )
    rejected: Literal["worst", "first"] = setting(
        "worst",
        "the rejected image: the worst candidate, or the first, whatever its score",
        later=True,
    )

    def check(self, rewards: Sequence[str], count: int) -> None:
        """See that the rule has what it needs.

        Args:
            rewards: names of those that score the candidates.
            count: how many candidates each hole has.

        Raises:
            InputError: names the key.
        """
        if self.by != RANDOM and self.by not in RULES and self.by not in rewards:
            raise InputError(
                f"choice.by={self.by}: it is {', '.join(RULES)}, {RANDOM}, or one of "
                f"candidates.rewards ({', '.join(rewards) or 'none'})"
            )
        if self.by in RULES and not rewards:
            raise InputError(f"choice.by={self.by} needs a reward; name one in candidates.rewards")
        if self.candidates > count:
            raise InputError(
                f"choice.candidates={self.candidates} is more than candidates.count={count}"
            )
        least = 1 if self.chosen == "photograph" else 2
        if (self.candidates or count) < least:
            key = "choice.candidates" if self.candidates else "candidates.count"
            raise InputError(f"{key}={self.candidates or count}: a pair needs 2 candidates")
        if self.weights and self.by not in RULES:
            raise InputError(f"choice.weights: choice.by={self.by} has no weights")
        for name, weight in self.weights.items():
            if name not in rewards:
                raise InputError(f"choice.weights.{name}: it is not among candidates.rewards")
            if not 0 <= weight < np.inf:
                raise InputError(f"choice.weights.{name}={weight:g}: a weight is 0 or more")
        if self.weights and not any(self.weights.get(name, 1.0) for name in rewards):
            raise InputError("choice.weights: all are 0; one must be more")


class ChosenPair(NamedTuple):
    """What became of one hole."""

    chosen: int  # number of a candidate, or PHOTOGRAPH
    rejected: int
    draw: bool  # whether the two were drawn at random, all being alike


def rule_scores(
    scores_NR: np.ndarray, rewards: Sequence[str], config: ChoiceConfig, *, seed: int, key: str
) -> np.ndarray:
    """What the rule says of each candidate of one hole; higher is better.

    A candidate that a used reward gave no finite number is out. So are those after the first
    `config.candidates`.

    Args:
        scores_NR: the rewards' scores, float64 [N, R]; NaN where there is none.
        rewards: their names.
        config: the rule.
        seed: of the run.
        key: of the hole; with the seed it decides what `random` draws.

    Returns:
        Float64 [N]; NaN for a candidate that is out.
    """
    first = config.candidates or len(scores_NR)
    compared = scores_NR[:first] if config.ranks == "chosen" else scores_NR
    used = [column for column, name in enumerate(rewards) if config.by in (name, *RULES)]
    sound = np.isfinite(compared[:, used]).all(axis=1)
    found = np.full(len(scores_NR), np.nan)
    if config.by == RANDOM:
        found[: len(compared)] = [seed_of(seed, "choice", key, n) for n in range(len(compared))]
        found /= 2.0**63
    elif config.by in rewards and config.by not in RULES:
        found[: len(compared)][sound] = compared[sound, used[0]]
    elif sound.any():
        weights_R = _weights(rewards, config)
        own = RULES[config.by](compared[sound], weights_R)
        found[: len(compared)][sound] = own.round(DECIMALS)
    found[first:] = np.nan
    return found


def choose(scores_N: np.ndarray, config: ChoiceConfig, *, seed: int, key: str) -> ChosenPair | str:
    """The pair of one hole; of several candidates with one score the first is taken.

    Args:
        scores_N: what the rule says, float64 [N]; NaN for a candidate that is out.
        config: the rule.
        seed: of the run.
        key: of the hole.

    Returns:
        The pair, or why there is none: TOO_FEW, DRAW.
    """
    (sound,) = np.nonzero(np.isfinite(scores_N))
    photograph = config.chosen == "photograph"
    if len(sound) < (1 if photograph else 2):
        return TOO_FEW
    own = scores_N[sound]
    best, worst = int(sound[own.argmax()]), int(sound[own.argmin()])
    rejected = worst if config.rejected == "worst" else int(sound[0])
    if photograph:
        return ChosenPair(PHOTOGRAPH, rejected, draw=False)
    if scores_N[best] > scores_N[rejected]:
        return ChosenPair(best, rejected, draw=False)
    if config.draws == "drop" or own.max() > own.min():  # else the first is the best
        return DRAW
    drawn = sorted(sound.tolist(), key=lambda n: seed_of(seed, "draw", key, n))
    if config.rejected == "first":
        drawn.remove(rejected)
        return ChosenPair(drawn[0], rejected, draw=True)
    return ChosenPair(drawn[0], drawn[1], draw=True)


def dense_ranks(scores_N: np.ndarray) -> np.ndarray:
    """Descending ranks: the best has 1, equal scores share a rank, and none is left out."""
    _, rank_N = np.unique(-scores_N, return_inverse=True)
    return rank_N + 1


def _weights(rewards: Sequence[str], config: ChoiceConfig) -> np.ndarray:
    """Weights of the rewards, [R]; their mean is 1."""
    own = config.weights
    if config.by == "caen" and not own:
        own = {name: CAEN_WEIGHTS.get(name, CAEN_OTHER) for name in rewards}
    weights_R = np.array([own.get(name, 1.0) for name in rewards])
    return weights_R if not own else weights_R / weights_R.mean()


def _ensemble(scores_NR: np.ndarray, weights_R: np.ndarray) -> np.ndarray:
    """Minus the sum of dense ranks."""
    return -np.apply_along_axis(dense_ranks, 0, scores_NR) @ weights_R


def _capo(scores_NR: np.ndarray, weights_R: np.ndarray) -> np.ndarray:
    """Mean probability to beat another candidate, by sigmoids of raw differences."""
    with np.errstate(over="ignore"):  # exp of a large difference: the sigmoid is 0
        beats_NNR = 1 / (1 + np.exp(scores_NR[None] - scores_NR[:, None]))
    return _against_others(beats_NNR.sum(axis=1) - 0.5, weights_R)


def _caen(scores_NR: np.ndarray, weights_R: np.ndarray) -> np.ndarray:
    """Mean share of the other candidates that are beaten."""
    return _against_others((scores_NR[:, None] > scores_NR[None]).sum(axis=1), weights_R)


def _zscore(scores_NR: np.ndarray, weights_R: np.ndarray) -> np.ndarray:
    """Mean of scores in standard deviations of the hole's candidates; 0 where all are equal."""
    spread_R = scores_NR.std(axis=0)
    alike_R = scores_NR.max(axis=0) == scores_NR.min(axis=0)
    centred = scores_NR - scores_NR.mean(axis=0)
    return np.where(alike_R, 0.0, centred / np.where(alike_R, 1.0, spread_R)) @ (
        weights_R / len(weights_R)
    )


def _against_others(won_NR: np.ndarray, weights_R: np.ndarray) -> np.ndarray:
    others = max(1, len(won_NR) - 1)
    return won_NR / others @ (weights_R / len(weights_R))


RULES: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "ensemble": _ensemble,
    "capo": _capo,
    "caen": _caen,
    "zscore": _zscore,
}
