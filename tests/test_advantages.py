"""Rewards to advantages, against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raypref.align.advantages import PromptStatistics, within_batch, within_groups
from raypref.align.block_rewards import diversity, rewards_of
from raypref.core.config import InputError

RNG = np.random.default_rng(0)
REWARDS = RNG.normal(20, 2, (5, 8))
REWARDS[1] = REWARDS[1].round()  # ties


def standardised(values: np.ndarray) -> np.ndarray:
    deviation = values.std()
    return (values - values.mean()) / deviation if deviation else np.zeros_like(values)


def ranks(values: np.ndarray) -> np.ndarray:
    """Of each value, from -1 to 1; equal ones share the mean of the places that they take."""
    order = np.sort(values)
    places = [np.flatnonzero(order == value).mean() for value in values]
    return 2 * np.array(places) / (len(values) - 1) - 1


def win_rates(values: np.ndarray) -> np.ndarray:
    """The share of the others that each value beats; a tie is half a win."""
    count = len(values)
    return np.array(
        [
            sum((a > b) + 0.5 * (a == b) for j, b in enumerate(values) if j != i) / (count - 1)
            for i, a in enumerate(values)
        ]
    )


PLAIN = {
    "group": standardised,
    "mean": lambda values: values - values.mean(),
    "rank": ranks,
    "win_rate": lambda values: standardised(win_rates(values)),
}


@pytest.mark.parametrize("how", PLAIN)
def test_within_groups(how: str) -> None:
    found = within_groups(torch.from_numpy(REWARDS), how)
    expected = np.stack([PLAIN[how](values) for values in REWARDS])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("how", PLAIN)
@pytest.mark.parametrize("level", [0.0, 21.37, -4e5])
def test_equal_rewards_have_no_advantage(how: str, level: float) -> None:
    equal = torch.full((2, 7), level, dtype=torch.float64)
    assert torch.equal(within_groups(equal, how), torch.zeros(2, 7, dtype=torch.float64))
    assert torch.equal(within_batch(equal[0], equal.flatten()), equal[0] * 0)


def test_small_differences_count_unless_they_are_rounding() -> None:
    small = torch.tensor([[1e-7, 2e-7, 3e-7]], dtype=torch.float64)
    assert within_groups(small, "group").abs().max() > 1
    rounding = torch.tensor([[300.0, 300.00003, 300.0]], dtype=torch.float64)
    assert not within_groups(rounding, "group").any()


def made(scores: dict[str, np.ndarray], **update: object) -> object:
    own: dict = {
        "weights": dict.fromkeys(scores, 1.0),
        "group": 4,
        "advantage": "group",
        "clip": 5.0,
        "prompts": [n // 4 for n in range(len(next(iter(scores.values()))))],
        "statistics": PromptStatistics(),
        "block": 0,
    }
    return rewards_of({n: torch.from_numpy(v) for n, v in scores.items()}, **{**own, **update})


def test_a_reward_is_the_weighted_sum_of_scores_and_advantages_are_clipped() -> None:
    a, b = RNG.normal(size=16), RNG.normal(size=16)
    found = made({"a": a, "b": b}, weights={"a": 2.0, "b": -0.5}, clip=1.1)
    reward = 2 * a - 0.5 * b
    expected = np.concatenate([standardised(own) for own in reward.reshape(4, 4)])
    np.testing.assert_allclose(found.reward_M, reward, rtol=1e-12)
    np.testing.assert_allclose(found.advantage_M, expected.clip(-1.1, 1.1), rtol=1e-12)
    assert (np.abs(expected) > 1.1).any()
    spread = np.repeat(reward.reshape(4, 4).std(1), 4)
    np.testing.assert_allclose(found.spread_M, spread, rtol=1e-12)


@pytest.mark.parametrize("how", [*PLAIN, "batch", "prompt"])
def test_an_image_without_a_score_has_its_groups_mean_and_no_advantage(how: str) -> None:
    a, b = RNG.normal(size=12), RNG.normal(size=12)
    a[2], b[5], a[8:] = np.nan, np.inf, np.nan  # the last group has none at all
    found = made({"a": a, "b": b}, advantage=how)
    reward = a + b
    scored = np.isfinite(reward)
    np.testing.assert_array_equal(found.unscored_M, ~scored)
    assert not found.advantage_M[torch.from_numpy(~scored)].any()
    assert found.advantage_M[torch.from_numpy(scored)].any()
    np.testing.assert_allclose(found.reward_M[2], reward[[0, 1, 3]].mean())
    np.testing.assert_allclose(found.reward_M[8:], reward[scored].mean())
    np.testing.assert_allclose(found.scores["a"][2], a[[0, 1, 3]].mean())
    if how in ("batch", "prompt"):  # of the images that have one alone
        expected = (reward - reward[scored].mean()) / reward[scored].std()
        np.testing.assert_allclose(found.advantage_M[scored], expected[scored], rtol=1e-9)
    assert all(bool(value.isfinite().all()) for value in (found.reward_M, *found.scores.values()))


def test_a_reward_without_any_score_is_named() -> None:
    scores = {"a": np.zeros(8), "b": np.full(8, np.nan)}
    with pytest.raises(InputError, match="the reward b gave none of 8 images a score"):
        made(scores)
    with pytest.raises(InputError, match="b"):  # held out: it is of no use either
        made(scores, weights={"a": 1.0})
    half = np.where(np.arange(8) % 2 == 0, np.nan, 1.0)
    with pytest.raises(InputError, match="by all of a, b"):
        made({"a": half, "b": half[::-1].copy()})


def test_the_statistics_of_a_prompt_are_of_its_last_rewards() -> None:
    """As ddpo-pytorch's tracker: the last 32; with fewer than 16 those of the step's images."""
    tracker, seen = PromptStatistics(), {}
    for block in range(12):
        prompts = [int(prompt) for prompt in RNG.integers(0, 3, 2).repeat(4)] + [99] * (block == 0)
        values = RNG.normal(size=len(prompts))
        for prompt, value in zip(prompts, values, strict=True):
            seen[prompt] = [*seen.get(prompt, []), value][-32:]
        for _ in range(2):  # a block that is made again counts once
            tracker.add(block, prompts, values.tolist())
        found = tracker.advantages(torch.from_numpy(values), prompts, torch.from_numpy(values))
        among = [seen[p] if len(seen[p]) >= 16 else values for p in prompts]
        expected = [(v - np.mean(a)) / np.std(a) for v, a in zip(values, among, strict=True)]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
        again = PromptStatistics()
        again.load(tracker.state())
        assert (again.of, again.block) == (tracker.of, tracker.block)
        tracker = again
    assert max(map(len, seen.values())) == 32


def test_diversity_is_one_less_the_mean_cosine_with_the_others() -> None:
    embedding = RNG.normal(size=(6, 5))
    found = diversity(torch.from_numpy(embedding), 3)
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    expected = [
        1 - np.mean([unit[i] @ unit[j] for j in range(i // 3 * 3, i // 3 * 3 + 3) if j != i])
        for i in range(6)
    ]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    alike = torch.from_numpy(embedding[:1].repeat(3, 0))
    assert diversity(alike, 3).abs().max() < 1e-12
