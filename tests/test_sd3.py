"""The SD-3.5-Medium family: what it reads, how its policy is sampled, what leaves it as a LoRA."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import small
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UNet2DConditionModel,
)
from training import BASES, CPU, LORAS, denoiser, pairs, photographs, rows_of, training, twin

from raypref.align.latents import CacheConfig, Encode, rows_to_encode
from raypref.align.loop import Alone, train
from raypref.align.pair_data import PairData, read_pairs
from raypref.align.residuals import LEARNER, POLICY, REFERENCE, Draw, measure
from raypref.align.rollout import finished_images
from raypref.core.config import InputError, load
from raypref.core.ledger import Ledger
from raypref.curate.publish import PAIRS
from raypref.engine.batches import in_batches
from raypref.evaluate.generate import Generate, GenerateConfig
from raypref.images.decode import encode_png
from raypref.models import adapters
from raypref.models.backbone import BackboneConfig, load_denoiser, load_encoder
from raypref.models.checks import check_base
from raypref.models.lora_config import LoraConfig
from raypref.run.config import RunConfig

FOLDER = small.path("sd3")
FLOAT32 = BASES["sd35m"].model_copy(update={"dtype": "float32"})
LORA = LORAS["sd35m"]
ROLLOUT = {"dro": {"policy_state": "final", "rollout_steps": 3, "policy_lag": 1}, "dpo": {}}
DRO = training("dro", **ROLLOUT["dro"])
CAPTIONS = ["a photo of a red ball on grass", "", "Zürich & ¾-inch nails, 日本 " * 40]


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusion3Pipeline:
    """As someone without this project loads it."""
    made = StableDiffusion3Pipeline.from_pretrained(FOLDER)
    made.set_progress_bar_config(disable=True)
    return made


# ------------------------------------------------------------------ what the family is


@torch.no_grad()
def test_the_encoder_says_what_the_pipeline_says(pipeline: StableDiffusion3Pipeline) -> None:
    encoder = load_encoder(FLOAT32, device=CPU)
    sequence, _, pooled, _ = pipeline.encode_prompt(
        CAPTIONS, None, None, do_classifier_free_guidance=False
    )
    ours = encoder.text_embeddings(CAPTIONS)
    assert ours.sequence_BLD.shape[1] == 77 + 256
    assert torch.equal(ours.sequence_BLD, sequence)
    assert torch.equal(ours.pooled_BP, pooled)

    photos = [photo for _, photo in photographs(3)]
    posterior = pipeline.vae.encode(pipeline.image_processor.preprocess(photos)).latent_dist
    mean, log_variance = encoder.image_moments(photos).unbind(1)
    scale = pipeline.vae.config.scaling_factor
    assert torch.equal(mean, (posterior.mean - pipeline.vae.config.shift_factor) * scale)
    torch.testing.assert_close(torch.exp(0.5 * log_variance), posterior.std * scale)


def test_a_rollout_is_the_pipelines_without_guidance(pipeline: StableDiffusion3Pipeline) -> None:
    network = load_denoiser(FLOAT32, device=CPU)
    prompts = load_encoder(FLOAT32, device=CPU).text_embeddings(CAPTIONS[:2])
    start = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    grid = network.sampling_timesteps(10, (16, 8, 8))[:, None].expand(-1, 2)
    ours = finished_images(network.predict, network.solver, start, prompts, grid_nB=grid)
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
    assert torch.equal(ours, theirs)


def test_timesteps_are_logit_normal_places_of_the_shifted_schedule() -> None:
    network = denoiser("sd35m")
    generator = torch.Generator().manual_seed(0)
    sigmas = torch.stack([network.draw_timestep(generator, (16, 8, 8)) for _ in range(2000)]) / 1000
    levels = FlowMatchEulerDiscreteScheduler.from_pretrained(FOLDER, subfolder="scheduler").sigmas
    assert set(sigmas.tolist()) <= set(levels.double().tolist())
    shifted = sigmas / (3 - 2 * sigmas)  # back from sigma = 3 s / (1 + 2 s)
    odds = torch.log(shifted / (1 - shifted).clamp(min=1e-9))
    assert abs(odds.mean()) < 0.09  # 4 sigma
    assert abs(odds.std() - 1) < 0.07
    assert sigmas.mean() == pytest.approx(0.715, abs=0.015)


def test_training_needs_no_text_encoder_and_no_autoencoder(tmp_path: Path) -> None:
    for part in ("transformer", "scheduler"):
        shutil.copytree(FOLDER / part, tmp_path / part)
    shutil.copy(FOLDER / "model_index.json", tmp_path)
    alone = load_denoiser(FLOAT32.model_copy(update={"model": str(tmp_path)}), device=CPU)
    assert alone.component == "transformer"


@pytest.mark.parametrize(
    ("family", "source", "absent", "says"),
    [
        ("sd35m", "sd15", [], "text_encoder_2, tokenizer_2, text_encoder_3, tokenizer_3, transf"),
        ("sd15", "sd3", [], "has no unet;"),
        ("sd35m", "sd3", ["text_encoder_3"], "has no text_encoder_3;"),
    ],
)
def test_a_model_without_a_part_of_the_family_is_refused(
    family: str, source: str, absent: list[str], says: str, tmp_path: Path
) -> None:
    index = json.loads((small.path(source) / "model_index.json").read_text())
    index |= {part: [None, None] for part in absent}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for part in {*index} - {*absent}:
        (tmp_path / part).mkdir()
    with pytest.raises(InputError, match=f"^base.model: .*{says}"):
        check_base(BackboneConfig(family=family, model=str(tmp_path)))  # type: ignore[arg-type]


def test_noise_levels_that_depend_on_image_size_are_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_dynamic_shifting": True}))
    with pytest.raises(InputError, match=r"^base.model: .*image size"):
        load_denoiser(FLOAT32.model_copy(update={"model": str(folder)}), device=CPU)


# ------------------------------------------------------------------ what is trained


def test_trainable_parameters_at_full_size(capsys: pytest.CaptureFixture[str]) -> None:
    with torch.device("meta"):
        networks = {
            "sd15": UNet2DConditionModel(cross_attention_dim=768),
            "sd35m": SD3Transformer2DModel(
                num_layers=24,
                num_attention_heads=24,
                joint_attention_dim=4096,
                caption_projection_dim=1536,
                pos_embed_max_size=384,
                dual_attention_layers=tuple(range(13)),
                qk_norm="rms_norm",
            ),
        }
    counts = {}
    for name, network in networks.items():
        base = sum(p.numel() for p in network.parameters())
        targets = load(RunConfig, name, ["source.path=p", "evaluate.prompts=p"]).lora.targets
        for rank in (4, 32):
            adapter = f"rank{rank}"
            config = LoraConfig(rank=rank, targets=targets)
            bare = deepcopy(network)
            adapters.attach(bare, config, names=(adapter,), seed=0)
            counts[name, rank] = len(adapters.vector(bare, adapter))
            with capsys.disabled():
                print(f"\n{name}: {base:,} parameters, LoRA r={rank}: {counts[name, rank]:,}")
    assert counts == {
        ("sd15", 4): 797_184,
        ("sd15", 32): 6_377_472,
        ("sd35m", 4): 2_347_008,
        ("sd35m", 32): 18_776_064,
    }


def test_the_policys_image_gates_and_has_no_gradient() -> None:
    network = denoiser("sd35m")
    adapters.attach(network.module, LORA, names=(LEARNER, REFERENCE, POLICY), seed=0)
    learner = adapters.vector(network.module, LEARNER).detach()
    adapters.fill(network.module, LEARNER, learner + 0.1 * torch.randn_like(learner))
    draws = [Draw(i, torch.Generator().manual_seed(i)) for i in range(3)]
    made = DRO.experience()(network, pairs(family="sd35m"), DRO, draws)
    chosen, rejected = measure(network, made)
    assert rejected.error.tolist() == [0.0] * 3
    assert chosen.error.requires_grad
    assert not rejected.error.requires_grad
    assert rejected.reference_error.min() > 0

    def predicted(name: str) -> torch.Tensor:
        adapters.activate(network.module, name)
        with torch.no_grad():
            return network.predict(made.sides[1].x_BCHW, made.timesteps_B, made.prompts)

    apart = (predicted(LEARNER) - predicted(REFERENCE)).square().flatten(1).mean(1)
    torch.testing.assert_close(rejected.reference_error, apart, rtol=1e-9, atol=0)


def test_both_sides_of_a_pair_share_noise_and_timestep() -> None:
    network, data, stage = denoiser("sd35m"), pairs(family="sd35m"), training()
    draws = [Draw(i, torch.Generator().manual_seed(i)) for i in range(3)]
    made = stage.experience()(network, data, stage, draws)
    chosen, rejected = made.sides
    assert chosen.target_BCHW is not None and rejected.target_BCHW is not None
    sigma = (made.timesteps_B / 1000).view(-1, 1, 1, 1)
    apart = rejected.target_BCHW - chosen.target_BCHW  # chosen - rejected: the noise drops out
    assert apart.abs().max() > 0.1
    torch.testing.assert_close(chosen.x_BCHW - rejected.x_BCHW, (1 - sigma) * apart)


# ------------------------------------------------------------------ the whole way


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> PairData:
    """Photographs through the ledgers of pairs and cache, in float32."""
    folder = tmp_path_factory.mktemp("cache")
    published = Ledger(str(folder / "pairs"), {})
    published.begin()
    rows = [
        {
            "id": f"{number}",
            "prompt": caption,
            "chosen": {"bytes": encode_png(photo), "path": None},
            "rejected": {"bytes": encode_png(twin(photo)), "path": None},
        }
        for number, (caption, photo) in enumerate(photographs(3))
    ]
    published.write_part(pa.Table.from_pylist(rows, schema=PAIRS))
    published.commit(expected=3, counts={})
    stage = Encode(FLOAT32, CacheConfig())
    stage.setup()
    encoded = rows_of(rows_to_encode(published))
    in_batches(stage, encoded)
    ledger = Ledger(str(folder / "encoded"), {})
    ledger.begin()
    schema = pa.schema([("id", pa.string()), *stage.writes])
    columns = {name: [row.get(name) for row in encoded] for name in schema.names}
    ledger.write_part(pa.table(columns, schema=schema))
    return read_pairs(ledger, FLOAT32)


def test_the_cache_keeps_both_parts_of_a_caption(cached: PairData) -> None:
    expected = load_encoder(FLOAT32, device=CPU).text_embeddings(
        [caption for caption, _ in photographs(3)]
    )
    torch.testing.assert_close(cached.embeddings.pooled_BP, expected.pooled_BP)
    mixed = cached.prompts([1, 2], [True, False], [False] * 2)
    assert torch.equal(mixed.pooled_BP[0], cached.unconditional.pooled_BP)
    assert torch.equal(mixed.pooled_BP[1], cached.embeddings.pooled_BP[2])
    assert torch.equal(mixed.sequence_BLD[1], cached.embeddings.sequence_BLD[2])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_from_pairs_to_a_lora_that_plain_diffusers_draws_with(
    dtype: str, cached: PairData, pipeline: StableDiffusion3Pipeline, tmp_path: Path
) -> None:
    base = FLOAT32.model_copy(update={"dtype": dtype})
    for name, objective, start in (("one", "dro", None), ("two", "dpo", str(tmp_path / "one"))):
        network = load_denoiser(base, device=CPU)
        history = train(
            network,
            cached,
            training(objective, steps=3, batch=2, lr=0.05, **ROLLOUT[objective]),
            LORA,
            name=name,
            draws=name,
            seed=0,
            folder=str(tmp_path / name),
            start=start,
            group=Alone(),
            on_step=lambda metrics: None,
        )
        assert all(np.isfinite(list(metrics.values())).all() for metrics in history)
        assert {p.dtype for p in adapters.matrices(network.module, LEARNER)} == {torch.float32}
    if dtype == "bfloat16":
        return  # the drawing is in float32

    config = GenerateConfig(prompts="tiny:prompts", seeds=(42,), steps=3, guidance=4.5, size=64)
    drawing = Generate(FLOAT32, config, loras={"both": str(tmp_path / "two")})
    drawing.setup()
    rows = [{"model": model, "prompt": CAPTIONS[0], "noise": 42} for model in ("base", "both")]
    in_batches(drawing, rows)
    base_image, ours = (np.asarray(row["image"]).astype(int) for row in rows)

    def plain() -> np.ndarray:
        [image] = pipeline(
            CAPTIONS[0],
            num_inference_steps=3,
            guidance_scale=4.5,
            height=64,
            width=64,
            generator=torch.Generator().manual_seed(42),
        ).images
        return np.asarray(image).astype(int)

    assert np.abs(plain() - base_image).max() <= 1
    pipeline.load_lora_weights(str(tmp_path / "two"))
    assert np.abs(plain() - ours).max() <= 1
    pipeline.unload_lora_weights()
    assert np.abs(ours - base_image).mean() > 0.5
