"""The Qwen-Image family: what it reads, how its policy is sampled, what leaves it as a LoRA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_qwen_image
import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from training import BASES, CPU, photographs, run, training

from raypref.align.online import guided
from raypref.align.rollout import finished_images
from raypref.core.config import InputError, Resources, load
from raypref.engine.batches import in_batches
from raypref.evaluate.generate import Generate, GenerateConfig
from raypref.models import adapters
from raypref.models.backbone import load_denoiser, load_encoder
from raypref.models.checks import check_base, check_side
from raypref.models.families.conditioning import from_row, stack, to_row
from raypref.models.families.flux import packed
from raypref.models.families.qwen_image import FAMILY, QwenImageConditioning
from raypref.models.lora_config import LoraConfig
from raypref.report.use import snippet
from raypref.run.config import RunConfig
from raypref.run.model_sizes import SIZES

FOLDER = small_qwen_image.path()
FLOAT32 = BASES["qwen_image"].model_copy(update={"dtype": "float32"})
CAPTIONS = ["a photo of a red ball on grass", "Zürich & ¾-inch nails, 日本 " * 4]


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """As someone without this project loads it."""
    made: Any = QwenImagePipeline.from_pretrained(FOLDER)
    made.set_progress_bar_config(disable=True)
    return made


# ------------------------------------------------------------------ what the family is


@torch.no_grad()
def test_the_encoder_says_what_the_pipeline_says(pipeline: Any) -> None:
    encoder = load_encoder(FLOAT32, device=CPU)
    long = "ü" * 600  # two tokens each
    texts, mask = pipeline.encode_prompt([*CAPTIONS, long, " "], max_sequence_length=512)
    ours: Any = encoder.text_embeddings([*CAPTIONS, long, ""])
    assert torch.equal(ours.sequence_BLD, texts)
    assert torch.equal(ours.text_mask_BL, mask.float())
    lengths = ours.text_mask_BL.sum(dim=1).tolist()
    assert lengths[3] < lengths[0] < lengths[1] < lengths[2] == 512
    # Padding is the same whatever is beside, and nothing is lost on the way through the ledger.
    alone: Any = encoder.text_embeddings(CAPTIONS[:1])[0]
    torch.testing.assert_close(alone.sequence_BLD, texts[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(alone.text_mask_BL, mask[0].float())
    again = stack([from_row(QwenImageConditioning, to_row(ours[i])) for i in range(4)])
    assert torch.equal(again.sequence_BLD, ours.sequence_BLD)
    assert torch.equal(again.text_mask_BL, ours.text_mask_BL)

    photos = [photo for _, photo in photographs(2)]
    frames = pipeline.image_processor.preprocess(photos)[:, :, None]
    posterior = pipeline.vae.encode(frames).latent_dist
    mean, log_variance = encoder.image_moments(photos).unbind(1)
    config = pipeline.vae.config
    shift, scale = (
        torch.tensor(v)[:, None, None] for v in (config.latents_mean, config.latents_std)
    )
    torch.testing.assert_close(mean, (posterior.mean[:, :, 0] - shift) / scale)
    torch.testing.assert_close(torch.exp(0.5 * log_variance), posterior.std[:, :, 0] / scale)


@torch.no_grad()
def test_a_prediction_is_the_transformers_in_a_call_of_the_pipeline(
    pipeline: Any,
) -> None:
    """With prompts of two lengths, and with the timesteps that the pipeline takes."""
    steps, seen = 3, []
    hook = pipeline.transformer.register_forward_hook(
        lambda _, inputs, given, output: seen.append((given, output[0])), with_kwargs=True
    )
    pipeline(
        [*CAPTIONS],
        num_inference_steps=steps,
        height=64,
        width=48,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    hook.remove()
    assert len(seen) == steps
    network, encoder = load_denoiser(FLOAT32, device=CPU), load_encoder(FLOAT32, device=CPU)
    prompts = encoder.text_embeddings(CAPTIONS)
    ours: list[Any] = []
    network.module.register_forward_hook(
        lambda _, inputs, given, output: ours.append(given), with_kwargs=True
    )
    grid = network.sampling_timesteps(steps, (16, 8, 6))
    assert torch.equal(grid.float(), pipeline.scheduler.timesteps)
    plain = torch.tensor([1, 2 / 3, 1 / 3]).double()
    mu = np.exp(0.5 + (4 * 3 - 256) * (0.9 - 0.5) / (8192 - 256))
    shifted = mu / (mu + 1 / plain - 1)
    expected = 1 - (1 - shifted) * (1 - 0.02) / (1 - shifted[-1])
    torch.testing.assert_close(grid, 1000 * expected, rtol=1e-6, atol=0)
    for i, (given, output) in enumerate(seen):
        tokens = given["hidden_states"]
        x = pipeline._unpack_latents(tokens, 64, 48, 8)[:, :, 0]
        found = network.predict(x, grid[i].expand(2), prompts)
        for name in ("hidden_states", "timestep", "encoder_hidden_states"):
            assert torch.equal(ours[-1][name], given[name]), name
        mask = given["encoder_hidden_states_mask"]
        assert torch.equal(ours[-1]["encoder_hidden_states_mask"], mask.bool())
        assert ours[-1]["img_shapes"] == given["img_shapes"]
        assert given["guidance"] is None
        assert torch.equal(packed(found), output)
    assert output.std() > 0.01


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    """Neither what stands in it, nor captions beside, nor the precision of the mask."""
    network = load_denoiser(BASES["qwen_image"], device=CPU)
    captions: Any = load_encoder(BASES["qwen_image"], device=CPU).text_embeddings(CAPTIONS)
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


def test_a_guided_rollout_is_the_pipelines(pipeline: Any) -> None:
    """With its scale of each token, and without guidance from a scale of 1 down."""
    network = load_denoiser(FLOAT32, device=CPU)
    encoder = load_encoder(FLOAT32, device=CPU)
    prompts, empty = encoder.text_embeddings(CAPTIONS), encoder.text_embeddings(["", ""])
    start = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    grid = network.sampling_timesteps(4, (16, 8, 8))[:, None].expand(-1, 2)
    drawn = []
    for guidance in (1.0, 5.0):
        predict = guided(network, empty, guidance)
        with torch.no_grad():
            ours = finished_images(predict, network.solver, start, prompts, grid_nB=grid)
        theirs = pipeline(
            **FAMILY.arguments([*CAPTIONS], guidance, 64),
            num_inference_steps=4,
            latents=packed(start),
            output_type="latent",
        ).images
        torch.testing.assert_close(packed(ours), theirs, rtol=1e-4, atol=1e-4)
        drawn.append(theirs)
    assert (drawn[1] - drawn[0]).abs().max() > 0.01
    code = snippet(FLOAT32, lora="x", prompt="p", side=64, steps=3, guidance=5.0)
    assert 'num_inference_steps=3, true_cfg_scale=5.0, negative_prompt=" "' in code
    assert "negative_prompt" not in FAMILY.arguments(["a"], 1.0, 64)  # it would warn


# ------------------------------------------------------------------ what is refused


def test_a_model_of_another_family_and_a_side_of_8_are_refused_before_any_work() -> None:
    check_base(FLOAT32)
    with pytest.raises(
        InputError,
        match=r"has _class_name=FluxTransformer2DModel, guidance_embeds=True; the family "
        r"qwen_image needs _class_name=QwenImageTransformer2DModel, guidance_embeds=False$",
    ):
        check_base(BASES["flux"].model_copy(update={"family": "qwen_image"}))
    check_side(FLOAT32, 48, key="images.size")
    with pytest.raises(InputError, match=r"images\.size.*16"):
        check_side(FLOAT32, 56, key="images.size")


# ------------------------------------------------------------------ what is trained


def test_trainable_parameters_at_full_size() -> None:
    """By hand, per rank: eight layers of 3072 x 3072 in 60 blocks."""
    with torch.device("meta"):
        network: Any = QwenImageTransformer2DModel()  # as published
    count = sum(p.numel() for p in network.parameters())
    assert count == 20_430_401_088
    per_rank = 60 * 8 * 2 * 3072
    lora = load(RunConfig, "qwen_image", ["source.path=p", "evaluate.prompts=p"]).lora
    assert lora.rank == 64
    adapters.attach(network, LoraConfig(rank=64, targets=lora.targets), names=("learner",), seed=0)
    assert len(adapters.vector(network, "learner")) == 64 * per_rank == 188_743_680
    assert SIZES["qwen_image"].trained == pytest.approx(count / 1e9, rel=1e-4)
    assert SIZES["qwen_image"].adapter == pytest.approx(per_rank / 1e9, rel=1e-3)


def test_from_pairs_to_a_lora_that_plain_diffusers_draws_with(
    pipeline: Any, tmp_path: Path
) -> None:
    history = run(training("dpo", steps=3, batch=2, lr=0.05), str(tmp_path), family="qwen_image")
    assert all(np.isfinite(list(metrics.values())).all() for metrics in history)
    config = GenerateConfig(prompts="tiny:prompts", seeds=(42,), steps=3, guidance=5.0, size=64)
    drawing = Generate(FLOAT32, config, loras={"ours": str(tmp_path)})
    drawing.setup()
    rows = [{"model": model, "prompt": CAPTIONS[0], "noise": 42} for model in ("base", "ours")]
    in_batches(drawing, rows)
    without, ours = (np.asarray(row["image"]).astype(int) for row in rows)

    def plain() -> np.ndarray:
        [image] = pipeline(
            CAPTIONS[0],
            negative_prompt=" ",
            num_inference_steps=3,
            true_cfg_scale=5.0,
            height=64,
            width=64,
            generator=torch.Generator().manual_seed(42),
        ).images
        return np.asarray(image).astype(int)

    assert np.abs(plain() - without).max() <= 1
    pipeline.load_lora_weights(str(tmp_path))
    assert np.abs(plain() - ours).max() <= 1
    pipeline.unload_lora_weights()
    assert np.abs(ours - without).mean() > 0.5


def test_an_image_does_not_feel_a_longer_prompt_beside_it() -> None:
    """To the bit, in the precision that would show it."""
    config = GenerateConfig(prompts="tiny:prompts", seeds=(42,), steps=3, size=64, dtype="bfloat16")
    config = config.model_copy(update={"resources": Resources(batch=2)})
    drawing = Generate(FLOAT32, config, loras={})
    drawing.setup()
    long = {"model": "base", "prompt": " ".join(3 * CAPTIONS), "noise": 1}
    made = []
    for beside in ([], [long]):
        rows = [{"model": "base", "prompt": CAPTIONS[0], "noise": 42}, *map(dict, beside)]
        in_batches(drawing, rows)
        made.append(np.asarray(rows[0]["image"]).astype(int))
    assert np.abs(made[0] - made[1]).max() == 0
