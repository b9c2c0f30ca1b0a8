"""The transform of `raypref sample`: prompt and seed to the image that the method chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from raypref.core.config import InputError
from raypref.core.device import pick_device
from raypref.core.rows import Row, seed_of
from raypref.evaluate.generate import GenerateConfig
from raypref.models.backbone import BackboneConfig, load_denoiser, load_encoder
from raypref.models.families.registry import family
from raypref.models.network import WholeNetworks, holds_network
from raypref.rewards.config import RewardConfig
from raypref.sample.config import SamplingConfig

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.models.families.conditioning import Conditioning
    from raypref.sample.methods import Chosen
    from raypref.sample.sampler import StepSampler

UNSCORED = -1e9  # the reward of an image that a model gave no score: never chosen


class DrawnImage(NamedTuple):
    """What becomes of one row."""

    pixels_HWC: np.ndarray  # uint8
    scores: dict[str, float]
    forwards: int
    seen: int  # images that were decoded and scored to choose it


def score_column(name: str) -> str:
    """The column of a reward's score."""
    return f"score_{name}"


class DrawChosen:
    """Transform: prompt and noise seed to an image, its reward, and what it took.

    Args:
        base: the model family and weights.
        generate: steps, guidance, size, precision.
        config: the method.
        rewards: settings of `config.rewards` by name.
        lora: the LoRA or soup, its parts found; or the folder of a network trained whole; empty:
            none.
        negative: that of the unconditional side; empty: none.
    """

    name = "sample"
    reads: tuple[str, ...] = ("prompt", "noise")

    def __init__(
        self,
        base: BackboneConfig,
        generate: GenerateConfig,
        config: SamplingConfig,
        *,
        rewards: Mapping[str, RewardConfig],
        lora: str = "",
        negative: str = "",
    ) -> None:
        self.base = base.in_precision(generate.dtype)
        self.generate = generate
        self.sampling = config
        self.rewards = dict(rewards)
        self.lora = lora
        self.negative = negative if config.negative_weight else ""
        self.resources = generate.resources
        scores = [(score_column(name), pa.float64()) for name in rewards]
        numbers = [("reward", pa.float64()), ("forwards", pa.int64()), ("seen", pa.int64())]
        self.writes = pa.schema([("image", pa.binary()), *numbers, *scores])

    def setup(self) -> None:
        """Load network, encoders and rewards; put the LoRAs on the network."""
        from raypref.align.image_scores import LatentScores, WorkerScores
        from raypref.models.soups import read_soup, stacked
        from raypref.sample.sampler import NEGATIVE, OWN, attach_loras

        device = pick_device(self.resources.num_gpus)
        self.denoiser = load_denoiser(self.base, device=device)
        self.encoder = load_encoder(self.base, device=device, vae_dtype=self.generate.vae_dtype)
        self.scores = WorkerScores(self.rewards)
        self.judge = LatentScores(self.encoder.autoencoder, self.scores)
        read = partial(read_soup, component=self.denoiser.component)
        own: dict[str, Tensor] = {}
        component = self.denoiser.component
        if holds_network(self.lora, component=component):
            WholeNetworks(self.denoiser.module, {"own": self.lora}, component=component).use("own")
        elif self.lora:
            own = read(self.lora, key="sample.loras")
        loras = {OWN: own}
        if self.negative:
            more = read(self.negative, key="sample.negative")
            parts = [(1.0, own)] if own else []
            loras[NEGATIVE] = stacked([*parts, (self.sampling.negative_weight, more)])
        attach_loras(self.denoiser, loras, key="sample.loras")
        side = self.generate.size
        blank = Image.new("RGB", (side, side))
        self.shape = tuple(self.encoder.image_moments([blank]).shape[2:])
        self.surroundings: Tensor | None = None
        if family(self.base.family).inpaints:  # the hole is the whole picture
            mask = Image.new("L", (side, side), 255)
            self.surroundings = self.encoder.surroundings([blank], [mask])

    def prepare(self, rows: list[Row]) -> list[tuple[str, int]]:
        """Prompts and noise seeds."""
        return [(row["prompt"], row["noise"]) for row in rows]

    def compute(self, batch: list[tuple[str, int]]) -> list[DrawnImage]:
        """What the method chooses for each."""
        if self.sampling.method == "plain":
            return self._plain(batch)
        # A batch that is not full has copies of its last row.
        made = {item: self._chosen(*item) for item in dict.fromkeys(batch)}
        return [made[item] for item in batch]

    def finish(self, rows: list[Row], out: list[DrawnImage]) -> None:
        """Fill the columns."""
        for row, made in zip(rows, out, strict=False):
            row["image"] = Image.fromarray(made.pixels_HWC)
            row["forwards"], row["seen"] = made.forwards, made.seen
            row |= {score_column(name): value for name, value in made.scores.items()}
            row["reward"] = sum(self.sampling.rewards[n] * v for n, v in made.scores.items())

    def _plain(self, batch: list[tuple[str, int]]) -> list[DrawnImage]:
        import torch

        prompts = [prompt for prompt, _ in batch]
        sampler = self._sampler(self._read(prompts))
        noise_NCHW = torch.cat([self._noise(self._generator(seed), 1) for _, seed in batch])
        with torch.no_grad():
            pixels = self.judge.images(sampler.finished(noise_NCHW))
        found = self.scores(pixels, prompts, [*self.rewards]).by_reward
        scores = [{n: float(values[k]) for n, values in found.items()} for k in range(len(batch))]
        each = sampler.forwards // len(batch)
        return [DrawnImage(p, own, each, 1) for p, own in zip(pixels, scores, strict=True)]

    def _chosen(self, prompt: str, seed: int) -> DrawnImage:
        import torch

        count = 1 if self.sampling.method == "reno" else self.sampling.candidates
        at_once = min(count, self.resources.batch)
        sampler = self._sampler(self._read([prompt] * at_once))
        chosen = self._by_method(sampler, prompt, seed)
        with torch.no_grad():
            pixels = self.judge.images(chosen.latents_1CHW)
        found = self.scores(pixels, [prompt], [*self.rewards]).by_reward
        scores = {name: float(values[0]) for name, values in found.items()}
        return DrawnImage(pixels[0], scores, sampler.forwards, chosen.images)

    def _by_method(self, sampler: StepSampler, prompt: str, seed: int) -> Chosen:
        import torch

        from raypref.sample import methods

        config, generator = self.sampling, self._generator(seed)
        reward = partial(self._reward, prompt=prompt)
        start = self._noise(generator, 1)  # as of `plain`: the first candidate is its image
        other = self._generator(seed_of(seed, "sample", prompt))
        fresh = partial(self._noise, other)
        more = [fresh(config.candidates - 1)] if config.candidates > 1 else []
        several = torch.cat([start, *more])
        if config.method == "best_of":
            return methods.best_of(sampler, reward, several)
        if config.method == "noise_search":
            return methods.noise_search(
                sampler,
                reward,
                start,
                fresh,
                rounds=config.rounds,
                neighbours=config.candidates,
                spread=config.spread,
            )
        if config.method == "fk_steering":
            return methods.fk_steering(
                sampler,
                reward,
                several,
                fresh,
                lambda: float(torch.rand((), generator=other)),
                every=config.every,
                potential=config.potential,
                strength=config.strength,
                churn=config.churn,
            )
        return methods.reno(
            sampler,
            reward,
            partial(self._differentiable, prompt=prompt),
            start,
            ascents=config.ascents,
            rate=config.rate,
            clip=config.clip,
            regulariser=config.regulariser,
        )

    def _sampler(self, prompts: Conditioning) -> StepSampler:
        from raypref.sample.sampler import StepSampler

        return StepSampler(
            self.denoiser,
            prompts,
            self._read([""])[0],
            steps=self.generate.steps,
            guidance=self.generate.guidance,
            shape=self.shape,
            negative=bool(self.negative),
        )

    def _read(self, prompts: list[str]) -> Conditioning:
        """Captions as the network reads them; of an inpainting family, with an empty picture."""
        made = self.encoder.text_embeddings(prompts)
        if self.surroundings is None:
            return made
        around = self.surroundings.expand(len(prompts), *self.surroundings.shape[1:])
        return replace(made, surroundings_BKHW=around)

    def _generator(self, seed: int) -> Any:
        import torch

        where = self.denoiser.device if self.generate.noise_device == "model" else "cpu"
        return torch.Generator(where).manual_seed(seed)

    def _noise(self, generator: Any, count: int) -> Tensor:
        import torch

        precise = torch.promote_types(self.denoiser.dtype, torch.float32)
        size = (count, *self.shape)
        drawn = torch.randn(size, generator=generator, device=generator.device, dtype=precise)
        return drawn.to(self.denoiser.device)

    def _reward(self, latents_NCHW: Tensor, *, prompt: str) -> Tensor:
        """Weighted sums of scores of the 8-bit images, float64 [N]."""
        pixels = self.judge.images(latents_NCHW)
        found = self.scores(pixels, [prompt] * len(pixels), [*self.rewards]).by_reward
        total = sum(weight * found[name] for name, weight in self.sampling.rewards.items())
        reward_N: Tensor = total  # type: ignore[assignment]
        return reward_N.nan_to_num(nan=UNSCORED)

    def _differentiable(self, latents_NCHW: Tensor, *, prompt: str) -> Tensor:
        """The same of unrounded pixels, with a gradient to the latents."""
        pixels_NCHW = self.encoder.autoencoder.decode(latents_NCHW)
        prompts = [prompt] * len(latents_NCHW)
        parts = [
            weight * self.scores.models[name].score_pixels(pixels_NCHW, prompts)
            for name, weight in self.sampling.rewards.items()
        ]
        total: Tensor = sum(parts)
        return total


def check_gradients(rewards: Mapping[str, RewardConfig]) -> None:
    """Refuse rewards without a gradient to the pixels, for `reno`.

    Raises:
        InputError: names the rewards.
    """
    if without := [name for name, config in rewards.items() if not config.differentiable]:
        raise InputError(
            f"sample.rewards: {', '.join(without)} has no gradient to the pixels, which "
            "sample.method=reno needs; take another reward or method"
        )
