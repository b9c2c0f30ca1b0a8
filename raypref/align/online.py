"""Images that the policy draws, with their rewards: what online trainings learn from.

A block is all that a rank draws at a time: whole groups of images per prompt. It is kept while
steps reuse it and never stored: all that is random comes from generators seeded by (seed, training,
block, image), and the policy is in the checkpoint, so that a block is made again, equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from raypref.align import noising, rollout
from raypref.align.advantages import PromptStatistics
from raypref.align.block_rewards import Rewards, diversity, rewards_of
from raypref.align.blocks import RolledOut, RolloutBlock
from raypref.align.image_scores import LatentScores
from raypref.align.online_config import OnlineConfig
from raypref.align.pair_data import PairData
from raypref.align.paths import Path
from raypref.align.residuals import POLICY, Draw, Samples, measure
from raypref.core.rows import seed_of
from raypref.models import adapters
from raypref.models.families.base import Denoiser, under_guidance
from raypref.models.families.conditioning import Conditioning


class Sums(Protocol):
    """Sums over the ranks (`loop.Ranks`)."""

    def sum(self, values: Tensor) -> None:
        """Replace `values` by their sum over all ranks."""


class Rollouts:
    """One rank's blocks, one at a time.

    Args:
        denoiser: the network, with its adapters.
        data: the pairs, whose prompts are drawn for.
        training: its settings.
        judge: decodes and scores.
        name: of the stream of random numbers.
        seed: of the run.
        group: the ranks.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        data: PairData,
        training: OnlineConfig,
        *,
        judge: LatentScores,
        name: str,
        seed: int,
        group: Sums,
    ) -> None:
        self.denoiser = denoiser
        self.data = data
        self.training = training
        self.judge = judge
        self.name = name
        self.seed = seed
        self.group = group
        self.statistics = PromptStatistics()
        self.numbers = _numbered(data.texts)
        self.held_out: dict[str, Tensor] = {}  # the last means over all images, float64 scalars
        self._block: tuple[int, RolloutBlock] | None = None

    def samples(
        self, draws: Sequence[Draw], indices: Sequence[int], step: int
    ) -> Iterator[Samples]:
        """The samples of a step, whole groups at a time.

        Args:
            draws: this rank's, whole groups one after another.
            indices: of the draws in the batch.
            step: the optimizer step, from 0.
        """
        training = self.training
        number = step // training.reuse
        if self._block is None or self._block[0] != number:
            self._block = None  # frees its memory
            self._block = number, self._made(draws, indices, number)
        block = self._block[1]
        groups = max(1, training.micro_batch // (training.group * training.timesteps))
        size = training.group * groups
        for first in range(0, len(draws), size):
            images = range(first, min(first + size, len(draws)))
            generators = [draws[image].generator for image in images]
            samples = training.samples(self.denoiser, block, images, generators)
            yield self._with_coefficients(samples) if training.whole_groups else samples

    def _made(self, draws: Sequence[Draw], indices: Sequence[int], number: int) -> RolloutBlock:
        """Roll out, decode, score."""
        training, denoiser = self.training, self.denoiser
        generators = [
            torch.Generator().manual_seed(seed_of(self.seed, self.name, "rollout", number, index))
            for index in indices
        ]
        where = denoiser.device, torch.promote_types(denoiser.dtype, torch.float32)
        shape = self.data.latent_shape
        start = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(*where)
        pairs, no = [draw.pair for draw in draws], [False] * len(draws)
        kept, dropped = (
            self.data.prompts(pairs, [empty] * len(draws), no).to(denoiser.device, denoiser.dtype)
            for empty in (False, True)
        )
        adapters.activate(denoiser.module, POLICY)
        made, pixels = [], []
        for first in range(0, len(draws), training.images_at_once):
            part = slice(first, first + training.images_at_once)
            with torch.no_grad():
                own = training.roll_out(
                    denoiser,
                    start[part],
                    kept[part],
                    dropped[part],
                    generators[part],
                    step=number * training.reuse,
                )
            made.append(own)
            # A group at a time: as many on every rank, and fewer at once than were rolled out.
            pixels += [self.judge.images(some) for some in own.latents_NCHW.split(training.group)]
        latents_NCHW = torch.cat([own.latents_NCHW for own in made])
        texts = [self.data.texts[pair] for pair in pairs]
        names = [*training.rewards, *self._held_out_due(number)]
        said = self.judge.scores(np.concatenate(pixels), texts, names)
        rewards = self._rewards(said.by_reward, pairs, indices, number)
        for name in names[len(training.rewards) :]:
            self.held_out[name] = rewards.scores[name].mean()
        embedding_ND = said.embedding_ND
        if embedding_ND is None:
            embedding_ND = latents_NCHW.flatten(1).cpu()
        places = [*indices]
        return RolloutBlock(
            latents_NCHW,
            kept,
            dropped,
            {name: said.by_reward[name] for name in training.rewards},
            rewards.reward_M[places],
            rewards.advantage_M[places],
            {
                **{f"reward/{name}": rewards.scores[name][places] for name in training.rewards},
                # Between two measurements the last one is told again.
                **{
                    f"held_out/{name}": self.held_out[name].expand(len(draws))
                    for name in training.held_out
                },
                "unscored": rewards.unscored_M[places],
                "reward_std": rewards.spread_M[places],
                "diversity": diversity(embedding_ND, training.group),
            },
            training.group,
            _joined([own.path for own in made]),
        )

    def _held_out_due(self, number: int) -> list[str]:
        """The held-out rewards that a block is scored by."""
        every = max(1, self.training.held_out_every // self.training.reuse)  # blocks
        due = number % every == 0
        return [name for name in self.training.held_out if due or name not in self.held_out]

    def _rewards(
        self,
        by_reward: Mapping[str, Tensor],
        pairs: Sequence[int],
        indices: Sequence[int],
        number: int,
    ) -> Rewards:
        """Of all images of the block, on every rank: scores are gathered in one collective."""
        training = self.training
        scores = torch.stack([*by_reward.values()])
        missing = ~scores.isfinite()
        prompts = torch.tensor([[self.numbers[pair] for pair in pairs]], dtype=torch.float64)
        own = torch.cat([scores.where(~missing, torch.zeros_like(scores)), missing, prompts])
        everybodys = own.new_zeros(len(own), training.pairs_per_step * training.group)
        everybodys[:, [*indices]] = own
        everybodys = everybodys.to(self.denoiser.device)
        self.group.sum(everybodys)
        *found, prompt_M = everybodys.cpu()
        values, flags = found[: len(scores)], found[len(scores) :]
        return rewards_of(
            {
                name: value.where(flag == 0, torch.full_like(value, torch.nan))
                for name, value, flag in zip(by_reward, values, flags, strict=True)
            },
            training.rewards,
            group=training.group,
            advantage=training.advantage,
            clip=training.advantage_clip,
            prompts=[int(prompt) for prompt in prompt_M.tolist()],
            statistics=self.statistics,
            block=number,
        )

    def _with_coefficients(self, samples: Samples) -> Samples:
        """The samples with the fact `coefficient`, of a first pass without a gradient."""
        training, group = self.training, self.training.group
        numbers = []
        with torch.no_grad():
            for some in samples.split(training.micro_batch):
                sides = measure(
                    self.denoiser, some, against=training.against, policy=training.reads_policy
                )
                numbers.append(training.measured(sides))
        facts = {name: values.view(-1, group) for name, values in samples.facts.items()}
        found_NG = training.coefficients(torch.cat(numbers).view(-1, group), facts)
        return samples._replace(facts={**samples.facts, "coefficient": found_NG.flatten()})

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        kept = {f"held_out.{name}": value for name, value in self.held_out.items()}
        if self.training.advantage == "prompt":
            kept |= {f"prompts.{name}": value for name, value in self.statistics.state().items()}
        return kept

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """What `state` gave."""
        for name in self.training.held_out:
            if f"held_out.{name}" in tensors:
                self.held_out[name] = tensors[f"held_out.{name}"]
        own = {k.removeprefix("prompts."): v for k, v in tensors.items() if k[:8] == "prompts."}
        if own:
            self.statistics.load(own)


def finished(
    training: OnlineConfig,
    denoiser: Denoiser,
    start_NCHW: Tensor,
    prompts: Conditioning,
    unconditional: Conditioning,
) -> RolledOut:
    """Images by the family's own solver, on the pipeline's grid, with the training's guidance."""
    shape = tuple(start_NCHW.shape[1:])
    grid_n = denoiser.sampling_timesteps(training.rollout_steps, shape)
    latents = rollout.finished_images(
        guided(denoiser, unconditional, training.guidance),
        denoiser.solver,
        start_NCHW,
        prompts,
        grid_nB=grid_n[:, None].expand(-1, len(start_NCHW)),
    )
    return RolledOut(latents)


def guided(denoiser: Denoiser, unconditional: Conditioning, scale: float) -> rollout.Predict:
    """The network's prediction under classifier-free guidance: empty + scale (captioned - empty).

    Args:
        denoiser: the network.
        unconditional: the empty caption, once per sample.
        scale: 1: without guidance, and without the second forward.
    """
    if scale == 1:
        return denoiser.predict

    def predict(x_BCHW: Tensor, timesteps_B: Tensor, prompts: Conditioning) -> Tensor:
        without = denoiser.predict(x_BCHW, timesteps_B, unconditional)
        captioned = denoiser.predict(x_BCHW, timesteps_B, prompts)
        return under_guidance(denoiser, captioned, without, scale)

    return predict


def noised(
    training: OnlineConfig,
    denoiser: Denoiser,
    block: RolloutBlock,
    images: Sequence[int],
    generators: Sequence[torch.Generator],
) -> Samples:
    """The images noised to timesteps of the training distribution, each with noise of its own.

    Of each image's generator: a timestep and noise, `timesteps` times over. The order is frozen.
    """
    shape = tuple(block.latents_NCHW.shape[1:])
    timesteps, noise = noising.timesteps_and_noise(
        denoiser, shape, generators, times=training.timesteps
    )
    return at(denoiser, block, [[*images] * training.timesteps], timesteps, noise)


def at(
    denoiser: Denoiser,
    block: RolloutBlock,
    sides: Sequence[Sequence[int]],
    timesteps: Tensor,
    noise: Tensor,
) -> Samples:
    """B samples of images of a block, all sides with one timestep and one noise.

    Args:
        denoiser: the network.
        block: images with their rewards.
        sides: per side B positions in the block; prompts and facts are those of the first side.
        timesteps: [B], on the CPU.
        noise: [B, C, h, w], on the CPU.
    """
    timesteps_B = timesteps.to(denoiser.device)
    noise_BCHW = noise.to(block.latents_NCHW)
    found = [
        noising.noised_side(denoiser, block.latents_NCHW[[*places]], noise_BCHW, timesteps_B)
        for places in sides
    ]
    first = [*sides[0]]
    facts = block.facts_of(first, found[0].x_BCHW)
    return Samples(tuple(found), timesteps_B, block.prompts[first], facts)


def _numbered(texts: Sequence[str]) -> list[int]:
    """A number per row, shared by rows of one prompt: that of the first of them."""
    first: dict[str, int] = {}
    return [first.setdefault(text, row) for row, text in enumerate(texts)]


def _joined(paths: Sequence[Path | None]) -> Path | None:
    """The paths of several calls as one."""
    found = [path for path in paths if path is not None]
    return found[0].joined(found[1:]) if found else None
