"""The FLUX.2 [klein] family: what it reads, how its policy is sampled, what leaves it as a LoRA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_flux2_klein
import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from plain_flux2_klein import shift
from training import BASES, CPU, photographs, run, training

from raypref.align.online import guided
from raypref.align.rollout import finished_images
from raypref.core.config import InputError, load
from raypref.engine.batches import in_batches
from raypref.evaluate.generate import Generate, GenerateConfig
from raypref.models import adapters
from raypref.models.backbone import (
    BackboneConfig,
    load_autoencoder,
    load_denoiser,
    load_encoder,
)
from raypref.models.checks import check_adapter, check_base, check_side
from raypref.models.families.conditioning import from_row, stack, to_row
from raypref.models.families.flux2_klein import FAMILY, Flux2KleinConditioning
from raypref.models.lora_config import LoraConfig
from raypref.report.use import snippet
from raypref.run.config import RunConfig
from raypref.run.model_sizes import SIZES

FOLDER = small_flux2_klein.path()
FLOAT32 = BASES["flux2_klein"].model_copy(update={"dtype": "float32"})
CAPTIONS = ["a photo of a red ball on grass", "Zürich & ¾-inch nails, 日本"]


def pipeline_of(folder: str | Path) -> Flux2KleinPipeline:
    """As someone without this project loads it."""
    made = Flux2KleinPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def pipeline() -> Flux2KleinPipeline:
    """That of the small FLUX.2 [klein]."""
    return pipeline_of(FOLDER)


def changed(folder: Path, name: str, **values: Any) -> BackboneConfig:
    """The small FLUX.2 [klein] with other values in a file."""
    model = shutil.copytree(FOLDER, folder / "model")
    file = model / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return FLOAT32.model_copy(update={"model": str(model)})


# ------------------------------------------------------------------ what the family is


@torch.no_grad()
def test_a_caption_is_three_layers_of_qwen3_and_padding_counts(
    pipeline: Flux2KleinPipeline,
) -> None:
    encoder = load_encoder(FLOAT32, device=CPU)
    ours = encoder.text_embeddings([*CAPTIONS, ""])
    assert isinstance(ours, Flux2KleinConditioning)
    assert ours.sequence_BLD.shape == (3, 512, 3 * small_flux2_klein.WIDTH)
    theirs, _ = pipeline.encode_prompt([*CAPTIONS, ""])
    assert torch.equal(ours.sequence_BLD, theirs)
    for i, caption in enumerate([*CAPTIONS, ""]):
        text = (
            f"<|im_start|>user\n{caption}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        )
        ids = pipeline.tokenizer(text)["input_ids"]
        padded = torch.tensor([ids + [pipeline.tokenizer.pad_token_id] * (512 - len(ids))])
        mask = (torch.arange(512) < len(ids)).long()[None]
        states = pipeline.text_encoder.model(
            padded, attention_mask=mask, output_hidden_states=True
        ).hidden_states
        expected = torch.cat([states[layer] for layer in (9, 18, 27)], dim=2)
        torch.testing.assert_close(ours.sequence_BLD[i], expected[0], rtol=1e-4, atol=1e-5)
        assert ours.sequence_BLD[i, -1].abs().max() > 0
    again = stack([from_row(Flux2KleinConditioning, to_row(ours[i])) for i in range(3)])
    assert torch.equal(again.sequence_BLD, ours.sequence_BLD)


@torch.no_grad()
def test_latents_are_patches_that_the_batch_norm_normalised(pipeline: Flux2KleinPipeline) -> None:
    photos = [photo for _, photo in photographs(2)]
    ours = load_autoencoder(FLOAT32, device=CPU)
    mean, log_variance = ours.image_moments(photos).unbind(1)
    assert mean.shape == (2, 128, 4, 4)
    pixels = pipeline.image_processor.preprocess(photos)
    assert torch.equal(mean, pipeline._encode_vae_image(pixels, None))
    deviations = pipeline.vae.encode(pixels).latent_dist.std
    for channel, place in ((0, (0, 0)), (2, (1, 0)), (125, (0, 1))):
        scale = (pipeline.vae.bn.running_var[channel] + 1e-4).sqrt()
        expected = deviations[:, channel // 4, place[0] :: 2, place[1] :: 2] / scale
        torch.testing.assert_close((0.5 * log_variance[:, channel]).exp(), expected)


def expected_timesteps(steps: int, tokens: int) -> np.ndarray:
    """1 to 1 / steps, shifted by exp(mu), in thousandths."""
    plain, grown = np.linspace(1, 1 / steps, steps), np.exp(shift(tokens, steps))
    return 1000 * grown / (grown + 1 / plain - 1)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width", "steps"), [(64, 48, 2), (96, 80, 3)])
def test_a_prediction_is_the_transformers_in_a_call_of_the_pipeline(
    height: int, width: int, steps: int, pipeline: Flux2KleinPipeline
) -> None:
    """With a caption and without, on the timesteps that the pipeline takes at this size."""
    seen: list[Any] = []
    hook = pipeline.transformer.register_forward_hook(
        lambda _, inputs, given, output: seen.append((given, output[0])), with_kwargs=True
    )
    pipeline(
        prompt=[*CAPTIONS],
        num_inference_steps=steps,
        guidance_scale=4.0,
        height=height,
        width=width,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    hook.remove()
    assert len(seen) == 2 * steps
    network, encoder = load_denoiser(FLOAT32, device=CPU), load_encoder(FLOAT32, device=CPU)
    texts = encoder.text_embeddings(CAPTIONS), encoder.text_embeddings(["", ""])
    ours: list[Any] = []
    network.module.register_forward_hook(
        lambda _, inputs, given, output: ours.append(given), with_kwargs=True
    )
    h, w = height // 16, width // 16
    grid = network.sampling_timesteps(steps, (128, h, w))
    assert torch.equal(grid.float(), pipeline.scheduler.timesteps)
    np.testing.assert_allclose(grid, expected_timesteps(steps, h * w), rtol=1e-6)
    for i, (given, output) in enumerate(seen):
        x = given["hidden_states"].transpose(1, 2).unflatten(2, (h, w))
        found = network.predict(x, grid[i // 2].expand(2), texts[i % 2])
        asked = ours[-1]
        assert asked.keys() == given.keys() - {"guidance", "joint_attention_kwargs", "return_dict"}
        assert given["guidance"] is None
        for name, value in asked.items():
            theirs = given[name][0] if name.endswith("_ids") else given[name]
            assert torch.equal(value, theirs), name
        velocity = output.transpose(1, 2).unflatten(2, (h, w))
        torch.testing.assert_close(found, velocity, rtol=1e-4, atol=1e-5)
    assert velocity.std() > 0.01


def test_timesteps_of_a_large_image_and_of_training() -> None:
    """From 4301 tokens on the number of steps does not count for the shift."""
    network = load_denoiser(FLOAT32, device=CPU)
    for side in (65, 66):
        grid = network.sampling_timesteps(10, (128, side, side))
        np.testing.assert_allclose(grid, expected_timesteps(10, side * side), rtol=1e-6)
    levels = network.training_timesteps((128, 4, 4))
    torch.testing.assert_close(levels, torch.arange(1, 1001).double(), rtol=1e-6, atol=0)
    generator = torch.Generator().manual_seed(0)
    drawn = [float(network.draw_timestep(generator, (128, 4, 4))) for _ in range(2000)]
    assert np.mean(drawn) == pytest.approx(500, abs=20)
    assert np.std(drawn) == pytest.approx(1000 / 12**0.5, abs=10)


@torch.no_grad()
def test_a_rollout_is_the_pipelines_guided_or_distilled(tmp_path: Path) -> None:
    base = BASES["flux2_klein"]
    network, encoder = load_denoiser(base, device=CPU), load_encoder(base, device=CPU)
    prompts, empty = encoder.text_embeddings(CAPTIONS), encoder.text_embeddings(["", ""])
    start = torch.randn(2, 128, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    grid = network.sampling_timesteps(4, (128, 4, 4))[:, None].expand(-1, 2)
    distilled = changed(tmp_path, "model_index.json", is_distilled=True)
    for folder, asked, guidance in ((FOLDER, 4.0, 4.0), (Path(distilled.model), 4.0, 1.0)):
        plain = pipeline_of(folder).to(torch.float64)
        theirs = plain(
            **FAMILY.arguments([*CAPTIONS], asked, 64),
            num_inference_steps=4,
            latents=start,
            output_type="pt",
        ).images
        predict = guided(network, empty, guidance)
        latents = finished_images(predict, network.solver, start, prompts, grid_nB=grid)
        ours = load_autoencoder(base, device=CPU).decode(latents)
        assert ours.std() > 0.01
        assert (ours - theirs).abs().max() < 1e-4  # the scheduler's steps are float32


def test_the_code_that_is_printed_names_the_prompt() -> None:
    """The first argument of this pipeline's call is an image."""
    code = snippet(FLOAT32, lora="x", prompt="p", side=64, steps=3, guidance=4.0)
    assert '    prompt="p",\n' in code and "guidance_scale=4.0" in code
    assert "from diffusers import Flux2KleinPipeline\n" in code


