"""SDXL that inpaints: what its pipeline does otherwise than SD-1.5's, and pairs to a LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from diffusers import StableDiffusionXLInpaintPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from training import BASES, CPU, hole, photographs, run, training

from raypref.core.config import InputError
from raypref.engine.batches import in_batches
from raypref.evaluate.generate import GenerateConfig
from raypref.evaluate.painting import Paint
from raypref.models.backbone import load_encoder
from raypref.models.checks import check_base
from raypref.report.use import snippet

FLOAT32 = BASES["sdxl_inpaint"].model_copy(update={"dtype": "float32"})
CAPTION, PHOTO = photographs(1)[0]


def plain(dtype: Any = torch.float32) -> StableDiffusionXLInpaintPipeline:
    """As someone without this project loads it."""
    folder = small.path("sdxl-inpaint")
    made = StableDiffusionXLInpaintPipeline.from_pretrained(folder, dtype=dtype)
    made.set_progress_bar_config(disable=True)
    return made


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_around_a_hole_is_as_precise_as_in_the_pipeline(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda own, generator: own.mode())
    kind = getattr(torch, dtype)
    pipeline = plain(kind)
    paint = pipeline.mask_processor.preprocess([hole(0)], height=64, width=64)
    masked = pipeline.image_processor.preprocess([PHOTO], height=64, width=64) * (paint < 0.5)
    # It casts the image to its precision before it encodes it in float32.
    theirs = pipeline.prepare_mask_latents(paint, masked, 1, 64, 64, kind, CPU, None, False)
    encoder = load_encoder(FLOAT32.model_copy(update={"dtype": dtype}), device=CPU)
    ours = encoder.surroundings([PHOTO], [hole(0)])
    assert ours.dtype == torch.float32
    # Latents that bfloat16 or float16 encoded would be 1.5e-3 or 2e-4 off.
    near = {"float32": 1e-6, "bfloat16": 1.2e-3, "float16": 1e-4}[dtype]
    assert (ours - torch.cat(theirs, dim=1).float()).abs().max() < near


def test_from_pairs_to_a_lora_that_plain_diffusers_paints_with(tmp_path: Path) -> None:
    stage = training("dpo", steps=3, batch=2, lr=0.05)
    history = run(stage, str(tmp_path / "lora"), family="sdxl_inpaint")
    assert all(np.isfinite(list(metrics.values())).all() for metrics in history)

    config = GenerateConfig(steps=3, guidance=5.0, size=64, blend=False)
    painting = Paint(FLOAT32, config, loras={"ours": str(tmp_path / "lora")})
    painting.setup()
    given = {"prompt": CAPTION, "noise": 42, "photograph": PHOTO, "mask": hole(0)}
    rows = [{"model": model, **given} for model in ("base", "ours")]
    in_batches(painting, rows)
    base, ours = (np.asarray(row["image"]).astype(int) for row in rows)

    def image(**more: Any) -> np.ndarray:
        [made] = pipeline(
            CAPTION,
            image=PHOTO,
            mask_image=hole(0),
            num_inference_steps=3,
            guidance_scale=5.0,
            height=64,
            width=64,
            generator=torch.Generator().manual_seed(42),
            **more,
        ).images
        return np.asarray(made).astype(int)

    pipeline = plain()
    assert np.abs(image(strength=1.0) - base).max() <= 1, "from pure noise"
    assert np.abs(image() - base).max() > 1, "which is not the pipeline's default"
    pipeline.load_lora_weights(str(tmp_path / "lora"))
    assert np.abs(image(strength=1.0) - ours).max() <= 1
    assert np.abs(ours - base).mean() > 0.5


def test_the_code_of_the_page_paints_from_pure_noise() -> None:
    how = {"lora": "/l", "prompt": "p", "side": 64, "steps": 2, "guidance": 2.0}
    code = snippet(FLOAT32, **how)
    compile(code, "snippet", "exec")
    assert "num_inference_steps=2, guidance_scale=2.0, strength=1.0," in code
    assert "strength" not in snippet(BASES["sd15_inpaint"], **how)


def test_a_model_of_another_family_is_refused_before_any_work() -> None:
    for family, says in (
        ("sdxl", r"reads 9 channels; .* needs 4; set base\.family=sdxl_inpaint$"),
        ("sd15_inpaint", r"has addition_embed_type=text_time; .* set base\.family=sdxl_inpaint$"),
    ):
        with pytest.raises(InputError, match=says):
            check_base(FLOAT32.model_copy(update={"family": family}))
