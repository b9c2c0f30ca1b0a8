"""The Z-Image family: what it reads, how its policy is sampled, what leaves it as a LoRA."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_z_image
import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from training import BASES, CPU, photographs, run, training

from raypref.align.online import guided
from raypref.align.rollout import finished_images
from raypref.core.config import InputError, load
from raypref.engine.batches import in_batches
from raypref.evaluate.generate import Generate, GenerateConfig
from raypref.models import adapters
from raypref.models.backbone import BackboneConfig, load_denoiser, load_encoder
from raypref.models.checks import check_base, check_side
from raypref.models.families.conditioning import from_row, stack, to_row
from raypref.models.families.z_image import FAMILY, ZImageConditioning
from raypref.models.lora_config import LoraConfig
from raypref.report.use import snippet
from raypref.run.config import RunConfig
from raypref.run.model_sizes import SIZES

FOLDER = small_z_image.path()
FLOAT32 = BASES["z_image"].model_copy(update={"dtype": "float32"})
# The second is of more tokens than bfloat16 counts one by one.
CAPTIONS = ["a photo of a red ball on grass", "Zürich & ¾-inch nails, 日本 " * 9]


def pipeline_of(folder: str | Path) -> ZImagePipeline:
    """As someone without this project loads it."""
    made = ZImagePipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def pipeline() -> ZImagePipeline:
    """That of the small Z-Image."""
    return pipeline_of(FOLDER)


def changed(folder: Path, name: str, **values: Any) -> BackboneConfig:
    """The small Z-Image with other values in a file."""
    model = shutil.copytree(FOLDER, folder / "model")
    file = model / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return FLOAT32.model_copy(update={"model": str(model)})


# ------------------------------------------------------------------ what the family is


@torch.no_grad()
def test_the_encoder_says_what_the_pipeline_says(pipeline: ZImagePipeline) -> None:
    encoder = load_encoder(FLOAT32, device=CPU)
    texts, [without, _] = pipeline.encode_prompt([*CAPTIONS])
    ours = encoder.text_embeddings([*CAPTIONS, ""])
    assert isinstance(ours, ZImageConditioning)
    assert ours.sequence_BLD.shape == (3, 512, 32)
    lengths = [len(text) for text in (*texts, without)]
    assert lengths[2] < lengths[0] < 256 < lengths[1] < 512
    for i, text in enumerate([*texts, without]):
        assert torch.equal(ours.sequence_BLD[i, : len(text)], text)
        assert not ours.sequence_BLD[i, len(text) :].any()
        assert ours.text_mask_BL[i].tolist() == [1] * len(text) + [0] * (512 - len(text))
    again = stack([from_row(ZImageConditioning, to_row(ours[i])) for i in range(3)])
    assert torch.equal(again.sequence_BLD, ours.sequence_BLD)
    assert torch.equal(again.text_mask_BL, ours.text_mask_BL)

    photos = [photo for _, photo in photographs(2)]
    posterior = pipeline.vae.encode(pipeline.image_processor.preprocess(photos)).latent_dist
    mean, log_variance = encoder.image_moments(photos).unbind(1)
    assert torch.equal(mean, (posterior.mean - 0.1159) * 0.3611)
    torch.testing.assert_close(torch.exp(0.5 * log_variance), posterior.std * 0.3611)


@torch.no_grad()
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_prediction_is_the_transformers_in_a_call_of_the_pipeline(
    dynamic: bool, tmp_path: Path
) -> None:
    """With prompts of two lengths, and with the timesteps that the pipeline takes."""
    name = "scheduler/scheduler_config.json"
    base = changed(tmp_path, name, use_dynamic_shifting=dynamic, base_shift=0.7)
    pipeline, steps, seen = pipeline_of(base.model), 2, []
    pipeline.transformer.register_forward_hook(
        lambda _, inputs, given, output: seen.append((inputs, output[0])), with_kwargs=True
    )
    pipeline(
        [*CAPTIONS],
        num_inference_steps=steps,
        guidance_scale=4.0,
        height=64,
        width=48,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    assert len(seen) == steps
    network, encoder = load_denoiser(base, device=CPU), load_encoder(base, device=CPU)
    prompts: Any = encoder.text_embeddings([*CAPTIONS, "", ""])
    ours: list[Any] = []
    network.module.register_forward_hook(lambda _, inputs, output: ours.append(inputs))
    grid = network.sampling_timesteps(steps, (16, 8, 6))
    assert torch.equal(grid.float(), pipeline.scheduler.timesteps)
    plain = torch.tensor([1.0, 0.5]).double()
    if dynamic:
        mu = 0.7 + (4 * 3 - 256) * (1.15 - 0.7) / (4096 - 256)
        expected = np.exp(mu) / (np.exp(mu) + 1 / plain - 1)
    else:
        expected = 6 * plain / (1 + 5 * plain)
    torch.testing.assert_close(grid, 1000 * expected, rtol=1e-6, atol=0)
    for i, ((x, time, texts), output) in enumerate(seen):
        assert [part.shape for part in x] == [(16, 1, 8, 6)] * 4
        found = network.predict(torch.stack(x)[:, :, 0], grid[i].expand(4), prompts)
        assert torch.equal(ours[-1][1], time)
        assert all(map(torch.equal, ours[-1][2], texts))
        velocity = -torch.stack(output)[:, :, 0]
        torch.testing.assert_close(found, velocity, rtol=1e-4, atol=1e-5)
    assert velocity.std() > 0.01


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    """Neither what stands in it, nor captions beside, nor the precision of the mask."""
    network = load_denoiser(BASES["z_image"], device=CPU)
    captions: Any = load_encoder(BASES["z_image"], device=CPU).text_embeddings(CAPTIONS)
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    t = torch.tensor([300.0, 900.0]).double()
    both = network.predict(x, t, captions)
    noise = torch.randn(captions.sequence_BLD.shape, dtype=torch.float64)
    hidden = noise * (1 - captions.text_mask_BL[:, :, None])
    filled = replace(captions, sequence_BLD=captions.sequence_BLD + hidden)
    assert torch.equal(network.predict(x, t, filled), both)
    rough = replace(captions, text_mask_BL=captions.text_mask_BL.bfloat16())
    assert torch.equal(network.predict(x, t, rough), both)
    for i in range(2):
        alone = network.predict(x[i : i + 1], t[i : i + 1], captions[[i]])
        torch.testing.assert_close(alone[0], both[i], rtol=1e-6, atol=1e-6)
    other = network.predict(x, t, captions[[1, 0]])
    assert (other - both).abs().max() > 1e-3  # captions are read


def test_a_guided_rollout_is_the_pipelines_whose_scale_is_one_less() -> None:
    network = load_denoiser(BASES["z_image"], device=CPU)
    encoder: Any = load_encoder(BASES["z_image"], device=CPU)
    prompts, empty = encoder.text_embeddings(CAPTIONS), encoder.text_embeddings(["", ""])
    start = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    grid = network.sampling_timesteps(4, (16, 8, 8))[:, None].expand(-1, 2)
    pipeline = pipeline_of(FOLDER).to(torch.float64)
    for guidance in (1.0, 5.0):
        predict = guided(network, empty, guidance)
        with torch.no_grad():
            ours = finished_images(predict, network.solver, start, prompts, grid_nB=grid)
        theirs = pipeline(
            **FAMILY.arguments([*CAPTIONS], guidance, 64),
            num_inference_steps=4,
            latents=start,
            output_type="latent",
        ).images
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()  # theirs are float32
    assert FAMILY.arguments(["a"], 5.0, 64)["guidance_scale"] == 4
    assert FAMILY.arguments(["a"], 0.0, 64)["guidance_scale"] == 0
    code = snippet(FLOAT32, lora="x", prompt="p", side=64, steps=3, guidance=5.0)
    assert "guidance_scale=4.0" in code


# ------------------------------------------------------------------ what is refused


def test_a_model_of_another_family_and_a_side_of_8_are_refused_before_any_work() -> None:
    check_base(FLOAT32)
    with pytest.raises(
        InputError,
        match=r"has _class_name=SD3Transformer2DModel; the family z_image needs "
        r"_class_name=ZImageTransformer2DModel$",
    ):
        check_base(BASES["sd35m"].model_copy(update={"family": "z_image"}))
    with pytest.raises(InputError, match="has no text_encoder_2, tokenizer_2"):
        check_base(FLOAT32.model_copy(update={"family": "sd35m"}))
    check_side(FLOAT32, 48, key="images.size")
    with pytest.raises(InputError, match=r"images\.size.*16"):
        check_side(FLOAT32, 56, key="images.size")


# ------------------------------------------------------------------ what is trained


def test_trainable_parameters_at_full_size() -> None:
    """By hand, per rank: four layers of 3840 x 3840 in 30 blocks and in 2 + 2 that refine."""
    with torch.device("meta"):
        network = ZImageTransformer2DModel()  # as published: 3840 wide, 30 heads
    count = sum(p.numel() for p in network.parameters())
    assert count == 6_154_908_736
    per_rank = (30 + 2 + 2) * 4 * 2 * 3840
    lora = load(RunConfig, "z_image", ["source.path=p", "evaluate.prompts=p"]).lora
    assert lora.rank == 64
    adapters.attach(network, LoraConfig(rank=64, targets=lora.targets), names=("learner",), seed=0)
    assert len(adapters.vector(network, "learner")) == 64 * per_rank == 66_846_720
    assert SIZES["z_image"].trained == pytest.approx(count / 1e9, rel=1e-4)
    assert SIZES["z_image"].adapter == pytest.approx(per_rank / 1e9, rel=1e-3)


def test_from_pairs_to_a_lora_that_plain_diffusers_draws_with(
    pipeline: ZImagePipeline, tmp_path: Path
) -> None:
    stage = training("dpo", steps=3, batch=2, lr=0.05)
    history = run(stage, str(tmp_path / "lora"), family="z_image")
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
            guidance_scale=4.0,
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
