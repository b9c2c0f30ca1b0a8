"""Trainings written out plainly, to hold the project's own against: it shares no code with it.

Every rollout run to its end, whole copies of the network as reference and policy, LoRA as two
matrices beside a linear layer. From libraries: networks, text encoders, noise schedules, AdamW.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
)
from PIL import Image
from plain_lora import seeded, with_lora
from plain_objectives import FORMULAS, Sample, gap
from torch import Tensor, nn

T = 1000
Network = Callable[[Tensor, float], Tensor]  # latents and timestep to prediction
Several = Sequence[Any]  # one per image


class SD15:
    """Epsilon prediction, DPM-Solver++(2M)."""

    kind: Any = StableDiffusionPipeline
    component = "unet"
    last = T - 1  # the noisiest timestep

    def __init__(self, folder: str) -> None:
        self.pipe: Any = self.kind.from_pretrained(folder, torch_dtype=torch.float64)
        self.encoded: dict[Any, Any] = {}  # what the frozen parts say, kept to save time
        schedule = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        self.abar = schedule.alphas_cumprod.double().tolist()

    def prompt(self, text: str) -> Any:
        return self.pipe.encode_prompt([text], "cpu", 1, False)[0]

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        found = self.pipe.vae.encode(pixels).latent_dist
        return found.mean[0], found.std[0]

    def many(self, module: nn.Module, xs: Several, ts: Several, prompts: Several) -> Tensor:
        """Predictions of several images; they cost hardly more than that of one."""
        return module(torch.stack(xs), torch.tensor([*map(int, ts)]), torch.cat(prompts)).sample

    def draw_timestep(self, generator: torch.Generator) -> float:
        return int(torch.randint(T, (), generator=generator))

    def noised(self, x0: Tensor, noise: Tensor, t: float) -> Tensor:
        abar = self.abar[int(t)]
        return math.sqrt(abar) * x0 + math.sqrt(1 - abar) * noise

    def target(self, x0: Tensor, noise: Tensor) -> Tensor:
        return noise

    def jittered(self, n: int, offset: int) -> list[float]:
        return [(n - 1 - i) * (T // n) + offset for i in range(n)]

    def even(self, n: int) -> list[float]:
        return [T - 1 - i * (T // n) for i in range(n)]

    def rollout(self, predict: Network, x: Tensor, grid: list[float]) -> list[Any]:
        """(latent, prediction, timestep) before every step, and at the end the clean latent."""
        a = [math.sqrt(self.abar[int(t)]) for t in grid]
        s = [math.sqrt(1 - self.abar[int(t)]) for t in grid]
        lam = [math.log(p / q) for p, q in zip(a, s, strict=True)]
        seen: list[Any] = []
        last = x
        for i, t in enumerate(grid):
            eps = predict(x, t)
            seen.append((x, eps, t))
            x0 = (x - s[i] * eps) / a[i]
            if i == len(grid) - 1:
                x = x0
            else:
                h, better = lam[i + 1] - lam[i], x0
                if i > 0:
                    r = (lam[i] - lam[i - 1]) / h
                    better = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * last
                x = s[i + 1] / s[i] * x - a[i + 1] * math.expm1(-h) * better
            last = x0
        return [*seen, x]


class SD3:
    """Velocity prediction, Euler; a timestep is a noise level in thousandths."""

    kind: Any = StableDiffusion3Pipeline
    component = "transformer"
    tokens = 77 + 16  # that are read of a text, CLIP's and T5's

    def __init__(self, folder: str) -> None:
        self.pipe: Any = self.kind.from_pretrained(folder, torch_dtype=torch.float64)
        self.encoded: dict[Any, Any] = {}
        self.folder = folder
        self.levels = self.fresh().sigmas.double().tolist()  # from 1 down
        self.last = T * self.levels[0]

    moments = SD15.moments

    def fresh(self) -> FlowMatchEulerDiscreteScheduler:
        return FlowMatchEulerDiscreteScheduler.from_pretrained(self.folder, subfolder="scheduler")

    def prompt(self, text: str) -> Any:
        sequence, _, pooled, _ = self.pipe.encode_prompt(
            [text], None, None, device="cpu", do_classifier_free_guidance=False
        )
        return sequence[:, : self.tokens], pooled

    def many(self, module: nn.Module, xs: Several, ts: Several, prompts: Several) -> Tensor:
        return module(
            hidden_states=torch.stack(xs),
            timestep=torch.tensor(ts, dtype=torch.float32),
            encoder_hidden_states=torch.cat([sequence for sequence, _ in prompts]),
            pooled_projections=torch.cat([pooled for _, pooled in prompts]),
        ).sample

    def draw_timestep(self, generator: torch.Generator) -> float:
        u = torch.sigmoid(torch.randn((), generator=generator))
        return T * self.levels[int(u * T)]

    def noised(self, x0: Tensor, noise: Tensor, t: float) -> Tensor:
        return (1 - t / T) * x0 + t / T * noise

    def target(self, x0: Tensor, noise: Tensor) -> Tensor:
        return noise - x0

    def jittered(self, n: int, offset: int) -> list[float]:
        places = [(n - 1 - i) * (T // n) + offset for i in range(n)]
        return [T * self.levels[T - 1 - place] for place in places]

    def even(self, n: int) -> list[float]:
        scheduler = self.fresh()
        scheduler.set_timesteps(n)
        return [T * sigma for sigma in scheduler.sigmas.double().tolist()[:-1]]

    def rollout(self, predict: Network, x: Tensor, grid: list[float]) -> list[Any]:
        seen: list[Any] = []
        for t, following in zip(grid, [*grid[1:], 0.0], strict=True):
            v = predict(x, t)
            seen.append((x, v, t))
            x = x + (following - t) / T * v
        return [*seen, x]


def in_the_hole(values: Tensor, mask: Image.Image, mean: str) -> Tensor:
    """Of [C, H, W] what lies in the hole, and nothing else where the mean is over the hole.

    A latent is in it if the pixel at its upper left corner is. For the mean over the whole latent
    as many zeros come after it as make up the size.
    """
    every = mask.height // values.shape[1]
    inside = values[:, torch.tensor(np.asarray(mask))[::every, ::every] == 255].flatten()
    if mean == "hole":
        return inside
    return torch.cat([inside, torch.zeros(values.numel() - inside.numel())])


def _both_ways(image: Any, flip: bool) -> Any:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image


@dataclass
class Plain:
    """A run of a stage; `step` makes one optimizer step and notes what it did."""

    family: Any  # of `plain_inpainting.family_of`
    pairs: list[tuple[str, Image.Image, Image.Image]]  # caption, photograph, twin
    stage: Any  # its settings
    targets: tuple[str, ...]
    rank: int
    alpha: float
    seed: int
    name: str
    facts: Mapping[str, Sequence[float]] = field(default_factory=dict)  # columns, one per pair
    masks: Sequence[Image.Image] = ()  # of the photographs' holes, where the family inpaints
    gaps: list[float] = field(default_factory=list)  # per step, mean over samples and sides
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    clipped: list[list[Tensor]] = field(default_factory=list)
    weights: list[list[Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.learner = copy.deepcopy(self.family.pipe.components[self.family.component])
        self.layers = with_lora(
            self.learner, self.targets, rank=self.rank, alpha=self.alpha, seed=self.seed
        )
        self.reference = copy.deepcopy(self.learner)
        self.policy = copy.deepcopy(self.learner)
        self.parameters = [p for layer in self.layers.values() for p in (layer.down, layer.up)]
        self.shadow = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.stage.lr, weight_decay=self.stage.weight_decay
        )

    def step(self) -> None:
        """Accumulate over the batch, clip, AdamW, moving average."""
        n, stage = len(self.losses), self.stage
        if hasattr(stage, "policy_lag") and n % stage.policy_lag == 0:
            self.policy.load_state_dict(self.learner.state_dict())
        total = 0.0
        self.gaps.append(0.0)
        for index in range(stage.batch):
            loss = self.loss(n, index) / stage.batch
            loss.backward()
            total += loss.item()
        for p in self.parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad  # of what nothing reads
        gradients = [p.grad for p in self.parameters]
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))  # type: ignore[union-attr]
        for p in self.parameters:
            p.grad = p.grad * min(1.0, stage.clip / (norm + 1e-6))  # type: ignore[operator]
        self.clipped.append([p.grad.clone() for p in self.parameters])  # type: ignore[union-attr]
        warm = min(1.0, n / stage.warmup_steps) if stage.warmup_steps else 1.0
        self.optimizer.param_groups[0]["lr"] = stage.lr * warm
        self.optimizer.step()
        self.optimizer.zero_grad()
        decay = 0.0 if n == 0 else min(stage.ema_decay, (1 + n) / (10 + n))
        if (n + 2) % stage.ema_every:  # the interval goes on
            decay = 1.0
        for mean, p in zip(self.shadow, self.parameters, strict=True):
            mean.copy_(decay * mean + (1 - decay) * p.detach())
        if stage.reference == "ema":
            ours, theirs = (
                [p for name, p in network.named_parameters() if name.endswith((".down", ".up"))]
                for network in (self.learner, self.reference)
            )
            for p, q in zip(ours, theirs, strict=True):
                q.data = stage.reference_decay * q.data + (1 - stage.reference_decay) * p.data
        self.losses.append(total)
        self.norms.append(norm)
        self.weights.append([p.detach().clone() for p in self.parameters])

    def loss(self, step: int, index: int) -> Tensor:
        """Of one sample. It draws the pair; two uniforms; the form's numbers; three noises.

        With two stops per rollout the second half then draws the other stop and two noises.
        """
        stage, family = self.stage, self.family
        draws = stage.batch // getattr(stage, "rollout_stops", 1)
        other, index = divmod(index, draws)
        epoch, place = divmod(step * draws + index, len(self.pairs))
        order = torch.randperm(
            len(self.pairs), generator=seeded(self.seed, self.name, "epoch", epoch)
        )
        pair = self.in_curriculum(int(order[place]), step)
        g = seeded(self.seed, self.name, "sample", step, index)
        flip_draw, drop_draw = torch.rand(2, generator=g).tolist()
        flip = flip_draw < stage.flip
        prompt = self.prompt("" if drop_draw < stage.caption_dropout else self.pairs[pair][0])
        if self.masks:
            mask = _both_ways(self.masks[pair], flip)
            around = family.around(_both_ways(self.pairs[pair][1], flip), mask)
            prompt = prompt, around
        rolls = hasattr(stage, "rollout_steps")
        rolled = getattr(stage, "policy_state", "") == "trajectory"
        n = stage.rollout_steps if rolls else 0
        if rolled:
            offset = int(torch.randint(T // n, (), generator=g))
            stop = int(torch.randint(n, (), generator=g))
        else:
            t = family.draw_timestep(g)
        shape = (3, *self.moments(pair, 1, False)[0].shape)
        first, second, third = torch.randn(shape, generator=g).double()
        if other:
            stop = [i for i in range(n) if i != stop][int(torch.randint(n - 1, (), generator=g))]
            first, second = torch.randn((2, *shape[1:]), generator=g).double()

        other_flip = flip  # of the rejected image
        if getattr(stage, "flip_per", "pair") == "image":
            other_flip = bool(torch.rand((), generator=g) < stage.flip)

        def predict(module: nn.Module) -> Network:
            return lambda x, t: family.many(module, [x], [t], [prompt])[0]

        photo = self.latent(pair, 1, flip, first)
        if not rolls:
            twin, noise = self.latent(pair, 2, other_flip, second), third
            loser, loser_target = family.noised(twin, noise, t), family.target(twin, noise)
        else:
            noise, start = second, third
            grid = family.jittered(n, offset) if rolled else family.even(n)
            with torch.no_grad():
                *states, image = family.rollout(predict(self.policy), start, grid)
                if rolled:
                    loser, loser_target, t = states[stop]
                else:
                    loser = family.noised(image, noise, t)
                    loser_target = predict(self.learner)(loser, t)
                    if stage.objective == "spin":
                        loser_target = family.target(image, noise)
        winner, winner_target = family.noised(photo, noise, t), family.target(photo, noise)

        compared = self.policy if stage.objective == "spin" else self.reference
        both = [winner, loser], [t, t], [prompt, prompt]
        with torch.no_grad():
            ref_winner, ref_loser = family.many(compared, *both)
        new_winner, new_loser = family.many(self.learner, *both)

        def side(*values: Tensor) -> tuple[Tensor, ...]:
            if stage.region == "image":
                return values
            return tuple(in_the_hole(value, mask, stage.region_mean) for value in values)

        sample = Sample(
            side(new_winner, ref_winner, winner_target),  # type: ignore[arg-type]
            side(new_loser, ref_loser, loser_target),  # type: ignore[arg-type]
            {name: values[pair] for name, values in self.facts.items()},
            t,
            self.gaps[: max(0, step - 1)],
        )
        read = (sample.chosen, sample.rejected)[: len(stage.sides)]
        self.gaps[step] += sum(gap(side).item() for side in read) / len(read) / stage.batch
        discount = getattr(stage, "discount", 1.0) ** (1 - t / family.last)
        return discount * FORMULAS[stage.objective](stage, sample)

    def guided(self, module: nn.Module, xs: Several, ts: Several, text: str) -> Tensor:
        """Predictions for one text, with the stage's guidance."""
        asked, scale = [self.prompt(text)] * len(xs), self.stage.guidance
        if scale == 1:
            return self.family.many(module, xs, ts, asked)
        prompts = [*asked, *[self.prompt("")] * len(xs)]
        with_, without = self.family.many(module, [*xs, *xs], [*ts, *ts], prompts).chunk(2)
        return without + scale * (with_ - without)

    def in_curriculum(self, pair: int, step: int) -> int:
        """Instead of a pair the one that an epoch's order comes to on the pairs that are open."""
        stage, count = self.stage, len(self.pairs)
        if stage.curriculum == "off":
            return pair
        start, end = stage.curriculum_start, stage.curriculum_end * stage.steps
        share = start + (1 - start) * step / end if step < end else 1.0
        number = max(1, round(share * count))
        easiest = sorted(range(count), key=lambda p: (-self.facts["gap"][p], p))
        return easiest[pair * number // count] if number < count else pair

    def latent(self, pair: int, side: int, flip: bool, noise: Tensor) -> Tensor:
        """Drawn from what the autoencoder says of the image, shifted and scaled."""
        mean, deviation = self.moments(pair, side, flip)
        drawn = mean + deviation * noise
        if hasattr(self.family, "scaled"):
            return self.family.scaled(drawn)
        config = self.family.pipe.vae.config
        return (drawn - (config.shift_factor or 0)) * config.scaling_factor

    def moments(self, pair: int, side: int, flip: bool) -> tuple[Tensor, Tensor]:
        image: Any = self.pairs[pair][side]
        key = image.tobytes(), flip
        if key not in self.family.encoded:
            image = _both_ways(image, flip)
            pixels = self.family.pipe.image_processor.preprocess(image).double()
            with torch.no_grad():
                self.family.encoded[key] = self.family.moments(pixels)
        return self.family.encoded[key]

    def prompt(self, text: str) -> Any:
        if text not in self.family.encoded:
            with torch.no_grad():
                self.family.encoded[text] = self.family.prompt(text)
        return self.family.encoded[text]
