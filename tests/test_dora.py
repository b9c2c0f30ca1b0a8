"""DoRAs that others trained: evaluated as peft computes them; no start, no part of a soup."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from test_starts import fill, unet_prediction
from training import BASE, denoiser

from raypref.core.config import InputError
from raypref.engine.batches import in_batches
from raypref.evaluate.generate import Generate, GenerateConfig
from raypref.models.lora_config import FILE_NAME
from raypref.models.lora_formats import pipeline_weights, read_lora

PEFT = "adapter_model.safetensors"


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A DoRA of one UNet whose alpha is twice its rank, in peft's layout, and a prediction."""
    targets = ["to_q", "to_v", "to_out.0"]
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, use_dora=True)
    model = peft.get_peft_model(denoiser().module, config)
    fill(model)
    generator = torch.Generator().manual_seed(3)
    for name, value in model.named_parameters():
        if "magnitude" in name:
            value.data *= 1 + 0.2 * torch.rand(value.shape, generator=generator)
    folder = tmp_path / "peft"
    model.save_pretrained(folder)
    return folder, unet_prediction(model)


@pytest.mark.parametrize("layout", ["peft", "diffusers"])
def test_a_pipeline_computes_what_peft_does(
    layout: str, trained: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    folder, expected = trained
    if layout == "diffusers":  # where the scale is the rank's: folded into B
        tensors = load_file(folder / PEFT)
        folder = tmp_path / "diffusers"
        folder.mkdir()
        own = {name.replace("base_model.model.", "unet."): v for name, v in tensors.items()}
        own = {name: v * 2 if "lora_B" in name else v for name, v in own.items()}
        save_file(own, folder / FILE_NAME)
    pipeline = StableDiffusionPipeline.from_pretrained(BASE.model, torch_dtype=torch.float64)
    before = unet_prediction(pipeline.unet)
    pipeline.load_lora_weights(pipeline_weights(str(folder), key="k", component="unet"))
    found = unet_prediction(pipeline.unet)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert (found - before).abs().max() > 1e-3


@pytest.mark.parametrize("fuse", [False, True])
def test_it_is_evaluated(fuse: bool, trained: tuple[Path, torch.Tensor]) -> None:
    config = GenerateConfig(prompts="tiny:prompts", seeds=(42,), steps=2, size=64, fuse=fuse)
    drawing = Generate(BASE, config, loras={"theirs": str(trained[0])})
    drawing.setup()
    rows = [{"model": name, "prompt": "a disc", "noise": 1} for name in ("theirs", "base")]
    in_batches(drawing, rows)
    ours, base = (np.asarray(row["image"]).astype(int) for row in rows)
    assert np.abs(ours - base).mean() > 0.5
    for name, expected in (("theirs", trained[1]), ("base", unet_prediction(denoiser().module))):
        drawing.activate(name)
        found = unet_prediction(drawing.pipeline.unet)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_what_it_cannot_be_is_said_in_one_line(
    trained: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    folder, _ = trained
    with pytest.raises(
        InputError, match=r"^k: .*peft/.* is a DoRA, .*trainings, soups and samples"
    ):
        read_lora(str(folder), key="k", component="unet")
    tensors = load_file(folder / PEFT)
    plain = {name: value for name, value in tensors.items() if "magnitude" not in name}
    save_file(plain, folder / PEFT)
    with pytest.raises(InputError, match="was made with use_dora and holds no magnitudes"):
        pipeline_weights(str(folder), key="k", component="unet")
    kohya = tmp_path / "kohya"
    kohya.mkdir()
    save_file({"lora_unet_mid_block_x.dora_scale": torch.ones(4)}, kohya / FILE_NAME)
    with pytest.raises(InputError, match="is a DoRA in kohya's layout, of which diffusers"):
        pipeline_weights(str(kohya), key="k", component="unet")
    missing = next(name for name in tensors if "magnitude" in name)
    broken = {name: value for name, value in tensors.items() if name != missing}
    save_file(broken, folder / PEFT)
    with pytest.raises(InputError, match="has no sound A, B and magnitude for down_blocks"):
        pipeline_weights(str(folder), key="k", component="unet")
    with pytest.raises(InputError, match=r"^base\.quantise=int8: the LoRA of theirs is a DoRA"):
        quantised = BASE.model_copy(update={"quantise": "int8", "dtype": "float32"})
        config = GenerateConfig(prompts="tiny:prompts", steps=2, size=64)
        save_file(tensors, folder / PEFT)
        Generate(quantised, config, loras={"theirs": str(folder)}).setup()
