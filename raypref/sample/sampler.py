"""Images step by step, by the family's own network and solver."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from raypref.core.config import InputError
from raypref.models import adapters
from raypref.models.families.base import Denoiser, under_guidance
from raypref.models.families.conditioning import Conditioning, stack
from raypref.models.lora_config import LoraConfig

OWN, NEGATIVE = "own", "negative"  # the LoRA of images, and that of the unconditional side


class StepSampler:
    """See `methods.Sampler`.

    The network sees batches of one size, the last one padded: an image does not depend on how many
    are drawn.

    Args:
        denoiser: the network, with the adapters of `attach_loras` or with none.
        prompts: of as many samples as the network sees at once.
        empty: the empty caption, of one sample.
        steps: of the solver.
        guidance: classifier-free; up to 1: without.
        shape: of one sample's latents.
        negative: whether the unconditional side has an adapter of its own.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        prompts: Conditioning,
        empty: Conditioning,
        *,
        steps: int,
        guidance: float,
        shape: tuple[int, ...],
        negative: bool = False,
    ) -> None:
        self.denoiser = denoiser
        self.steps = steps
        self.guidance = guidance
        self.batch = batch = len(prompts)
        self.negative = negative
        self.forwards = 0  # of the network, times the images in it, padding apart
        self._counted = 0  # images of the batch in hand
        where = denoiser.device, denoiser.dtype
        self.prompts = prompts.to(*where)
        self.empties = stack([empty] * batch).to(*where)
        self.grid_n = denoiser.sampling_timesteps(steps, shape)
        # One grid for all samples: a solver for a whole batch.
        self.solver = denoiser.solver(self.grid_n[:, None].expand(-1, batch))

    def finished(self, noise_NCHW: Tensor) -> Tensor:
        """Clean latents; the gradient flows to the noise."""
        return torch.cat([self._finished(x)[:n] for n, x in self._padded(noise_NCHW)])

    def _finished(self, x: Tensor) -> Tensor:
        last_x0 = None
        for i in range(self.steps):
            x, last_x0 = self._step(i, x, last_x0)
        return x

    def step(self, i: int, x_NCHW: Tensor, last_x0: Tensor | None) -> tuple[Tensor, Tensor]:
        """Latents at step i + 1 and the clean prediction of step i."""
        before = [None] * len(x_NCHW) if last_x0 is None else [*self._padded(last_x0)]
        made = [
            [part[:n] for part in self._step(i, x, None if last is None else last[1])]
            for (n, x), last in zip(self._padded(x_NCHW), before, strict=False)
        ]
        return torch.cat([x for x, _ in made]), torch.cat([x0 for _, x0 in made])

    def scales(self, i: int) -> tuple[float, float]:
        """Of latents at step i: what image and noise are multiplied by."""
        one = torch.ones(1, 1, 1, 1, device=self.denoiser.device, dtype=torch.float64)
        at = self.grid_n[i : i + 1].to(self.denoiser.device)
        image = self.denoiser.add_noise(one, one * 0, at)
        return float(image), float(self.denoiser.add_noise(one * 0, one, at))

    def _padded(self, x_NCHW: Tensor) -> Iterator[tuple[int, Tensor]]:
        for first in range(0, len(x_NCHW), self.batch):
            some = x_NCHW[first : first + self.batch]
            missing = self.batch - len(some)
            self._counted = len(some)
            yield len(some), torch.cat([some, some[-1:].expand(missing, *some.shape[1:])])

    def _step(self, i: int, x: Tensor, last_x0: Tensor | None) -> tuple[Tensor, Tensor]:
        timesteps_B = self.grid_n[i].expand(self.batch).to(x.device)
        prediction = self.predict(x, timesteps_B).to(x.dtype)
        return self.solver.step(i, x, prediction, last_x0, first=0)

    def predict(self, x_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """The network's prediction under guidance: empty + scale (captioned - empty)."""
        denoiser, count = self.denoiser, self._counted
        self.forwards += count
        captioned = denoiser.predict(x_BCHW, timesteps_B, self.prompts)
        if self.guidance <= 1:
            return captioned
        self.forwards += count
        if self.negative:
            adapters.activate(denoiser.module, NEGATIVE)
        without = denoiser.predict(x_BCHW, timesteps_B, self.empties)
        if self.negative:
            adapters.activate(denoiser.module, OWN)
        return under_guidance(denoiser, captioned, without, self.guidance)


def attach_loras(
    denoiser: Denoiser, loras: Mapping[str, Mapping[str, Tensor]], *, key: str
) -> None:
    """Put LoRAs on a network, the first in use.

    Args:
        denoiser: the network; its weights are frozen.
        loras: by adapter's name, `OWN` first: by peft's key, alpha / rank folded into B; all of an
            adapter have one rank. An empty one adds nothing.
        key: the setting they come from, for errors.

    Raises:
        InputError: a LoRA is for another model.
    """
    denoiser.module.requires_grad_(False)
    layers = list(dict.fromkeys(n.rpartition(".lora_")[0] for v in loras.values() for n in v))
    if not layers:
        return
    ranks = [len(v) for own in loras.values() for n, v in own.items() if ".lora_A." in n]
    names = {name for name, _ in denoiser.module.named_modules()}
    if strange := [layer for layer in layers if layer not in names]:
        raise InputError(f"{key}: the LoRA is for another model: there is no layer {strange[0]}")
    config = LoraConfig(rank=max(ranks), alpha=max(ranks), targets=tuple(layers))
    adapters.attach(denoiser.module, config, names=tuple(loras), seed=0)
    for adapter, values in loras.items():
        if values:
            own = adapters.state(denoiser.module, adapter)
            adapters.set_state(denoiser.module, adapter, _filled(own, values, key=key))
    adapters.activate(denoiser.module, next(iter(loras)))


def _filled(
    own: Mapping[str, Tensor], values: Mapping[str, Tensor], *, key: str
) -> dict[str, Tensor]:
    """The values in an adapter's size: zeros where a LoRA has fewer ranks or no layer."""
    made = {}
    for name, like in own.items():
        made[name] = torch.zeros_like(like)
        value = values.get(name)
        if value is None:
            continue
        down = ".lora_A." in name
        if value.shape[int(down)] != like.shape[int(down)]:
            raise InputError(f"{key}: the LoRA is for another model: {name} differs in size")
        place = made[name][: len(value)] if down else made[name][:, : value.shape[1]]
        place.copy_(value)
    return made
