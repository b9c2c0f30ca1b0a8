"""What every model family promises, whichever it is, and what is said of one that is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageUpsample
from PIL import Image
from torch import nn
from training import BASES, CPU

from raypref.core.config import InputError, load
from raypref.models.backbone import load_autoencoder, load_pipeline
from raypref.models.checks import bare_network, check_adapter, check_base, check_side
from raypref.models.families.registry import FAMILIES, family
from raypref.models.lora_config import LoraConfig
from raypref.run.config import RunConfig

PRESETS = Path(__file__).parents[1] / "raypref" / "presets"


@pytest.fixture(params=FAMILIES)
def name(request: Any) -> str:
    """Each family in turn; a new one needs small weights in `training.BASES`."""
    assert isinstance(request.param, str)
    return request.param


def drawn(pipeline: Any, name: str, output: str) -> torch.Tensor:
    """Two pictures, or their latents: the same at every call."""
    states: list[torch.Tensor] = []

    def note(pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        states.append(given["latents"])
        return given

    made = pipeline(
        **family(name).arguments(["a photo of a red ball", ""], 4.0, 64),
        num_inference_steps=2,
        generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
        output_type=output,
        callback_on_step_end=note,
    ).images
    assert isinstance(made, torch.Tensor)
    if name == "flux2_klein" and output == "latent":  # it hands out what its decoder reads
        return states[-1].transpose(1, 2).unflatten(2, (4, 4))
    if made.dim() == 3:  # tokens
        unpacked = pipeline._unpack_latents(made, 64, 64, 8)
        assert isinstance(unpacked, torch.Tensor)
        return unpacked.reshape(2, 16, 8, 8)  # Qwen-Image's are of a frame
    return made


def test_pixels_are_those_that_the_pipeline_draws(name: str) -> None:
    base = BASES[name].model_copy(update={"dtype": "float32"})
    pipeline = load_pipeline(base, device=CPU)
    latents, pixels = drawn(pipeline, name, "latent"), drawn(pipeline, name, "pt")
    with torch.no_grad():
        ours = load_autoencoder(base, device=CPU).decode(latents)
    assert torch.equal(ours, pixels)
    assert pixels.std() > 0.01


def test_the_gradient_of_decoding_is_that_of_finite_differences(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Qwen-Image's rounds to float32 where it enlarges: no finite difference is as fine.
    monkeypatch.setattr(QwenImageUpsample, "forward", nn.Upsample.forward)
    autoencoder = load_autoencoder(BASES[name], device=CPU)  # in float64
    size = (48, 32)
    moments = autoencoder.image_moments([Image.new("RGB", size)] * 2)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(moments[:, 0].shape, generator=generator, dtype=torch.float64)
    latents.requires_grad_()
    pixels = autoencoder.decode(latents)
    assert pixels.shape == (2, 3, *size[::-1])
    weights = torch.randn(pixels.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((pixels * weights).sum(), latents)
    assert gradient.abs().min() > 0
    step = 1e-6
    for place in [(0, 0, 0, 0), (0, 1, 1, 2), (1, 3, 0, 1)]:
        sides = []
        for sign in (1, -1):
            moved = latents.detach().clone()
            moved[place] += sign * step
            with torch.no_grad():
                sides.append((autoencoder.decode(moved) * weights).sum())
        slope = float(sides[0] - sides[1]) / (2 * step)
        assert float(gradient[place]) == pytest.approx(slope, rel=1e-6, abs=1e-7)


def test_the_named_layers_are_there_and_are_those_of_the_preset(name: str) -> None:
    layers = dict(bare_network(BASES[name]).named_modules())
    for target in family(name).targets:
        named = [layer for path, layer in layers.items() if f".{path}".endswith(f".{target}")]
        found = [layer for layer in named if not isinstance(layer, nn.ModuleList)]
        assert found
        assert all(isinstance(layer, nn.Linear) for layer in found)
    check_adapter(BASES[name], LoraConfig(targets=family(name).targets))
    if (PRESETS / f"{name}.toml").exists():
        preset = load(RunConfig, name, ["source.path=p", "evaluate.prompts=p"])
        assert set(preset.lora.targets) == set(family(name).targets)


def test_a_checkpoint_with_other_inputs_is_refused(name: str) -> None:
    check_base(BASES[name])
    other = name.removesuffix("_inpaint") if "_inpaint" in name else f"{name}_inpaint"
    if other in BASES:
        base = BASES[other].model_copy(update={"family": name})
        with pytest.raises(
            InputError, match=rf"the unet of .* {name} needs \d; set base.family={other}$"
        ):
            check_base(base)


def test_a_side_is_a_multiple_of_what_a_patch_of_latents_stands_for() -> None:
    check_side(BASES["sd15"], 72, key="images.size")
    with pytest.raises(InputError, match=r"images\.size=72: .* multiples of 16"):
        check_side(BASES["sd35m"], 72, key="images.size")
    with pytest.raises(InputError, match=r"images\.size=72: .* multiples of 16"):
        check_side(BASES["flux_fill"], 72, key="images.size")


def test_an_unknown_family_is_refused_by_name_and_the_known_are_listed() -> None:
    with pytest.raises(InputError) as caught:
        load(RunConfig, "tiny", ["base.family=sd16"])
    assert "base.family='sd16'" in str(caught.value)
    assert ", ".join(FAMILIES) in str(caught.value)
    with pytest.raises(InputError, match=r"sd16.*there are sd15, .*sd35m"):
        family("sd16")


def test_only_the_family_that_is_used_is_imported(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "a_broken_family.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(FAMILIES, "broken", "a_broken_family")
    assert load(RunConfig, "tiny", ["base.family=broken"]).base.family == "broken"
    assert family("sd15").pipeline == "StableDiffusionPipeline"
    with pytest.raises(AssertionError, match="imported"):
        family("broken")
