"""Every family that inpaints calls its network as its diffusers pipeline does, hole and all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from torch import Tensor, nn
from training import BASES, CPU, hole, photographs

from raypref.models.backbone import load_denoiser, load_encoder, load_pipeline
from raypref.models.families.flux import unpacked
from raypref.models.families.registry import INPAINTING, family

CAPTIONS = ["a photo of a red ball on grass", ""]
each = pytest.mark.parametrize("name", sorted(INPAINTING))


class Calls:
    """What a network is given by name, and what it says, call by call."""

    def __init__(self, network: nn.Module) -> None:
        self.made: list[dict[str, Tensor]] = []
        network.register_forward_hook(self._note, with_kwargs=True)

    def _note(self, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        by_name = dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False))
        by_name |= kwargs | (kwargs.get("added_cond_kwargs") or {})
        values = {k: v for k, v in by_name.items() if isinstance(v, Tensor)}
        values["timestep"] = values["timestep"].expand(2).float()
        self.made.append(values | {"output": output[0]})


def inputs() -> tuple[list[Image.Image], list[Image.Image]]:
    return [photo for _, photo in photographs(2)], [hole(number) for number in range(2)]


@each
@torch.no_grad()
def test_predict_is_the_pipelines_own_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The pipelines draw the latents around the hole, where ours are their mean.
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda own, generator: own.mode())
    base = BASES[name]  # in float64
    # Without guidance SDXL's pipeline reads no caption as it reads others; ours is zeros.
    captions = [CAPTIONS[0], "snow at night"] if name == "sdxl_inpaint" else CAPTIONS
    pipeline, photos, masks = load_pipeline(base, device=CPU), *inputs()
    pipeline.vae.register_to_config(force_upcast=False)  # SDXL's would encode in float32
    theirs = Calls(pipeline.components[family(name).component])
    pipeline(
        **family(name).arguments(captions, 1.0, 64) | {"image": photos, "mask_image": masks},
        num_inference_steps=3,
        generator=[torch.Generator().manual_seed(n) for n in range(2)],
    )
    encoder, network = load_encoder(base, device=CPU), load_denoiser(base, device=CPU)
    ours = Calls(network.module)
    prompts = replace(
        encoder.text_embeddings(captions), surroundings_BKHW=encoder.surroundings(photos, masks)
    )
    channels = encoder.image_moments(photos).shape[2]
    for call in theirs.made:
        x, timesteps_B = call.get("sample"), call["timestep"]
        if x is None:  # tokens of the noisy latents come first
            x, timesteps_B = unpacked(call["hidden_states"][..., :64], (8, 8)), timesteps_B * 1000
        network.predict(x[:, :channels], timesteps_B, prompts)
    assert len(ours.made) == len(theirs.made) >= 3
    for one, other in zip(ours.made, theirs.made, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert value.shape == other[key].shape, key
            assert (value.double() - other[key].double()).abs().max() < 1e-6, key


@each
@torch.no_grad()
def test_white_is_repainted_where_the_release_had_samplers_and_trainers_opposed(name: str) -> None:
    """Of the photograph what is under 255 is hidden, what is under 0 is seen."""
    encoder = load_encoder(BASES[name], device=CPU)
    [photo, _], [mask, _] = inputs()
    shown = encoder.surroundings([photo], [mask])
    white = np.asarray(mask) == 255
    for where, seen in ((white, False), (~white, True)):
        pixels = np.asarray(photo).copy()
        pixels[where] = 255 - pixels[where]
        changed = encoder.surroundings([Image.fromarray(pixels)], [mask])
        assert torch.equal(changed, shown) != seen
    at = family(name).hole
    assert at is not None
    inside = at(shown)[0, 0].numpy() == 1
    assert np.array_equal(inside, white[::8, ::8]) and inside.any() and not inside.all()
    # A soft map is cut at a half.
    soft = Image.fromarray(np.where(white, 128, 127).astype(np.uint8))
    assert torch.equal(encoder.surroundings([photo], [soft]), shown)
