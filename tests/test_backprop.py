"""Gradients of rewards against a plain implementation: whole graphs, nothing recomputed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_inpainting import family_of
from plain_lora import seeded
from plain_training import Plain
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from training import BASES, LORAS, STEPS, denoiser, pairs, photographs, training, twin

from raypref.align.backprop import Drawn, drawn_images
from raypref.align.backprop_config import BackpropConfig, Plan
from raypref.align.image_scores import LatentScores, Scores
from raypref.align.loop import Alone, train
from raypref.align.residuals import LEARNER
from raypref.models import adapters
from raypref.models.backbone import load_autoencoder
from raypref.models.families.conditioning import Conditioning
from raypref.models.solvers import DPMSolverPP2M, FlowEuler


class Redness:
    """A smooth reward of all pixels, whose size depends on the prompt."""

    def score_pixels(self, pixels_BCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        length_B = torch.tensor([float(len(text)) for text in prompts]).to(pixels_BCHW)
        red_B = (pixels_BCHW[:, 0] - pixels_BCHW[:, 1:].mean(1)).mean((1, 2))
        return length_B / 10 * red_B.tanh() + (3 * pixels_BCHW).sin().mean((1, 2, 3))


class Detail:
    """Differences of neighbours."""

    def score_pixels(self, pixels_BCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        return -(pixels_BCHW[..., 1:] - pixels_BCHW[..., :-1]).square().mean((1, 2, 3))


class Models:
    """As `WorkerScores`, with a held-out reward and embeddings."""

    models: Mapping[str, Any] = {"pickscore": Redness(), "aesthetic": Detail()}

    def __call__(self, images: np.ndarray, prompts: Sequence[str], names: Sequence[str]) -> Scores:
        assert images.dtype == np.uint8
        values = {name: torch.from_numpy(images[..., 2].mean((1, 2))) for name in names}
        return Scores(values, torch.from_numpy(images[:, ::8, ::8].reshape(len(images), -1) / 255))


@cache
def judge(family: str) -> LatentScores:
    return LatentScores(load_autoencoder(BASES[family], device=torch.device("cpu")), Models())


REWARDS = {"pickscore": 1.0, "aesthetic": 5.0}
COMMON = {"steps": 20, "batch": 1, "lr": 1e-3, "rollout_steps": 4, "rewards": REWARDS}
FORMS: dict[str, dict[str, Any]] = {
    "draft all steps": {"objective": "draft", "steps_with_gradient": 4, "guidance": 1.0},
    "draft 2": {"objective": "draft", "steps_with_gradient": 2, "guidance": 3.0, "kl": 0.3},
    "draft LV": {
        "objective": "draft",
        "noises": 2,
        "guidance": 1.0,
        # Its gradient is small: one of 1e-5 would not show errors of 1e-6.
        "rewards": {name: 10 * weight for name, weight in REWARDS.items()},
    },
    "drtune": {
        "objective": "draft",
        "steps_with_gradient": 2,
        "spread": True,
        "stop_gradient": True,
        "guidance": 1.0,
    },
    "alignprop": {"objective": "alignprop", "steps_with_gradient": 4, "guidance": 2.0},
    "refl": {"objective": "refl", "late_from": 0.5, "scale": 0.5, "pretraining": 0.7},
    "refl deep": {
        "objective": "refl",
        "late_from": 0.25,
        "scale": 1.0,
        "pretraining": 0.0,
        "steps_with_gradient": 2,
        "stop_gradient": True,
        "kl": 0.2,
    },
}


def run(
    stage: BackpropConfig,
    folder: Path,
    *,
    family: str = "sd15",
    group=None,
    network=None,
    tell=None,
) -> list[dict[str, float]]:
    data = pairs(family=family)
    texts = tuple(caption for caption, _ in photographs(len(data)))
    return train(
        network or denoiser(family),
        replace(data, texts=texts),
        stage,
        LORAS[family],
        name="stage",
        draws=f"test-{stage.objective}",
        seed=0,
        folder=str(folder),
        start=None,
        group=group or Alone(),
        on_step=tell or (lambda metrics: None),
        judge=judge(family),
    )


@dataclass
class PlainBackprop(Plain):
    """One image at a time, one graph through all that takes a gradient."""

    decode: Callable[[Tensor], Tensor] = torch.zeros_like

    def loss(self, step: int, index: int) -> Tensor:
        stage, family = self.stage, self.family
        epoch, place = divmod(step * stage.batch + index, len(self.pairs))
        order = torch.randperm(len(self.pairs), generator=seeded(0, self.name, "epoch", epoch))
        pair = int(order[place])
        g = seeded(0, self.name, "sample", step, index)
        n, stop, count = stage.rollout_steps, stage.rollout_steps - 1, stage.steps_with_gradient
        if stage.objective == "refl":
            first = int(stage.late_from * n)  # of these numbers it is whole
            stop = first + int(torch.randint(n - first, (), generator=g))
        if stage.objective == "alignprop":
            count = 1 + int(torch.randint(count, (), generator=g))
        count = min(count, stop + 1)
        learned = list(range(stop + 1 - count, stop + 1))
        if stage.spread:
            apart = (stop + 1) // count
            start = int(torch.randint(stop + 1 - apart * (count - 1), (), generator=g))
            learned = [start + apart * i for i in range(count)]
        mark = int(torch.randint(stop + 1, (), generator=g))
        noises = torch.randn(
            (1 + getattr(stage, "noises", 0), *self.moments(0, 1, False)[0].shape), generator=g
        ).double()
        caption = self.pairs[pair][0]
        grid = family.even(n)
        number = iter(range(n))

        def guided(module: torch.nn.Module, x: Tensor, t: float) -> Tensor:
            return self.guided(module, [x], [t], caption)[0]

        def predict(x: Tensor, t: float) -> Tensor:
            found = guided(self.learner, x.detach() if stage.stop_gradient else x, t)
            return found if next(number) in learned else found.detach()

        states = family.rollout(predict, noises[0], grid)

        def clean(x: Tensor, prediction: Tensor, t: float) -> Tensor:
            if family.component == "unet":
                abar = family.abar[int(t)]
                return (x - (1 - abar) ** 0.5 * prediction) / abar**0.5
            return x - t / 1000 * prediction

        images = [clean(*states[stop])]
        for noise in noises[1:]:
            x = family.noised(images[0].detach(), noise, grid[-1])
            images.append(clean(x, guided(self.learner, x, grid[-1]), grid[-1]))
        total = torch.zeros((), dtype=torch.float64)
        for image in images:
            pixels = self.decode(image[None])
            reward = sum(
                weight * Models.models[name].score_pixels(pixels, [caption])[0]
                for name, weight in stage.rewards.items()
            )
            if stage.objective == "refl":
                own = stage.scale * torch.clamp(stage.target - reward, min=0)
            else:
                own = -reward
            total = total + own / len(images)
        if stage.kl:
            x, _, t = states[mark]
            x = x.detach()
            apart = guided(self.learner, x, t) - guided(self.reference, x, t).detach()
            total = total + stage.kl * apart.square().mean()
        if getattr(stage, "pretraining", 0):
            torch.rand(2, generator=g)  # flip and dropped caption: never
            t = family.draw_timestep(g)
            first, _, noise = torch.randn((3, *noises.shape[1:]), generator=g).double()
            photo = self.latent(pair, 1, False, first)
            noisy = family.noised(photo, noise, t)
            [said] = family.many(self.learner, [noisy], [t], [self.prompt(caption)])
            missed = said - family.target(photo, noise)
            total = total + stage.pretraining * missed.square().mean()
        return total


def stage_of(form: str, **update: Any) -> Any:
    return training(**{**COMMON, **FORMS[form], **update})


@pytest.mark.parametrize("family", STEPS)
@pytest.mark.parametrize("form", FORMS)
def test_steps_equal_a_plain_implementation(form: str, family: str, tmp_path: Path) -> None:
    stage, network = stage_of(form, steps=STEPS[family]), denoiser(family)
    gradients, values = [], []

    def note(metrics: dict[str, float]) -> None:
        vector = adapters.vector(network.module, LEARNER)
        values.append(vector.detach().clone())

    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: gradients.append(
            torch.cat([p.grad.flatten() for p in optimizer.param_groups[0]["params"]])
        )
    )
    try:
        history = run(stage, tmp_path, family=family, network=network, tell=note)
    finally:
        hook.remove()
    config = LORAS[family]
    plain = PlainBackprop(
        family_of(family, BASES[family].model),
        [(caption, photo, twin(photo)) for caption, photo in photographs(10)],
        stage,
        targets=config.targets,
        rank=config.rank,
        alpha=config.alpha,
        seed=0,
        name=f"test-{stage.objective}",
        decode=judge(family).autoencoder.decode,
    )
    for i in range(stage.steps):
        plain.step()
        assert history[i]["loss"] == pytest.approx(plain.losses[i], abs=1e-6)
        assert history[i]["grad_norm"] == pytest.approx(plain.norms[i], rel=1e-6, abs=1e-6)
        for ours, theirs in ((gradients[i], plain.clipped[i]), (values[i], plain.weights[i])):
            assert (ours - torch.cat([part.flatten() for part in theirs])).abs().max() < 1e-6
    assert max(row["grad_norm"] for row in history) > 1e-4
    assert (values[-1] - values[0]).abs().max() > 1e-3


@dataclass(frozen=True)
class Nothing(Conditioning):
    """A caption of one number."""

    number_B1: Tensor


def tiny(theta: Tensor, *, learned: Sequence[int], stop_gradient: bool, stop: int = 3) -> Drawn:
    """Four solver steps of a network of three weights on latents of two numbers."""
    schedule = torch.linspace(0.99, 0.02, 1000, dtype=torch.float64)
    start = torch.tensor([0.3, -1.1], dtype=torch.float64).view(1, 2, 1, 1)

    def network(x: Tensor, t: Tensor, prompts: Any) -> Tensor:
        turned = (theta[0] * x + theta[1] * x.flip(1)).tanh()
        return turned + theta[2] * t[:, None, None, None] / 1000

    return drawn_images(
        lambda first: network,
        lambda grid: DPMSolverPP2M(schedule, grid),
        start,
        Nothing(torch.zeros(1, 1)),
        grid_n=torch.tensor([999, 700, 400, 100]),
        plans=[Plan(stop, frozenset(learned))],
        marks=[0],
        stop_gradient=stop_gradient,
        recompute=True,
    )


def test_all_steps_of_a_tiny_vector_have_the_gradient_of_finite_differences() -> None:
    theta = torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64, requires_grad=True)

    def reward(values: Tensor) -> Tensor:
        return tiny(values, learned=range(4), stop_gradient=False).x0_BCHW.sin().sum()

    assert torch.autograd.gradcheck(reward, theta)


def test_the_stopped_gradient_is_that_of_its_formula() -> None:
    """Euler's method: x0 = x_T + the sum of (sigma_i+1 - sigma_i) v_i, each v_i's input held."""
    sigmas = torch.tensor([1.0, 0.7, 0.3], dtype=torch.float64)
    theta = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    start = torch.tensor([0.3, -1.1], dtype=torch.float64).view(1, 2, 1, 1)
    plan = Plan(2, frozenset({0, 2}))
    x0 = drawn_images(
        lambda first: lambda x, t, prompts: (theta * x).sin(),
        lambda grid: FlowEuler(grid.double()),
        start,
        Nothing(torch.zeros(1, 1)),
        grid_n=sigmas,
        plans=[plan],
        marks=[0],
        stop_gradient=True,
        recompute=False,
    ).x0_BCHW
    (found,) = torch.autograd.grad(x0.sum(), theta)
    x, expected = start, 0.0
    for i, change in enumerate([0.7 - 1.0, 0.3 - 0.7, 0.0 - 0.3]):
        if i in plan.learned:
            expected += (change * x * (theta * x).cos()).sum().item()
        x = x + change * (theta * x).sin().detach()
    assert found.item() == pytest.approx(expected, rel=1e-12)
    assert x0.flatten().tolist() == pytest.approx(x.flatten().tolist())


def test_a_step_without_a_gradient_of_its_own_passes_one_on() -> None:
    theta = torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64, requires_grad=True)
    first = tiny(theta, learned=[0], stop_gradient=True).x0_BCHW
    assert torch.autograd.grad(first.sum(), theta)[0].abs().max() > 0


def test_plans_are_as_published() -> None:
    generator = torch.Generator().manual_seed(0)
    refl = training("refl")
    stops = {refl.plan(generator).stop for _ in range(300)}
    assert stops == set(range(30, 40))
    drawn = [training("alignprop").plan(generator) for _ in range(800)]
    assert {len(plan.learned) for plan in drawn} == set(range(1, 51))
    assert all(max(plan.learned) == plan.stop == 49 for plan in drawn)
    drtune = training("draft", steps_with_gradient=5, spread=True, stop_gradient=True)
    plans = [sorted(drtune.plan(generator).learned) for _ in range(300)]
    assert {plan[0] for plan in plans} == set(range(10))
    assert all(np.diff(plan).tolist() == [10] * 4 for plan in plans)
