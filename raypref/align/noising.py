"""Images noised anew: timesteps and noise of generators, and what a noisy latent is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raypref.align.residuals import Side
from raypref.models.families.base import Denoiser, Shape


def timesteps_and_noise(
    denoiser: Denoiser,
    shape: Shape,
    generators: Sequence[torch.Generator],
    *,
    times: int,
    least_level: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Timesteps of the training distribution, each with its noise, on the CPU.

    Of each generator: a timestep and noise, `times` times over. The order is frozen.

    Args:
        denoiser: whose timesteps they are.
        shape: of one image's latents.
        generators: n of them.
        times: per generator.
        least_level: 0 to 1; timesteps with a lower `level` are drawn again.

    Returns:
        Timesteps [times * n] and noise [times * n, C, h, w]: the first of every generator, then
        the second, ...
    """
    found = []
    for generator in generators:
        own = []
        for _ in range(times):
            timestep = denoiser.draw_timestep(generator, shape)
            while least_level and level(denoiser, timestep[None]).item() < least_level:
                timestep = denoiser.draw_timestep(generator, shape)
            own.append((timestep, torch.randn(shape, generator=generator)))
        found.append(own)
    flat = [own[number] for number in range(times) for own in found]
    return torch.stack([timestep for timestep, _ in flat]), torch.stack(
        [noise for _, noise in flat]
    )


def noised_side(
    denoiser: Denoiser, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor
) -> Side:
    """Clean latents noised to timesteps, with the true target."""
    noisy_BCHW = denoiser.add_noise(latents_BCHW, noise_BCHW, timesteps_B)
    return Side(noisy_BCHW, denoiser.target(latents_BCHW, noise_BCHW, timesteps_B))


def level(denoiser: Denoiser, timesteps_B: Tensor) -> Tensor:
    """The share of noise in noisy latents, noise / (image + noise), 0 to 1, float64 [B].

    For a model that matches flows it is the noise level sigma.
    """
    image_B, noise_B = _mixture(denoiser, timesteps_B)
    return noise_B / (image_B + noise_B)


def clean_scale(denoiser: Denoiser, timesteps_B: Tensor) -> Tensor:
    """What an error of the prediction is as an error of the clean latents, by size, float64 [B].

    The latents are `image x0 + noise n`, the target is `p x0 + q n`: both are linear. Solved for
    x0, that is noise / |image q - noise p|: sigma for a velocity, noise / image for epsilon.
    """
    image_B, noise_B = _mixture(denoiser, timesteps_B)
    one, zero = _units(timesteps_B)
    p_B = denoiser.target(one, zero, timesteps_B).flatten()
    q_B = denoiser.target(zero, one, timesteps_B).flatten()
    return noise_B / (image_B * q_B - noise_B * p_B).abs()


def _mixture(denoiser: Denoiser, timesteps_B: Tensor) -> tuple[Tensor, Tensor]:
    """How much of the image and how much noise noisy latents are made of, each float64 [B]."""
    one, zero = _units(timesteps_B)
    image = denoiser.add_noise(one, zero, timesteps_B)
    noise = denoiser.add_noise(zero, one, timesteps_B)
    return image.flatten(), noise.flatten()


def _units(timesteps_B: Tensor) -> tuple[Tensor, Tensor]:
    """Latents of one number, ones and zeros, each float64 [B, 1, 1, 1]."""
    one_B111 = torch.ones(len(timesteps_B), 1, 1, 1, device=timesteps_B.device).double()
    return one_B111, torch.zeros_like(one_B111)
