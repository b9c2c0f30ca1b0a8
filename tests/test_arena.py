"""The arena against a published implementation, mpmath, Monte Carlo and simulated generators."""

import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
import trueskill

from raypref.core.rows import seed_of
from raypref.pairs.arena import (
    Arena,
    ArenaConfig,
    drawn,
    fit,
    gap,
    probit_fit,
    truncated,
    walk_order,
)

NO_DRIFT = ArenaConfig()
WITH_ALL = ArenaConfig(prior_mean=3.0, prior_std=2.0, noise=0.7, drift=0.05, draw_probability=0.25)
Games = list[tuple[int, int, bool]]  # first, second, whether they drew


def arrays(games: Games) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    first, second, draw = (np.array(column) for column in zip(*games, strict=True))
    return first, second, draw


def walked(games: Games, config: ArenaConfig, generators: int) -> Arena:
    return fit(*arrays(games), generators=generators, config=config)


def by_the_package(games: Games, config: ArenaConfig, generators: int) -> np.ndarray:
    """Mean and standard deviation per generator, [2, generators]."""
    environment = trueskill.TrueSkill(
        mu=config.prior_mean,
        sigma=config.prior_std,
        beta=config.noise,
        tau=config.drift,
        draw_probability=config.draw_probability,
        backend="mpmath",
    )
    ratings = [environment.create_rating() for _ in range(generators)]
    for one, other, draw in games:
        ratings[one], ratings[other] = trueskill.rate_1vs1(
            ratings[one], ratings[other], drawn=draw, env=environment
        )
    return np.array([[each.mu for each in ratings], [each.sigma for each in ratings]])