# ------------------------------------------------------------------ what is refused


def test_a_model_of_another_family_and_a_side_of_8_are_refused_before_any_work(
    tmp_path: Path,
) -> None:
    check_base(FLOAT32)
    dev = changed(tmp_path, "transformer/config.json", guidance_embeds=True)
    with pytest.raises(
        InputError,
        match=r"has _class_name=Flux2Transformer2DModel, guidance_embeds=True; the family "
        r"flux2_klein needs _class_name=Flux2Transformer2DModel, guidance_embeds=False$",
    ):
        check_base(dev)
    with pytest.raises(InputError, match="has no text_encoder_2, tokenizer_2"):
        check_base(FLOAT32.model_copy(update={"family": "flux"}))
    check_side(FLOAT32, 48, key="images.size")
    with pytest.raises(InputError, match=r"images\.size.*16"):
        check_side(FLOAT32, 56, key="images.size")
    check_adapter(FLOAT32, LoraConfig(targets=("attn.to_out", "ff.linear_in")))
    with pytest.raises(InputError, match="'attn' names no linear layer"):
        check_adapter(FLOAT32, LoraConfig(targets=("attn.to_out", "attn")))


# ------------------------------------------------------------------ what is trained


def test_trainable_parameters_at_full_size() -> None:
    """By hand, per rank: of 3072 wide blocks eight square layers in 5, in 20 two wider ones."""
    with torch.device("meta"):
        network = Flux2Transformer2DModel(  # as published for 4B
            num_layers=5,
            num_single_layers=20,
            num_attention_heads=24,
            joint_attention_dim=7680,
            guidance_embeds=False,
        )
    count = sum(p.numel() for p in network.parameters())
    assert count == 3_875_544_576
    # 3072 to queries, keys, values and twice 9216 of the MLP; from attention and 9216 back.
    per_rank = 5 * 8 * (2 * 3072) + 20 * ((3072 + 3 * 3072 + 2 * 9216) + (3072 + 9216 + 3072))
    lora = load(RunConfig, "flux2_klein", ["source.path=p", "evaluate.prompts=p"]).lora
    config = LoraConfig(rank=lora.rank, targets=lora.targets)
    adapters.attach(network, config, names=("learner",), seed=0)
    assert len(adapters.vector(network, "learner")) == lora.rank * per_rank
    assert per_rank == 1_167_360
    assert SIZES["flux2_klein"].trained == pytest.approx(count / 1e9, rel=1e-4)
    assert SIZES["flux2_klein"].adapter == pytest.approx(per_rank / 1e9, rel=1e-3)
    assert FAMILY.channels == network.config.in_channels


