"""FLUX.1 Fill: what it reads, on which levels it is drawn and trained, what leaves it as a LoRA."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from diffusers import FluxFillPipeline, FluxTransformer2DModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from training import BASES, CPU, LORAS, denoiser, hole, pairs, photographs, training

from raypref.align.loop import Alone, train
from raypref.align.residuals import LEARNER
from raypref.align.rollout import finished_images
from raypref.core.config import InputError
from raypref.engine.batches import in_batches
from raypref.evaluate.generate import Generate, GenerateConfig
from raypref.models import adapters
from raypref.models.backbone import load_denoiser, load_encoder
from raypref.models.checks import check_base
from raypref.models.families.flux import packed, unpacked
from raypref.models.families.flux_fill import FAMILY
from raypref.models.lora_config import LoraConfig
from raypref.run.model_sizes import SIZES

FOLDER = small.path("flux-fill")
FLOAT32 = BASES["flux_fill"].model_copy(update={"dtype": "float32"})
CAPTIONS = ["a photo of a red ball on grass", "", "Zürich & ¾-inch nails, 日本 " * 40]


@pytest.fixture(scope="module")
def pipeline() -> FluxFillPipeline:
    """As someone without this project loads it."""
    made = FluxFillPipeline.from_pretrained(FOLDER)
    made.set_progress_bar_config(disable=True)
    return made


@torch.no_grad()
def test_the_encoder_says_what_the_pipeline_says(pipeline: FluxFillPipeline) -> None:
    sequence, pooled, _ = pipeline.encode_prompt(CAPTIONS)
    ours = load_encoder(FLOAT32, device=CPU).text_embeddings(CAPTIONS)
    assert ours.sequence_BLD.shape[1] == 512  # type: ignore[attr-defined]
    assert torch.equal(ours.sequence_BLD, sequence)  # type: ignore[attr-defined]
    assert torch.equal(ours.pooled_BP, pooled)  # type: ignore[attr-defined]


def test_tokens_are_the_pipelines_and_come_back() -> None:
    latents = torch.randn(2, 5, 8, 12)
    tokens = FluxFillPipeline._pack_latents(latents, 2, 5, 8, 12)
    assert torch.equal(packed(latents), tokens)
    assert torch.equal(unpacked(tokens, (8, 12)), latents)


def test_the_hole_is_the_masks_nearest_neighbour() -> None:
    photo, mask = photographs(1)[0][1], hole(3)
    around = load_encoder(FLOAT32, device=CPU).surroundings([photo], [mask])
    assert around.shape == (1, 16 + 64, 8, 8)
    levels = torch.tensor(np.asarray(mask))[None, None].float() / 255
    assert FAMILY.hole is not None
    nearest = torch.nn.functional.interpolate(levels, (8, 8))
    assert torch.equal(FAMILY.hole(around), nearest)
    # No pixel is lost, whether or not the hole fits the grid of latents.
    assert torch.equal(torch.nn.functional.pixel_shuffle(around[:, 16:], 8), levels)


def test_timesteps_are_uniform_on_levels_without_a_shift() -> None:
    network, shape = denoiser("flux_fill"), (16, 64, 64)
    timesteps = network.training_timesteps(shape)
    torch.testing.assert_close(timesteps, torch.arange(1, 1001).double(), rtol=1e-6, atol=0)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([network.draw_timestep(generator, shape) for _ in range(500)])
    counts = torch.histc(drawn, bins=5, min=0, max=1000)
    assert counts.min() > 65, counts  # 100 expected, 4 sigma is 36


@torch.no_grad()
def test_a_rollout_is_the_pipelines_with_guidance_1(
    pipeline: FluxFillPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda own, generator: own.mode())
    size = (64, 96)  # the shift is that of this size
    photos = [photo.resize(size[::-1]) for _, photo in photographs(2)]
    masks = [hole(n).resize(size[::-1], Image.Resampling.NEAREST) for n in range(2)]
    encoder, network = load_encoder(FLOAT32, device=CPU), load_denoiser(FLOAT32, device=CPU)
    prompts: Any = replace(
        encoder.text_embeddings(CAPTIONS[:2]),
        surroundings_BKHW=encoder.surroundings(photos, masks),
    )
    start = torch.randn(2, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    grid = network.sampling_timesteps(5, (16, 8, 12))[:, None].expand(-1, 2)
    ours = finished_images(network.predict, network.solver, start, prompts, grid_nB=grid)
    theirs = pipeline(
        prompt_embeds=prompts.sequence_BLD,
        pooled_prompt_embeds=prompts.pooled_BP,
        image=photos,
        mask_image=masks,
        num_inference_steps=5,
        guidance_scale=1.0,
        height=size[0],
        width=size[1],
        latents=packed(start),
        output_type="latent",
    ).images
    torch.testing.assert_close(packed(ours), theirs, atol=1e-5, rtol=0)


def test_a_text_to_image_transformer_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "flux")
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"in_channels": 64}))
    base = FLOAT32.model_copy(update={"model": str(folder)})
    with pytest.raises(
        InputError,
        match=r"reads 64 channels; the family flux_fill needs 384; set base\.family=flux$",
    ):
        check_base(base)


def test_trainable_parameters_at_full_size() -> None:
    with torch.device("meta"):
        network = FluxTransformer2DModel(in_channels=384, out_channels=64, guidance_embeds=True)
    config = LoraConfig(rank=64, alpha=128, targets=FAMILY.targets)
    adapters.attach(network, config, names=("learner",), seed=0)
    # Eight layers of 3072 x 3072 in 19 blocks, three in 38.
    per_rank = 2 * 3072 * (19 * 8 + 38 * 3)
    assert len(adapters.vector(network, "learner")) == 64 * per_rank
    counted = sum(p.numel() for p in network.parameters())
    assert SIZES["flux_fill"].trained == pytest.approx(counted / 1e9, rel=1e-4)
    assert SIZES["flux_fill"].adapter == pytest.approx(per_rank / 1e9, rel=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_from_pairs_to_a_lora_that_plain_diffusers_paints_with(
    dtype: str, pipeline: FluxFillPipeline, tmp_path: Path
) -> None:
    base = FLOAT32.model_copy(update={"dtype": dtype})
    network, data = load_denoiser(base, device=CPU), pairs(3, family="flux_fill")
    history = train(
        network,
        data,
        training("dpo", steps=2, batch=2, lr=0.05, region="hole"),
        LORAS["flux_fill"],
        name="one",
        draws="one",
        seed=0,
        folder=str(tmp_path),
        start=None,
        group=Alone(),
        on_step=lambda metrics: None,
        hole=FAMILY.hole,
    )
    assert all(np.isfinite(list(metrics.values())).all() for metrics in history)
    assert {p.dtype for p in adapters.matrices(network.module, LEARNER)} == {torch.float32}
    if dtype == "bfloat16":
        return  # the drawing is in float32

    config = GenerateConfig(prompts="tiny:prompts", seeds=(42,), steps=2, guidance=30, size=64)
    drawing = Generate(FLOAT32, config, loras={"ours": str(tmp_path)})
    drawing.setup()
    rows = [{"model": model, "prompt": CAPTIONS[0], "noise": 42} for model in ("base", "ours")]
    in_batches(drawing, rows)
    without, ours = (np.asarray(row["image"]).astype(int) for row in rows)

    def plain() -> np.ndarray:
        [image] = pipeline(
            CAPTIONS[0],
            image=Image.new("RGB", (64, 64)),
            mask_image=Image.new("L", (64, 64), 255),
            num_inference_steps=2,
            guidance_scale=30,
            height=64,
            width=64,
            generator=torch.Generator().manual_seed(42),
        ).images
        return np.asarray(image).astype(int)

    assert np.abs(plain() - without).max() <= 1
    pipeline.load_lora_weights(str(tmp_path))
    assert np.abs(plain() - ours).max() <= 1
    pipeline.unload_lora_weights()
    assert np.abs(ours - without).max() > 1
