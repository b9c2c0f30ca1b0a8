"""Twins painted at another side than the photographs', and what PixArt keeps around the region."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import small
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import PixArtImageProcessor
from painters import BLENDED, CONFIG, folder_of, guided, make_rows, of_kind, pixels, png, twins
from PIL import Image

from raypref.core.config import InputError, Resources, results_of
from raypref.core.rows import Row, seed_of
from raypref.curate.perturb import Inpaint, PerturbConfig, pipeline_of
from raypref.engine.batches import in_batches
from raypref.images.decode import open_png

SIDE = 96  # where crops have 64
ALONE = Resources(batch=1)


def plain(kind: str, row: Row, *, side: int, output: str = "pil", **inputs: Any) -> Any:
    """What a kind's pipeline makes of a row, called at a side."""
    pipeline = pipeline_of(kind).from_pretrained(folder_of(kind))  # type: ignore[arg-type]
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        [row["caption"]],
        **inputs,
        height=side,
        width=side,
        num_inference_steps=3,
        **guided(kind, 7.5, count=1),
        generator=[torch.Generator().manual_seed(seed_of(0, "inpaint", row["key"]))],
        output_type=output,
    ).images


@pytest.mark.parametrize("kind", ["sd15", "sd35m", "flux_fill", "sdxl", "text2image", *BLENDED])
def test_a_twin_is_what_the_pipeline_makes_at_that_side_resized(kind: str) -> None:
    """As torchvision's Resize does to an image of 8 bits, in the released trainings."""
    [row] = make_rows(1)
    [twin] = twins(of_kind(kind, size=SIDE, resources=ALONE), [row], batch=1).values()
    inputs: dict[str, Any] = {}
    if kind != "text2image":
        image = open_png(row["chosen"])
        if kind in ("z_image", "flux2_klein"):  # whose pipelines leave a photograph's size
            image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        inputs = {"image": [image], "mask_image": [open_png(row["saliency"])]}
        inputs["strength"] = 1.0  # some pipelines' default is less
    [image] = plain(kind, row, side=SIDE, **inputs)
    assert image.size == (SIDE, SIDE) and twin.shape == (64, 64, 3)
    assert (twin == pixels(image.resize((64, 64), Image.Resampling.BILINEAR))).all()
    [before] = twins(of_kind(kind, resources=ALONE), [row], batch=1).values()
    assert np.abs(twin - before).mean() > 1


@pytest.mark.parametrize("side", [96, 128])
def test_pixart_resizes_what_it_painted_as_its_own_pipeline_does(side: int) -> None:
    [row] = make_rows(1)
    [twin] = twins(of_kind("pixart", size=side, resources=ALONE), [row], batch=1).values()
    inputs = {"image": [open_png(row["chosen"])], "mask_image": [open_png(row["saliency"])]}
    x_BCHW = plain("pixart", row, side=side, output="pt", **inputs)
    y_BCHW = PixArtImageProcessor.resize_and_crop_tensor(x_BCHW, 64, 64)
    assert (twin == (y_BCHW[0].permute(1, 2, 0) * 255).round().numpy()).all()
    if side == 128:  # which is the mean of four
        blocks = x_BCHW[0].reshape(3, 64, 2, 64, 2).mean((2, 4)).permute(1, 2, 0)
        assert np.abs(twin - (blocks * 255).round().numpy()).max() <= 1


def test_the_side_of_the_crops_changes_nothing() -> None:
    rows = make_rows(2)
    for kind in ("sd15", "pixart", "text2image"):
        before, made = (twins(of_kind(kind, size=size), rows, batch=2) for size in (0, 64))
        assert all((before[key] == made[key]).all() for key in before)


def test_a_pasted_twin_has_the_photographs_own_pixels() -> None:
    [row] = make_rows(1)
    plain_twin, pasted = (
        next(iter(twins(of_kind("sd15", size=SIDE, paste=paste), [row], batch=1).values()))
        for paste in (False, True)
    )
    mask = pixels(row["saliency"]) > 127
    assert (pasted[~mask] == pixels(row["chosen"])[~mask]).all()
    assert (pasted[mask] == plain_twin[mask]).all()


def test_candidates_without_photographs_are_painted_at_that_side_too() -> None:
    config = CONFIG.model_copy(
        update={"kind": "text2image", "model": str(small.path("sd15")), "size": SIDE}
    )
    stage = Inpaint(config, seed=0, column="image", numbered=True, side=64)
    stage.setup()
    [row] = make_rows(1)
    candidate = {"key": row["key"], "caption": row["caption"], "candidate": 0}
    in_batches(stage, [candidate])
    [twin] = twins(of_kind("text2image", size=SIDE), [row], batch=1).values()
    assert (pixels(candidate["image"]) == twin).all()


def test_a_side_that_the_model_does_not_take_is_refused() -> None:
    with pytest.raises(InputError, match=r"perturb\.size=66: .* multiples of 8"):
        CONFIG.model_copy(update={"size": 66}).check(64)
    CONFIG.model_copy(update={"size": 64}).check(66)  # crops of any side can be resized
    large = {"kind": "flux_fill", "model": str(small.path("flux-fill")), "size": 72}
    with pytest.raises(InputError, match=r"perturb\.size=72: .* multiples of 16"):
        CONFIG.model_copy(update=large).check(64)


def test_pixart_keeps_a_sample_of_the_latents_where_it_is_asked_to() -> None:
    """With nothing to repaint: the sample, decoded. It is drawn after the noise."""
    [row] = make_rows(1)
    nothing = {**row, "saliency": png(np.zeros((64, 64), np.uint8))}
    stage = of_kind("pixart", latents="sample", resources=ALONE)
    [twin] = twins(stage, [nothing], batch=1).values()
    vae = AutoencoderKL.from_pretrained(small.path("pixart"), subfolder="vae")
    generator = torch.Generator().manual_seed(seed_of(0, "inpaint", row["key"]))
    torch.randn(1, 4, 8, 8, generator=generator)
    x_BCHW = torch.from_numpy(pixels(row["chosen"])).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        posterior = vae.encode(x_BCHW).latent_dist
        draw = torch.randn(1, 4, 8, 8, generator=generator)
        y_BCHW = vae.decode(posterior.mean + posterior.std * draw).sample
    expected = ((y_BCHW[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1) * 255).round().numpy()
    assert np.abs(twin - expected).max() <= 1
    [mode] = twins(of_kind("pixart", resources=ALONE), [nothing], batch=1).values()
    assert np.abs(twin - mode).max() > 1


def test_older_twins_stay_valid() -> None:
    before = results_of({"perturb": PerturbConfig()})
    assert not {"perturb.size", "perturb.latents"} & before.keys()
    other = results_of({"perturb": PerturbConfig(size=1024, latents="sample")})
    assert other.keys() - before.keys() == {"perturb.size", "perturb.latents"}
