"""The SDXL family: what it reads, how its policy is sampled, what leaves it as a LoRA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from training import BASES, CPU, denoiser, pairs, photographs, run, training

from raypref.align.noising import noised_side
from raypref.align.rollout import finished_images
from raypref.core.config import InputError, flatten, load
from raypref.engine.batches import in_batches
from raypref.evaluate.generate import Generate, GenerateConfig
from raypref.models import adapters
from raypref.models.backbone import BackboneConfig, load_autoencoder, load_denoiser, load_encoder
from raypref.models.checks import check_base
from raypref.models.families.conditioning import from_row, stack, to_row
from raypref.models.families.sdxl import SDXLConditioning
from raypref.models.lora_config import LoraConfig
from raypref.run.config import RunConfig

FOLDER = small.path("sdxl")
FLOAT32 = BASES["sdxl"].model_copy(update={"dtype": "float32"})
CAPTIONS = ["a photo of a red ball on grass", "Zürich & ¾-inch nails, 日本 " * 6]

# Diffusion-DPO (arXiv 2311.12908) as its release trains SDXL, launchers/sdxl.sh.
PUBLISHED = {
    "images.size": 1024,
    "base.family": "sdxl",
    "base.model": "stabilityai/stable-diffusion-xl-base-1.0",
    "train.stage2.objective": "dpo",
    "train.stage2.steps": 2000,
    "train.stage2.batch": 16 * 1 * 128,
    "train.stage2.lr": 1e-8 * 16 * 1 * 128,
    "train.stage2.warmup_steps": 200,
    "train.stage2.schedule": "constant",
    "train.stage2.weight_decay": 1e-2,
    "train.stage2.clip": 1.0,
    "train.stage2.ema_decay": 0.0,
    "train.stage2.caption_dropout": 0.0,
    "train.stage2.flip": 0.5,
    "train.stage2.beta": 5000.0,
    "evaluate.guidance": 5.0,
    "evaluate.size": 1024,
}


def pipeline_of(name: str) -> StableDiffusionXLPipeline:
    """As someone without this project loads it."""
    made = StableDiffusionXLPipeline.from_pretrained(small.path(name))
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionXLPipeline:
    """That of the small SDXL."""
    return pipeline_of("sdxl")


def changed(folder: Path, name: str, **values: Any) -> BackboneConfig:
    """The small SDXL with other values in a file."""
    model = shutil.copytree(FOLDER, folder / "model")
    file = model / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return FLOAT32.model_copy(update={"model": str(model)})


# ------------------------------------------------------------------ what the family is


@torch.no_grad()
def test_the_encoder_says_what_the_pipeline_says(pipeline: StableDiffusionXLPipeline) -> None:
    encoder = load_encoder(FLOAT32, device=CPU)
    states, without, pooled, pooled_without = pipeline.encode_prompt(CAPTIONS)
    ours = encoder.text_embeddings(CAPTIONS)
    assert isinstance(ours, SDXLConditioning)
    assert ours.sequence_BLD.shape == (2, 77, 16 + 32)
    assert torch.equal(ours.sequence_BLD, states)
    assert torch.equal(ours.pooled_BP, pooled)
    # The unconditional side among captions, as a dropped caption has it.
    mixed: Any = encoder.text_embeddings(["", *CAPTIONS])
    assert torch.equal(mixed.sequence_BLD[0], without[0]) and not without.any()
    assert torch.equal(mixed.pooled_BP[0], pooled_without[0]) and not pooled_without.any()
    assert mixed.sequence_BLD[1].any()
    again = stack([from_row(SDXLConditioning, to_row(ours[i])) for i in (0, 1)])
    assert torch.equal(again.sequence_BLD, states) and torch.equal(again.pooled_BP, pooled)

    photos = [photo for _, photo in photographs(2)]
    posterior = pipeline.vae.encode(pipeline.image_processor.preprocess(photos)).latent_dist
    mean, log_variance = encoder.image_moments(photos).unbind(1)
    assert torch.equal(mean, posterior.mean * 0.13025)
    torch.testing.assert_close(torch.exp(0.5 * log_variance), posterior.std * 0.13025)


def test_no_caption_is_encoded_where_the_checkpoint_says_so(tmp_path: Path) -> None:
    base = changed(tmp_path, "model_index.json", force_zeros_for_empty_prompt=False)
    pipeline = StableDiffusionXLPipeline.from_pretrained(base.model)
    _, without, _, pooled = pipeline.encode_prompt(CAPTIONS[:1])
    ours: Any = load_encoder(base, device=CPU).text_embeddings([""])
    assert ours.sequence_BLD.any() and ours.pooled_BP.any()
    assert torch.equal(ours.sequence_BLD, without) and torch.equal(ours.pooled_BP, pooled)


@torch.no_grad()
@pytest.mark.parametrize("name", ["sdxl", "sdxl-v"])
def test_a_prediction_is_the_unets_in_a_call_of_the_pipeline(name: str) -> None:
    """Height and width differ, so that the order of the size ids is seen."""
    pipeline, steps, seen = pipeline_of(name), 3, []
    pipeline.unet.register_forward_hook(
        lambda _, inputs, given, output: seen.append((inputs, given, output[0])), with_kwargs=True
    )
    pipeline(
        CAPTIONS,
        num_inference_steps=steps,
        guidance_scale=5.0,
        height=64,
        width=48,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    assert len(seen) == steps
    base = FLOAT32.model_copy(update={"model": str(small.path(name))})
    network, encoder = load_denoiser(base, device=CPU), load_encoder(base, device=CPU)
    [empty], captions = encoder.text_embeddings([""]), encoder.text_embeddings(CAPTIONS)
    prompts = stack([empty, empty, *captions])
    ours: list[Any] = []
    network.module.register_forward_hook(
        lambda _, inputs, given, output: ours.append((inputs, given)), with_kwargs=True
    )
    grid = network.sampling_timesteps(steps, (4, 8, 6))
    for i, ((x, t), given, output) in enumerate(seen):
        assert int(t) == t == grid[i]
        found = network.predict(x, grid[i].expand(4), prompts)
        (_, _, states), own = ours[-1]
        assert torch.equal(states, given["encoder_hidden_states"])
        theirs = given["added_cond_kwargs"]
        assert theirs["time_ids"].tolist() == [[64, 48, 0, 0, 64, 48]] * 4
        for key, value in theirs.items():
            assert torch.equal(own["added_cond_kwargs"][key], value)
        torch.testing.assert_close(found, output, rtol=1e-4, atol=1e-5)
    assert seen[0][2].std() > 0.01


@torch.no_grad()
def test_bfloat16_predicts_the_same_but_for_rounding() -> None:
    data = pairs(2, family="sdxl")
    x, t = (
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.tensor([9, 990]),
    )
    exact, rounded = (
        load_denoiser(BASES["sdxl"].model_copy(update={"dtype": dtype}), device=CPU).predict(
            x, t, data.embeddings
        )
        for dtype in ("float64", "bfloat16")
    )
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).std() < 0.05 * exact.std()


@pytest.mark.parametrize("name", ["sdxl", "sdxl-v"])
def test_a_rollout_is_the_pipelines_without_guidance(name: str) -> None:
    base = BASES["sdxl"].model_copy(update={"model": str(small.path(name))})
    network = load_denoiser(base, device=CPU)
    prompts: Any = load_encoder(base, device=CPU).text_embeddings(CAPTIONS)
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    grid = network.sampling_timesteps(10, (4, 8, 8))[:, None].expand(-1, 2)
    ours = finished_images(network.predict, network.solver, start, prompts, grid_nB=grid)
    pipeline = pipeline_of(name).to(torch.float64)
    theirs = pipeline(
        prompt_embeds=prompts.sequence_BLD,
        pooled_prompt_embeds=prompts.pooled_BP,
        num_inference_steps=10,
        guidance_scale=1.0,
        height=64,
        width=64,
        latents=start,
        output_type="latent",
    ).images
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()  # its levels are float32


@pytest.mark.parametrize("steps", [1, 20, 30, 50, 1000])
def test_the_timesteps_are_eulers(steps: int) -> None:
    scheduler = EulerDiscreteScheduler.from_pretrained(FOLDER, subfolder="scheduler")
    scheduler.set_timesteps(steps)
    found = denoiser("sdxl").sampling_timesteps(steps, (4, 8, 8))
    assert found.tolist() == [min(t, 999) for t in scheduler.timesteps.tolist()]


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_v_is_what_diffusers_calls_it_and_steps_with_noise_are_ddims(eta: float) -> None:
    base = BASES["sdxl"].model_copy(update={"model": str(small.path("sdxl-v"))})
    network = load_denoiser(base, device=CPU)
    clean, noise, x = torch.randn(3, 2, 4, 8, 8, dtype=torch.float64).unbind()
    t = torch.tensor([30, 900])
    scheduler = DDIMScheduler.from_pretrained(
        base.model, subfolder="scheduler", set_alpha_to_one=True, clip_sample=False
    )
    v = scheduler.get_velocity(clean, noise, t)
    side = noised_side(network, clean, noise, t)  # as trainings on pairs have it
    torch.testing.assert_close(side.target_BCHW, v)
    torch.testing.assert_close(side.x_BCHW, scheduler.add_noise(clean, noise, t))
    # Leading timesteps end at 1 and not at 0: the last step is taken apart.
    scheduler.set_timesteps(4)
    grid = network.sampling_timesteps(4, (4, 8, 8))
    assert grid.tolist() == scheduler.timesteps.tolist()
    solver = network.stochastic_solver(grid[:, None].expand(-1, 2), eta=eta)
    for i, t in enumerate(scheduler.timesteps[:-1]):
        prediction, noise = torch.tanh(x + i), torch.randn_like(x)
        before, step = x, solver.step(i, x, prediction, noise)
        x = scheduler.step(prediction, t, x, eta=eta, variance_noise=noise).prev_sample
        torch.testing.assert_close(step.x_BCHW, x, rtol=1e-5, atol=1e-5)
        silent = solver.step(i, before, step.target_BCHW, 0 * noise).x_BCHW
        torch.testing.assert_close(silent, step.x_BCHW)  # the outcome is likeliest under the target


def test_the_autoencoder_works_in_float32_where_float16_overflows(tmp_path: Path) -> None:
    half = FLOAT32.model_copy(update={"dtype": "float16"})
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        FOLDER, unet=None, text_encoder=None, text_encoder_2=None, torch_dtype=torch.float16
    )
    pipeline.upcast_vae()
    autoencoder = load_autoencoder(half, device=CPU)
    with torch.no_grad():
        theirs = pipeline.vae.decode(latents.float() / 0.13025).sample
        ours = autoencoder.decode(latents)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, (theirs / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-3)
    assert autoencoder.image_moments([photographs(1)[0][1]]).dtype == torch.float32
    sound = changed(tmp_path, "vae/config.json", force_upcast=False).model_copy(
        update={"dtype": "float16"}
    )
    kept: Any = load_autoencoder(sound, device=CPU)
    assert kept.vae.dtype == torch.float16


# ------------------------------------------------------------------ what is refused


def test_another_process_is_refused(tmp_path: Path) -> None:
    base = changed(tmp_path, "scheduler/scheduler_config.json", prediction_type="sample")
    with pytest.raises(InputError, match=r"^base.model: .* predicts sample; the sdxl family"):
        load_denoiser(base, device=CPU)


def test_latents_with_a_mean_are_refused(tmp_path: Path) -> None:
    base = changed(tmp_path, "vae/config.json", latents_mean=[0.0] * 4)
    with pytest.raises(InputError, match=r"^base.model: .* mean per channel"):
        load_autoencoder(base, device=CPU)


def test_a_model_of_another_family_is_refused_before_any_work() -> None:
    check_base(FLOAT32)
    with pytest.raises(
        InputError,
        match=r"has addition_embed_type=text_time; the family sd15 needs addition_embed_type=None; "
        "set base.family=sdxl$",
    ):
        check_base(FLOAT32.model_copy(update={"family": "sd15"}))
    with pytest.raises(InputError, match="has no text_encoder_2, tokenizer_2; sdxl needs"):
        check_base(BASES["sd15"].model_copy(update={"family": "sdxl"}))


# ------------------------------------------------------------------ what is trained


def test_the_preset_is_the_published_setting_of_diffusion_dpo() -> None:
    preset = flatten(load(RunConfig, "sdxl", ["source.path=p", "evaluate.prompts=p"]))
    assert preset == preset | PUBLISHED


def test_trainable_parameters_at_full_size() -> None:
    """By hand, per rank: 10 blocks of width 640 and 60 of 1280, each with two attentions of four
    layers, the second's keys and values read 2048 values of text."""
    with torch.device("meta"):
        network = UNet2DConditionModel(
            sample_size=128,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=1280 + 6 * 256,
        )
    assert sum(p.numel() for p in network.parameters()) == 2_567_463_684
    per_rank = sum(n * (6 * 2 * c + 2 * (2048 + c)) for n, c in ((10, 640), (60, 1280)))
    lora = load(RunConfig, "sdxl", ["source.path=p", "evaluate.prompts=p"]).lora
    assert lora.rank == 64
    adapters.attach(network, LoraConfig(rank=64, targets=lora.targets), names=("learner",), seed=0)
    assert len(adapters.vector(network, "learner")) == 64 * per_rank == 92_897_280