def simulated(
    count: int, *, seed: int, generators: int = 6
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True capabilities, and the winners and losers of games between them."""
    rng = np.random.default_rng(seed)
    true = np.linspace(15, 35, generators)
    one, other = rng.integers(0, generators, (2, count))
    quality = true[[one, other]] + NO_DRIFT.noise * rng.standard_normal((2, count))
    won = quality[0] > quality[1]
    return true, np.where(won, one, other), np.where(won, other, one)


# ------------------------------------------------------------------ 1: the walk

WIN: Games = [(0, 1, False)]
UPSET: Games = [(0, 1, False)] * 5 + [(1, 0, False)]


@pytest.mark.parametrize("config", [NO_DRIFT, WITH_ALL], ids=["default", "drift and draws"])
@pytest.mark.parametrize("games", [WIN, UPSET], ids=["win", "upset"])
def test_a_step_of_the_walk_is_that_of_the_package(config: ArenaConfig, games: Games) -> None:
    got = walked(games, config, 2)
    np.testing.assert_allclose(got[:2], by_the_package(games, config, 2), rtol=1e-12)


def test_a_draw_is_that_of_the_package_whoever_is_named_first() -> None:
    for games in ([(0, 1, True)], [*UPSET, (0, 1, True)], [*UPSET, (1, 0, True)]):
        got = walked(games, WITH_ALL, 2)
        np.testing.assert_allclose(got[:2], by_the_package(games, WITH_ALL, 2), rtol=1e-11)


def test_a_long_walk_is_that_of_the_package() -> None:
    rng = np.random.default_rng(1)
    games: Games = []
    while len(games) < 120:
        one, other = rng.integers(0, 5, 2).tolist()
        if one != other:
            games.append((one, other, bool(rng.random() < 0.2)))
    got = walked(games, WITH_ALL, 5)
    np.testing.assert_allclose(got[:2], by_the_package(games, WITH_ALL, 5), rtol=1e-9)
    assert got.games.sum() == 2 * len(games)


def test_an_upset_beyond_a_million_to_one_is_that_of_the_package() -> None:
    config = ArenaConfig(prior_mean=0.0, prior_std=1.0, noise=0.02)
    games: Games = [(i, i + 1, False) for _ in range(40) for i in range(9)]
    before = walked(games, config, 10)
    spread = math.sqrt(before.std[0] ** 2 + before.std[9] ** 2 + 2 * config.noise**2)
    assert (before.mean[9] - before.mean[0]) / spread < -5
    games.append((9, 0, False))
    after = walked(games, config, 10)
    np.testing.assert_allclose(after[:2], by_the_package(games, config, 10), rtol=1e-8, atol=1e-10)


# ------------------------------------------------------------------ 2: the gap


@pytest.mark.parametrize("t", [-1e6, -1e3, -100, -38, -30, -9, -5, -4.99, -3, -1, 0, 1, 3, 9])
def test_moments_of_a_truncated_normal_are_those_of_60_digits(t: float) -> None:
    with mpmath.workdps(60):
        exact = mpmath.mpf(t)
        shift = mpmath.npdf(exact) / mpmath.ncdf(exact)
        wanted = [float(x) for x in (shift, exact + shift, 1 - shift * (exact + shift))]
    assert list(truncated(t)) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("u", [-60.0, -7.0, -0.3, 0.0, 0.5, 3.0, 45.0])
@pytest.mark.parametrize("margin", [1e-8, 1e-3, 0.5, 3.0])
def test_moments_within_a_margin_are_those_of_1000_digits(u: float, margin: float) -> None:
    with mpmath.workdps(1000):
        low, high = -mpmath.mpf(margin) - u, mpmath.mpf(margin) - u
        mass = mpmath.ncdf(high) - mpmath.ncdf(low)
        shift = (mpmath.npdf(low) - mpmath.npdf(high)) / mass
        squares = (high * mpmath.npdf(high) - low * mpmath.npdf(low)) / mass
        wanted = float(shift), float(1 - shift**2 - squares)
    got = drawn(u, margin)
    assert got[0] == pytest.approx(wanted[0], rel=1e-9, abs=1e-12)
    assert got[1] == pytest.approx(wanted[1], rel=1e-6, abs=1e-8)


def gap_of(m: float, s: float, **settings: float) -> tuple[float, float]:
    """Of a pair whose qualities differ by N(m, s^2) before the choice is known."""
    config = ArenaConfig(spread="posterior", noise=1.0, **settings)  # type: ignore[arg-type]
    arena = Arena(np.array([m, 0.0]), np.full(2, s / math.sqrt(2)), np.ones(2, np.int64))
    mean, std = gap(arena, np.array([0]), np.array([1]), config)
    return mean.item(), std.item()


@pytest.mark.parametrize(
    "m, s, wanted",
    [(0, 1, 0.7979), (2, 1, 2.0552), (-1, 1, 0.5251), (-3, 1, 0.2831), (-6, 2, 0.5662)],
)
def test_a_gap_is_the_mean_of_the_differences_that_fit_the_choice(
    m: float, s: float, wanted: float
) -> None:
    mean, std = gap_of(m, s)
    assert mean == pytest.approx(wanted, abs=1e-4)
    rng = np.random.default_rng(2)
    d = m + s * rng.standard_normal(4_000_000)
    d = d[d > 0]
    assert mean == pytest.approx(d.mean(), abs=5 * d.std() / math.sqrt(len(d)))
    assert std == pytest.approx(d.std(), rel=5 / math.sqrt(len(d)))


def test_where_ties_are_possible_a_choice_says_more() -> None:
    margin = WITH_ALL.model_copy(update={"noise": 1.0}).draw_margin
    mean, std = gap_of(0.3, 1.5, draw_probability=0.25)
    rng = np.random.default_rng(3)
    d = 0.3 + 1.5 * rng.standard_normal(2_000_000)
    d = d[d > margin]
    assert mean == pytest.approx(d.mean(), abs=5 * d.std() / math.sqrt(len(d)))
    assert std == pytest.approx(d.std(), rel=5 / math.sqrt(len(d)))
    assert mean > gap_of(0.3, 1.5)[0]


def test_the_noise_of_two_images_is_part_of_the_spread() -> None:
    arena = Arena(np.array([1.0, 0.0]), np.array([0.3, 0.4]), np.ones(2, np.int64))
    sides = np.array([0]), np.array([1])
    config = ArenaConfig(noise=2.0)
    spread = math.sqrt(0.3**2 + 0.4**2 + 2 * 2.0**2)
    assert gap(arena, *sides, config)[0].item() == pytest.approx(gap_of(1.0, spread)[0], rel=1e-12)


# ------------------------------------------------------------------ 3: recovery


def test_known_capabilities_are_found_again_and_their_odds_are_right() -> None:
    true, winners, losers = simulated(20_000, seed=4)
    arena = fit(winners, losers, generators=6, config=NO_DRIFT)
    assert np.corrcoef(true, arena.mean)[0, 1] > 0.99
    # New games, ten bins of the predicted probability.
    _, winners, losers = simulated(50_000, seed=5)
    flipped = np.random.default_rng(6).random(len(winners)) < 0.5
    one, other = np.where(flipped, losers, winners), np.where(flipped, winners, losers)
    z = (arena.mean[one] - arena.mean[other]) / (math.sqrt(2) * NO_DRIFT.noise)
    predicted = torch.special.ndtr(torch.tensor(z)).numpy()
    for part in np.array_split(np.argsort(predicted, kind="stable"), 10):
        rate, expected = 1 - flipped[part].mean(), predicted[part].mean()
        assert rate == pytest.approx(expected, abs=0.03)


def test_the_fitted_gap_tells_as_much_of_the_images_as_the_true_capabilities_would() -> None:
    true, winners, losers = simulated(30_000, seed=12)
    rng = np.random.default_rng(13)
    # New qualities of the same generators, and what is chosen by them.
    sides = np.stack([winners, losers])
    quality = true[sides] + NO_DRIFT.noise * rng.standard_normal(sides.shape)
    first = quality[0] > quality[1]
    chosen, rejected = np.where(first, *sides), np.where(first, *sides[::-1])
    difference = np.abs(quality[0] - quality[1])
    arena = fit(winners, losers, generators=6, config=NO_DRIFT)
    exact = Arena(true, np.full(6, 1e-9), arena.games)
    ours, best = (
        np.corrcoef(gap(each, chosen, rejected, NO_DRIFT)[0], difference)[0, 1]
        for each in (arena, exact)
    )
    assert 0.6 < best < 0.8
    assert ours == pytest.approx(best, abs=5e-3)


# ------------------------------------------------------------------ 4: invariances


def test_what_must_not_matter_does_not() -> None:
    _, winners, losers = simulated(500, seed=7)
    first = fit(winners, losers, generators=6, config=NO_DRIFT)

    shifted = fit(winners, losers, generators=6, config=ArenaConfig(prior_mean=-4.0))
    np.testing.assert_allclose(shifted.mean + 29, first.mean, rtol=1e-12)
    np.testing.assert_allclose(shifted.std, first.std, rtol=1e-12)

    names = np.array([3, 1, 5, 0, 2, 4])
    renamed = fit(names[winners], names[losers], generators=6, config=NO_DRIFT)
    assert np.array_equal(renamed.mean[names], first.mean)

    different = winners != losers
    assert not different.all(), "the example has pairs of one generator"
    without = fit(winners[different], losers[different], generators=6, config=NO_DRIFT)
    assert all(map(np.array_equal, without, first))
    assert first.games.sum() == 2 * different.sum()

    ties = np.zeros(500, bool)
    ties[::3] = True
    left_out = fit(winners, losers, ties, generators=6, config=NO_DRIFT)
    kept = fit(winners[~ties], losers[~ties], generators=6, config=NO_DRIFT)
    assert all(map(np.array_equal, left_out, kept))


def test_a_generator_without_games_keeps_its_prior() -> None:
    arena = walked([(0, 1, False)], NO_DRIFT, 3)
    assert (arena.mean[2], arena.std[2], arena.games[2]) == (25.0, 25 / 3, 0)


# ------------------------------------------------------------------ 5: order


def test_the_order_is_drawn_from_seed_and_ids_alone() -> None:
    ids = [f"pair {number}" for number in range(200)]
    order = walk_order(ids, 3)
    assert order.tolist() == sorted(range(200), key=lambda i: seed_of(3, "arena", ids[i]))
    turned = walk_order(reversed(ids), 3)
    assert [ids[i] for i in order] == [ids[::-1][i] for i in turned]
    assert order.tolist() != walk_order(ids, 4).tolist()


def test_the_order_matters_less_the_more_pairs_there_are() -> None:
    """For differences. What all have in common says nothing, and wanders."""
    spreads = []
    for count in (2_000, 10_000, 50_000):
        _, winners, losers = simulated(count, seed=8)
        means = []
        for seed in range(10):
            order = np.random.default_rng(seed).permutation(count)
            mean = fit(winners[order], losers[order], generators=6, config=NO_DRIFT).mean
            means.append(mean - mean.mean())
        spreads.append(np.std(means, axis=0).mean())
    assert all(after < 0.65 * before for before, after in pairwise(spreads)), spreads
    assert spreads[-1] < 0.01 * math.sqrt(2) * NO_DRIFT.noise


def test_walk_and_batch_fit_agree() -> None:
    _, winners, losers = simulated(20_000, seed=9)
    walk = fit(winners, losers, generators=6, config=NO_DRIFT).mean
    batch = probit_fit(winners, losers, generators=6, config=NO_DRIFT)
    centred = (walk - walk.mean()) - (batch - batch.mean())
    assert np.abs(centred).max() < 0.1 * math.sqrt(2) * NO_DRIFT.noise
    order = np.random.default_rng(0).permutation(len(winners))
    again = probit_fit(winners[order], losers[order], generators=6, config=NO_DRIFT)
    assert np.array_equal(again, batch)


@pytest.mark.parametrize("probability", [0.0, 0.2])
def test_the_batch_fit_is_the_mode_that_an_optimizer_finds(probability: float) -> None:
    config = ArenaConfig(draw_probability=probability)
    _, winners, losers = simulated(300, seed=10, generators=4)
    ties = np.random.default_rng(11).random(300) < 0.15
    got = probit_fit(winners, losers, ties, generators=4, config=config)

    used = (winners != losers) & (~ties | (probability > 0))
    one, other, tie = (torch.tensor(x[used]) for x in (winners, losers, ties))
    at = torch.full((4,), 25.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([at], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        scale = math.sqrt(2) * config.noise
        d, margin = (at[one] - at[other]) / scale, config.draw_margin / scale
        won = torch.special.log_ndtr(d - margin)
        within = torch.special.ndtr(margin - d) - torch.special.ndtr(-margin - d)
        logs = torch.where(tie, within.clamp(min=1e-300).log(), won)
        loss = -logs.sum() + 0.5 * ((at - 25) / config.prior_std).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    np.testing.assert_allclose(got, at.detach().numpy(), atol=1e-5)


def test_the_prior_keeps_a_generator_finite_that_always_wins() -> None:
    winners, losers = np.zeros(1000, np.int64), np.ones(1000, np.int64)
    walk = fit(winners, losers, generators=2, config=NO_DRIFT).mean
    batch = probit_fit(winners, losers, generators=2, config=NO_DRIFT)
    for mean in (walk, batch):
        assert 30 < mean[0] < 60 and mean.sum() == pytest.approx(50)


# ------------------------------------------------------------------ 7: limits


def test_a_gap_is_positive_and_grows_with_the_difference_and_the_spread() -> None:
    differences = [-1e7, -1e3, -40, -30.1, -29.9, -5.1, -4.9, -1, 0, 1, 5, 40, 1e3]
    gaps = [gap_of(m, 1.0)[0] for m in differences]
    assert gaps[0] > 0 and all(a < b for a, b in pairwise(gaps))
    spreads = [gap_of(-2.0, s)[0] for s in (0.01, 0.1, 1.0, 10.0)]
    assert spreads[0] > 0 and all(a < b for a, b in pairwise(spreads))
    assert gap_of(0.0, 3.0)[0] == pytest.approx(3 * math.sqrt(2 / math.pi), rel=1e-14)
    assert gap_of(50.0, 2.0) == pytest.approx((50.0, 2.0), rel=1e-12)
    assert gap_of(-5000.0, 2.0) == pytest.approx((4 / 5000, 4 / 5000), rel=1e-5)  # an upset


def test_no_choices_are_an_arena_of_priors() -> None:
    none = np.array([], np.int64)
    arena = fit(none, none, generators=2, config=NO_DRIFT)
    assert arena.mean.tolist() == [25.0, 25.0]
    assert probit_fit(none, none, generators=2, config=NO_DRIFT).tolist() == [25.0, 25.0]
    assert [part.shape for part in gap(arena, none, none, NO_DRIFT)] == [(0,), (0,)]
