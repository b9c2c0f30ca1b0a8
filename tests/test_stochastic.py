"""Solvers with noise: against diffusers, a plain writing of Flow-GRPO's step, torch's Normal."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch.distributions import Normal

from raypref.models.solvers import FlowEuler
from raypref.models.stochastic import StochasticSolver, ddim_eta, flow_sde

SCHEDULE = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
ABAR = SCHEDULE.alphas_cumprod
B, SHAPE = 3, (4, 8, 8)


def draw(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((*shape, B, *SHAPE), generator=generator, dtype=torch.float64)


def trailing(steps: int) -> torch.Tensor:
    return 999 - torch.arange(steps) * (1000 // steps)


def levels(steps: int) -> torch.Tensor:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    return scheduler.sigmas[:-1].double()


def every_sample(grid_n: torch.Tensor) -> torch.Tensor:
    return grid_n[:, None].expand(-1, B)


def run(solver: StochasticSolver, x: torch.Tensor, noise_n: torch.Tensor) -> list[torch.Tensor]:
    """All states, with a smooth stand-in for a network."""
    states = [x]
    for i, noise in enumerate(noise_n):
        x = solver.step(i, x, torch.tanh(x + i / 10), noise).x_BCHW
        states.append(x)
    return states


@pytest.mark.parametrize("steps", [2, 10, 50])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_with_eta_is_that_of_diffusers(steps: int, eta: float) -> None:
    scheduler = DDIMScheduler.from_config(
        SCHEDULE.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == trailing(steps).tolist()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    solver = ddim_eta(ABAR, every_sample(trailing(steps)), eta=eta)
    x, noise_n = draw(0), draw(1, steps)
    ours = run(solver, x, noise_n)
    for i, t in enumerate(scheduler.timesteps):
        epsilon = torch.tanh(x + i / 10)
        x = scheduler.step(epsilon, t, x, eta=eta, variance_noise=noise_n[i]).prev_sample
        assert (ours[i + 1] - x).abs().max() < 1e-9 * max(1, x.abs().max().item()), i
    assert solver.noisy_n == [eta > 0] * (steps - 1) + [False]


def test_ddim_keeps_a_grid_for_each_sample() -> None:
    grid = torch.stack([torch.tensor([950, 640, 300, 7]) + offset for offset in (0, 10, 49)], dim=1)
    x, noise_n = draw(2), draw(3, 4)
    together = run(ddim_eta(ABAR, grid, eta=0.8), x, noise_n)[-1]
    for b in range(B):
        alone = ddim_eta(ABAR, grid[:, b : b + 1], eta=0.8)
        assert torch.equal(run(alone, x[b : b + 1], noise_n[:, b : b + 1])[-1], together[b : b + 1])


def plain_flow_step(
    sigmas: list[float], i: int, x: torch.Tensor, v: torch.Tensor, a: float, constant: bool
) -> tuple[torch.Tensor, float]:
    """Mean and deviation of a step, from the drift and the score."""
    sigma, after = sigmas[i], sigmas[i + 1]
    dt = after - sigma
    bounded = sigmas[1] if sigma == 1 else sigma
    s = a if constant else a * math.sqrt(sigma / (1 - bounded))
    clean, noise = x - sigma * v, x + (1 - sigma) * v
    assert torch.allclose((1 - sigma) * clean + sigma * noise, x)
    score = -noise / sigma
    return x + (v - s**2 / 2 * score) * dt, s * math.sqrt(-dt)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("steps", [2, 10, 28])
def test_a_flows_step_is_that_of_flow_grpo_and_dance_grpo(steps: int, constant: bool) -> None:
    sigmas = [*levels(steps).tolist(), 0.0]
    assert sigmas[0] == 1
    solver = flow_sde(every_sample(levels(steps)), eta=0.7, constant=constant)
    x, v, noise = draw(4), draw(5), draw(6)
    for i in range(steps):
        mean, std = plain_flow_step(sigmas, i, x, v, 0.7 * (i < steps - 1), constant)
        step = solver.step(i, x, v, noise)
        assert (step.x_BCHW - mean - std * noise).abs().max() < 1e-9, i
        assert step.std_B.tolist() == pytest.approx([std] * B, rel=1e-12)
    assert solver.noisy_n == [True] * (steps - 1) + [False]


def test_the_flows_sde_keeps_its_marginals() -> None:
    """Of data 2 + N(0, 1) / 2 the velocity is known; 400 steps of the SDE end in that data."""
    sigmas = torch.linspace(1, 0.0025, 400, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((20000, 1, 1, 1), generator=generator, dtype=torch.float64)
    solver = flow_sde(sigmas[:, None].expand(-1, len(x)), eta=0.7)
    for i, sigma in enumerate(sigmas.tolist()):
        variance = (1 - sigma) ** 2 * 0.25 + sigma**2
        residual = (x - 2 * (1 - sigma)) / variance
        velocity = sigma * residual - (2 + (1 - sigma) * 0.25 * residual)
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        x = solver.step(i, x, velocity, noise).x_BCHW
    assert x.mean().item() == pytest.approx(2, abs=0.03)
    assert x.std().item() == pytest.approx(0.5, abs=0.03)


def test_without_noise_a_flow_is_eulers_method() -> None:
    sigmas, x, noise_n = every_sample(levels(7)), draw(7), draw(8, 7)
    ours = run(flow_sde(sigmas, eta=0.0), x, noise_n)
    euler = FlowEuler(sigmas)
    for i in range(7):
        x, _ = euler.step(i, x, torch.tanh(x + i / 10), None, first=0)
        assert (ours[i + 1] - x).abs().max() < 1e-12


SOLVERS = {
    "ddim": lambda **noise: ddim_eta(ABAR, every_sample(trailing(6)), **noise),
    "flow": lambda **noise: flow_sde(every_sample(levels(6)), **noise),
    "dance": lambda **noise: flow_sde(every_sample(levels(6)), constant=True, **noise),
}


@pytest.mark.parametrize("kind", SOLVERS)
def test_outside_its_window_a_step_has_no_noise(kind: str) -> None:
    window = SOLVERS[kind](eta=0.6, window=range(2, 4))
    noisy, plain = SOLVERS[kind](eta=0.6), SOLVERS[kind](eta=0.0)
    assert window.noisy_n == [False, False, True, True, False, False]
    x, prediction, noise = draw(9), draw(10), draw(11)
    for i in range(6):
        like = noisy if i in (2, 3) else plain
        ours, theirs = (each.step(i, x, prediction, noise) for each in (window, like))
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other)
    # The last step never has any, whatever the window.
    assert SOLVERS[kind](eta=0.6, window=range(4, 9)).noisy_n == [False] * 4 + [True, False]


@pytest.mark.parametrize("kind", SOLVERS)
def test_a_likelihood_is_a_denoising_error(kind: str) -> None:
    """Against torch's Normal: ratios of two predictions, and the place of the maximum."""
    solver = SOLVERS[kind](eta=0.6)
    for i in range(5):
        x, old, new, noise = draw(20 + i), draw(30 + i), draw(40 + i), draw(50 + i)
        step = solver.step(i, x, old, noise)
        nothing = torch.zeros_like(noise)
        std = step.std_B[:, None, None, None]

        def log_likelihood(prediction: torch.Tensor) -> torch.Tensor:
            mean = solver.step(i, x, prediction, nothing).x_BCHW  # noqa: B023
            return Normal(mean, std).log_prob(step.x_BCHW).flatten(1).mean(1)  # noqa: B023

        def error(prediction: torch.Tensor) -> torch.Tensor:
            return (prediction - step.target_BCHW).square().flatten(1).mean(1)  # noqa: B023

        ratio = log_likelihood(new) - log_likelihood(old)
        ours = -step.kappa_B * (error(new) - error(old))
        assert ours.tolist() == pytest.approx(ratio.tolist(), rel=1e-9)
        assert (log_likelihood(step.target_BCHW) > log_likelihood(old)).all()
        likeliest = solver.step(i, x, step.target_BCHW, nothing).x_BCHW
        assert (likeliest - step.x_BCHW).abs().max() < 1e-9
    last = solver.step(5, x, old, noise)
    assert not last.kappa_B.any() and not last.std_B.any()