def test_from_pairs_to_a_lora_that_plain_diffusers_draws_with(
    pipeline: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    stage = training("dpo", steps=3, batch=2, lr=0.05)
    history = run(stage, str(tmp_path / "lora"), family="sdxl")
    assert all(np.isfinite(list(metrics.values())).all() for metrics in history)

    config = GenerateConfig(prompts="tiny:prompts", seeds=(42,), steps=3, guidance=5.0, size=64)
    drawing = Generate(FLOAT32, config, loras={"ours": str(tmp_path / "lora")})
    drawing.setup()
    rows = [{"model": model, "prompt": CAPTIONS[0], "noise": 42} for model in ("base", "ours")]
    in_batches(drawing, rows)
    base_image, ours = (np.asarray(row["image"]).astype(int) for row in rows)

    def plain() -> np.ndarray:
        [image] = pipeline(
            CAPTIONS[0],
            num_inference_steps=3,
            guidance_scale=5.0,
            height=64,
            width=64,
            generator=torch.Generator().manual_seed(42),
        ).images
        return np.asarray(image).astype(int)

    assert np.abs(plain() - base_image).max() <= 1
    pipeline.load_lora_weights(str(tmp_path / "lora"))
    assert np.abs(plain() - ours).max() <= 1
    pipeline.unload_lora_weights()
    assert np.abs(ours - base_image).mean() > 0.5
