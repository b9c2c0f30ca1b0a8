"""The policy's sampler against diffusers' scheduler, and the early stop against full rollouts."""

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler

from raypref.align.rollout import policy_states
from raypref.models.families.sd15 import SD15Conditioning
from raypref.models.solvers import DPMSolverPP2M, Solver, jittered_grid

SCHEDULE = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
STEPS, B = 20, 6


def solver_of(grid: torch.Tensor) -> Solver:
    return DPMSolverPP2M(SCHEDULE.alphas_cumprod, grid)


def predict(x: torch.Tensor, timesteps: torch.Tensor, prompts: SD15Conditioning) -> torch.Tensor:
    """A smooth stand-in for a network whose output depends on all its inputs."""
    t = timesteps.view(-1, 1, 1, 1) / 1000
    return torch.tanh(0.8 * x + t) + 0.1 * prompts.sequence_BLD.mean(dim=(1, 2)).view(-1, 1, 1, 1)


def draws(seed: int) -> tuple[torch.Tensor, SD15Conditioning, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(B, 4, 8, 8, generator=generator, dtype=torch.float64)
    prompts = torch.randn(B, 3, 5, generator=generator, dtype=torch.float64)
    offsets = torch.randint(50, (B,), generator=generator)
    return start, SD15Conditioning(prompts), offsets


def full_trajectory(
    start: torch.Tensor, prompts: SD15Conditioning, grid: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(x before the step, epsilon) at every step, by diffusers, one sample at a time."""
    columns = []
    for b in range(len(start)):
        scheduler = DPMSolverMultistepScheduler.from_config(SCHEDULE.config)
        scheduler.set_timesteps(timesteps=grid[:, b].tolist())
        x, states = start[b : b + 1], []
        for t in scheduler.timesteps:
            eps = predict(x, t[None], prompts[b : b + 1])
            states.append((x, eps))
            x = scheduler.step(eps, t, x).prev_sample
        columns.append(states)
    return [
        (torch.cat([c[i][0] for c in columns]), torch.cat([c[i][1] for c in columns]))
        for i in range(len(grid))
    ]


def test_grid_is_the_released_one() -> None:
    grid = jittered_grid(steps=20, train_steps=1000, offsets_B=torch.tensor([0, 49]))
    assert grid[:, 0].tolist() == list(range(950, -1, -50))
    assert (grid[:, 1] - grid[:, 0]).tolist() == [49] * 20
    assert grid.max() == 999


def test_every_sample_follows_its_own_grid_like_diffusers_does_for_one() -> None:
    start, prompts, offsets = draws(0)
    grid = jittered_grid(steps=STEPS, train_steps=1000, offsets_B=offsets)
    wanted = full_trajectory(start, prompts, grid)
    solver = solver_of(grid)
    x, last = start, None
    for i in range(STEPS):
        assert (x - wanted[i][0]).abs().max() < 1e-4 * max(1.0, x.abs().max().item()), i
        x, last = solver.step(i, x, predict(x, grid[i], prompts), last, first=0)
    assert x.isfinite().all()


def test_stopping_early_gives_the_state_of_the_full_rollout() -> None:
    start, prompts, offsets = draws(1)
    grid = jittered_grid(steps=STEPS, train_steps=1000, offsets_B=offsets)
    stop = torch.tensor([7, 0, 19, 7, 12, 1])
    calls = []

    def counted(x: torch.Tensor, t: torch.Tensor, p: SD15Conditioning) -> torch.Tensor:
        calls.append(len(x))
        return predict(x, t, p)

    got = policy_states(
        counted,
        solver_of,
        start,
        prompts,
        grid_nB=grid,
        stops_SB=stop[None],
    )
    wanted = full_trajectory(start, prompts, grid)
    for b, k in enumerate(stop.tolist()):
        x, eps = wanted[k]
        assert (got.x_BCHW[b] - x[b]).abs().max() < 1e-4 * max(1.0, x[b].abs().max().item())
        assert (got.prediction_BCHW[b] - eps[b]).abs().max() < 1e-4
        assert got.timesteps_B[b] == grid[k, b]
    assert sum(calls) == sum(k + 1 for k in stop.tolist()), "nothing is run past its stop"


def test_two_stops_are_two_states_of_one_trajectory() -> None:
    start, prompts, offsets = draws(3)
    grid = jittered_grid(steps=STEPS, train_steps=1000, offsets_B=offsets)
    stops = torch.tensor([[7, 0, 19, 7, 12, 1], [3, 5, 2, 19, 13, 0]])
    calls = []

    def counted(x: torch.Tensor, t: torch.Tensor, p: SD15Conditioning) -> torch.Tensor:
        calls.append(len(x))
        return predict(x, t, p)

    got = policy_states(counted, solver_of, start, prompts, grid_nB=grid, stops_SB=stops)
    wanted = full_trajectory(start, prompts, grid)
    for s in range(2):
        for b, k in enumerate(stops[s].tolist()):
            x, eps = wanted[k]
            at = s * B + b
            assert (got.x_BCHW[at] - x[b]).abs().max() < 1e-4 * max(1.0, x[b].abs().max().item())
            assert (got.prediction_BCHW[at] - eps[b]).abs().max() < 1e-4
            assert got.timesteps_B[at] == grid[k, b]
    assert sum(calls) == sum(k + 1 for k in stops.max(0).values.tolist())


def test_the_state_of_a_sample_does_not_depend_on_the_others() -> None:
    start, prompts, offsets = draws(2)
    grid = jittered_grid(steps=STEPS, train_steps=1000, offsets_B=offsets)
    stop = torch.tensor([3, 9, 9, 0, 17, 5])
    together = policy_states(predict, solver_of, start, prompts, grid_nB=grid, stops_SB=stop[None])
    for b in range(B):
        alone = policy_states(
            predict,
            solver_of,
            start[b : b + 1],
            prompts[b : b + 1],
            grid_nB=grid[:, b : b + 1],
            stops_SB=stop[None, b : b + 1],
        )
        assert (together.x_BCHW[b] - alone.x_BCHW[0]).abs().max() < 1e-10
        assert (together.prediction_BCHW[b] - alone.prediction_BCHW[0]).abs().max() < 1e-10