def test_from_pairs_to_a_lora_that_plain_diffusers_draws_with(
    pipeline: Flux2KleinPipeline, tmp_path: Path
) -> None:
    stage = training("dpo", steps=3, batch=2, lr=0.05)
    history = run(stage, str(tmp_path / "lora"), family="flux2_klein")
    assert all(np.isfinite(list(metrics.values())).all() for metrics in history)

    config = GenerateConfig(prompts="tiny:prompts", seeds=(42,), steps=3, guidance=4.0, size=64)
    drawing = Generate(FLOAT32, config, loras={"ours": str(tmp_path / "lora")})
    drawing.setup()
    rows = [{"model": model, "prompt": CAPTIONS[0], "noise": 42} for model in ("base", "ours")]
    in_batches(drawing, rows)
    base_image, ours = (np.asarray(row["image"]).astype(int) for row in rows)

    def plain() -> np.ndarray:
        [image] = pipeline(
            prompt=CAPTIONS[0],
            num_inference_steps=3,
            guidance_scale=4.0,
            height=64,
            width=64,
            generator=torch.Generator().manual_seed(42),
        ).images
        return np.asarray(image).astype(int)

    assert np.abs(plain() - base_image).max() <= 1
    pipeline.load_lora_weights(str(tmp_path / "lora"))
    loaded = {name for name, _ in pipeline.transformer.named_modules() if name.endswith("lora_A")}
    assert len(loaded) == 2 * 8 + 2 * 2
    assert np.abs(plain() - ours).max() <= 1
    pipeline.unload_lora_weights()
    assert np.abs(ours - base_image).mean() > 0.5
