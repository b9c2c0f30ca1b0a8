"""FLUX.1, dev and schnell: what the pipeline's network is asked, what leaves as a LoRA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from training import BASES, CPU, run, training

from raypref.align.rollout import finished_images
from raypref.core.config import load
from raypref.engine.batches import in_batches
from raypref.evaluate.generate import Generate, GenerateConfig
from raypref.models import adapters
from raypref.models.backbone import load_denoiser, load_encoder
from raypref.models.checks import check_base
from raypref.models.families.flux import FAMILY, packed
from raypref.models.lora_config import LoraConfig
from raypref.run.config import RunConfig
from raypref.run.model_sizes import SIZES

FOLDER = small.path("flux")
FLOAT32 = BASES["flux"].model_copy(update={"dtype": "float32"})
CAPTIONS = ["a photo of a red ball on grass", ""]


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    """As someone without this project loads it."""
    made = FluxPipeline.from_pretrained(FOLDER)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Schnell's layout: no guidance embedding, levels without a shift."""
    folder = tmp_path_factory.mktemp("schnell") / "model"
    shutil.copytree(FOLDER, folder)
    transformer = FluxTransformer2DModel.from_config(
        FluxTransformer2DModel.load_config(FOLDER, subfolder="transformer"), guidance_embeds=False
    )
    transformer.save_pretrained(folder / "transformer")
    file = folder / "scheduler" / "scheduler_config.json"
    changes = {"shift": 1.0, "use_dynamic_shifting": False}
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dev", "schnell"])
def test_a_rollout_is_the_pipelines(kind: str, schnell: Path) -> None:
    """On a size of its own: the shift of dev is that of the size."""
    base = FLOAT32 if kind == "dev" else FLOAT32.model_copy(update={"model": str(schnell)})
    check_base(base)
    theirs = FluxPipeline.from_pretrained(base.model)
    theirs.set_progress_bar_config(disable=True)
    network = load_denoiser(base, device=CPU)
    prompts: Any = load_encoder(base, device=CPU).text_embeddings(CAPTIONS)
    sequence, pooled, _ = theirs.encode_prompt(CAPTIONS)
    assert torch.equal(prompts.sequence_BLD, sequence) and torch.equal(prompts.pooled_BP, pooled)

    start = torch.randn(2, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    grid = network.sampling_timesteps(4, (16, 8, 12))[:, None].expand(-1, 2)
    ours = finished_images(network.predict, network.solver, start, prompts, grid_nB=grid)
    drawn = theirs(
        CAPTIONS,
        num_inference_steps=4,
        guidance_scale=3.5,
        height=64,
        width=96,
        latents=packed(start),
        output_type="latent",
    ).images
    torch.testing.assert_close(packed(ours), drawn, atol=1e-5, rtol=0)


def test_families_of_one_network_are_told_apart_by_its_channels() -> None:
    wrong = FLOAT32.model_copy(update={"family": "flux_fill"})
    with pytest.raises(ValueError, match=r"reads 64 channels; .*; set base\.family=flux$"):
        check_base(wrong)


def test_trainable_parameters_at_full_size() -> None:
    """Eight layers of 3072 x 3072 in 19 blocks, three in 38."""
    with torch.device("meta"):
        network = FluxTransformer2DModel(in_channels=64, guidance_embeds=True)
    per_rank = 2 * 3072 * (19 * 8 + 38 * 3)
    lora = load(RunConfig, "flux", ["source.path=p", "evaluate.prompts=p"]).lora
    config = LoraConfig(rank=lora.rank, targets=lora.targets)
    adapters.attach(network, config, names=("learner",), seed=0)
    counted = sum(p.numel() for n, p in network.named_parameters() if "lora" not in n)
    assert counted == 11_901_408_320
    assert len(adapters.vector(network, "learner")) == lora.rank * per_rank
    assert SIZES["flux"].trained == pytest.approx(counted / 1e9, rel=1e-4)
    assert SIZES["flux"].adapter == pytest.approx(per_rank / 1e9, rel=1e-3)
    assert FAMILY.channels == network.config.in_channels


def test_from_pairs_to_a_lora_that_plain_diffusers_draws_with(
    pipeline: FluxPipeline, tmp_path: Path
) -> None:
    history = run(training("dpo", steps=2, batch=2, lr=0.05), str(tmp_path), family="flux")
    assert all(np.isfinite(list(metrics.values())).all() for metrics in history)
    config = GenerateConfig(prompts="tiny:prompts", seeds=(42,), steps=2, guidance=3.5, size=64)
    drawing = Generate(FLOAT32, config, loras={"ours": str(tmp_path)})
    drawing.setup()
    rows = [{"model": model, "prompt": CAPTIONS[0], "noise": 42} for model in ("base", "ours")]
    in_batches(drawing, rows)
    without, ours = (np.asarray(row["image"]).astype(int) for row in rows)

    def plain() -> np.ndarray:
        [image] = pipeline(
            CAPTIONS[0],
            num_inference_steps=2,
            guidance_scale=3.5,
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
