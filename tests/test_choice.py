"""Which candidates become a pair: every rule against a table worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raypref.core.config import InputError
from raypref.core.rows import seed_of
from raypref.pairs.choice import (
    DRAW,
    PHOTOGRAPH,
    TOO_FEW,
    ChoiceConfig,
    ChosenPair,
    choose,
    dense_ranks,
    rule_scores,
)

NAMES = ("clipscore", "pickscore", "hpsv2")
# Four candidates, three rewards. Dense ranks 1112, 2341, 3412; with average ranks the first column
# would be 2224, candidate 0 would tie with 3, and be chosen.
TABLE = np.array([[4, 3, 2], [4, 2, 1], [4, 1, 4], [1, 4, 3]], float)
NAN = float("nan")


def scored(table: np.ndarray = TABLE, /, key: str = "k", seed: int = 0, **rule: Any) -> np.ndarray:
    return rule_scores(table, NAMES[: table.shape[1]], ChoiceConfig(**rule), seed=seed, key=key)


def pair(
    table: np.ndarray = TABLE, /, key: str = "k", seed: int = 0, **rule: Any
) -> ChosenPair | str:
    own = scored(table, key=key, seed=seed, **rule)
    return choose(own, ChoiceConfig(**rule), seed=seed, key=key)


BY_HAND = {
    "ensemble": [-6, -8, -6, -5],
    "capo": [0.550286, 0.389705, 0.550286, 0.509723],
    # Weights 2, 5/7, 5/7, scaled to a mean of 1: 1.75, 0.625, 0.625.
    "caen": [0.402778, 0.263889, 0.402778, 0.347222],
    "zscore": [0.192450, -0.403835, 0.192450, 0.018935],
    "pickscore": [3, 2, 1, 4],
}


@pytest.mark.parametrize("rule", BY_HAND)
def test_each_rule_scores_the_table_as_by_hand(rule):
    np.testing.assert_allclose(scored(by=rule), BY_HAND[rule], atol=2e-6)


def test_ranks_are_dense():
    assert dense_ranks(np.array([5.0, 1.0, 5.0, 3.0])).tolist() == [1, 3, 1, 2]
    assert pair() == ChosenPair(3, 1, draw=False), "average ranks would choose candidate 0"


def test_a_heavier_reward_counts_more():
    own = {"clipscore": 3.0}  # with the others' 1: 1.8, 0.6, 0.6
    np.testing.assert_allclose(scored(weights=own), [-4.8, -6.0, -4.8, -5.4])
    assert pair(weights=own) == ChosenPair(0, 1, draw=False), "of 0 and 2, the first"
    np.testing.assert_allclose(
        scored(by="zscore", weights={"pickscore": 0, "hpsv2": 0})[3], -(3**0.5)
    )


def test_caens_nine_published_weights_sum_to_nine():
    names = ("clipscore", "perception", *"abcdefg")
    table = np.zeros((2, 9))
    for place, share in ((0, 2 / 9), (1, 2 / 9), (2, 5 / 63)):
        own = table.copy()
        own[0, place] = 1
        found = rule_scores(own, names, ChoiceConfig(by="caen"), seed=0, key="k")
        np.testing.assert_allclose(found, [share, 0])


def test_capo_saturates_without_a_warning():
    table = np.array([[1e6], [0.0], [-1e6]])
    np.testing.assert_array_equal(scored(table, by="capo"), [1, 0.5, 0])


@pytest.mark.parametrize("rule", ["ensemble", "capo", "caen", "zscore", "clipscore", "random"])
def test_a_candidate_without_a_score_never_becomes_rejected(rule):
    """Published: an answer that could not be read scored -1 and lost."""
    for lacking in (NAN, np.inf, -np.inf):
        table = np.array([[2.0, 2.0], [lacking, 5.0], [1.0, 1.0], [0.0, lacking]])
        found = pair(table, by=rule)
        if rule == "random":  # no reward is used
            assert isinstance(found, ChosenPair)
        elif rule == "clipscore":
            assert found == ChosenPair(0, 3, draw=False), "the other reward is not used"
        else:
            assert found == ChosenPair(0, 2, draw=False)
            assert np.isnan(scored(table, by=rule)).tolist() == [False, True, False, True]


def test_what_is_out_is_not_compared_with():
    whole = np.array([[3.0, 1.0], [1.0, 2.0], [2.0, 1.5]])
    beside = np.vstack([whole, [[NAN, 1.7]]])
    for rule in ("ensemble", "capo", "caen", "zscore"):
        np.testing.assert_array_equal(scored(beside, by=rule)[:3], scored(whole, by=rule))


def test_fewer_than_two_candidates_are_too_few():
    one = np.array([[1.0], [NAN]])
    assert pair(one) == pair(np.full((2, 1), NAN)) == TOO_FEW
    assert pair(one, chosen="photograph") == ChosenPair(PHOTOGRAPH, 0, draw=False)
    assert pair(np.full((2, 1), NAN), chosen="photograph") == TOO_FEW


def test_all_equal_is_a_draw():
    table = np.full((4, 3), 2.5)
    for rule in ("ensemble", "capo", "caen", "zscore", "hpsv2"):
        assert pair(table, by=rule) == DRAW
    drawn = {pair(table, key=str(n), draws="random") for n in range(60)}
    assert {(c.chosen, c.rejected) for c in drawn if isinstance(c, ChosenPair)} == {
        (one, other) for one in range(4) for other in range(4) if one != other
    }
    assert all(isinstance(c, ChosenPair) and c.draw for c in drawn)
    assert pair(table, draws="random") == pair(table, draws="random"), "by seed and key alone"


def test_a_random_pair_depends_on_seed_and_key_alone():
    found = {pair(key=key, seed=seed, by="random") for key in "abcdef" for seed in range(6)}
    assert len(found) > 8
    assert pair(by="random") == pair(np.zeros((4, 3)), by="random")
    expected = [seed_of(0, "choice", "k", n) / 2**63 for n in range(4)]
    np.testing.assert_array_equal(scored(by="random"), expected)


@pytest.mark.parametrize("rule", ["ensemble", "capo", "caen", "zscore", "pickscore", "random"])
def test_every_rule_can_choose_among_the_first(rule):
    """Published: only the ensemble could."""
    np.testing.assert_array_equal(scored(by=rule, candidates=3)[:3], scored(TABLE[:3], by=rule))
    assert np.isnan(scored(by=rule, candidates=3)[3])


def test_the_first_are_ranked_among_themselves_unless_all_are_asked_for():
    """Published: two candidates were ranked by sums over all sixteen, and so were draws."""
    table = np.array([[4.0, 1.0], [1.0, 2.0], [2.0, 0.0], [3.0, 0.5]])
    assert pair(table, candidates=2) == DRAW, "each is the better one once"
    np.testing.assert_array_equal(scored(table, candidates=2, ranks="all")[:2], [-3, -5])
    assert pair(table, candidates=2, ranks="all") == ChosenPair(0, 1, draw=False)


def test_the_first_candidate_may_be_rejected_whatever_its_score():
    assert pair(rejected="first") == ChosenPair(3, 0, draw=False)
    assert pair(by="zscore", rejected="first") == DRAW, "it is itself the best"
    assert pair(by="zscore", rejected="first", draws="random") == DRAW, "the others are worse"
    assert pair(np.array([[NAN], [1.0], [2.0]]), rejected="first") == ChosenPair(2, 1, draw=False)
    alike = np.full((4, 3), 2.5)
    drawn = {pair(alike, key=str(n), draws="random", rejected="first") for n in range(30)}
    assert drawn == {ChosenPair(number, 0, draw=True) for number in (1, 2, 3)}


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"by": "clips"}, r"choice\.by=clips: it is ensemble, .*clipscore, pickscore"),
        ({"candidates": 5}, r"choice\.candidates=5 is more than candidates\.count=4"),
        ({"candidates": 1}, r"choice\.candidates=1: a pair needs 2"),
        ({"weights": {"deqa": 1}}, r"choice\.weights\.deqa: it is not among"),
        ({"weights": {"hpsv2": -1}}, r"choice\.weights\.hpsv2=-1"),
        ({"weights": dict.fromkeys(NAMES, 0)}, r"choice\.weights: all are 0"),
        ({"by": "hpsv2", "weights": {"hpsv2": 2}}, r"choice\.by=hpsv2 has no weights"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_named(rule, said):
    with pytest.raises(InputError, match=said):
        ChoiceConfig(**rule).check(NAMES, 4)


def test_rules_that_need_no_reward_need_none():
    ChoiceConfig(by="random").check((), 2)
    ChoiceConfig(candidates=1, chosen="photograph").check(NAMES, 4)
    with pytest.raises(InputError, match="name one in candidates"):
        ChoiceConfig().check((), 2)
