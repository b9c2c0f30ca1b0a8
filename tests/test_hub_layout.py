"""The code that runs on the embedded checkpoints runs on the layout of the published ones.

The embedded checkpoints are rewritten as the published repositories hold theirs: older key names,
older configurations, the tokenizer in parts, a safety checker, half-precision variants. Widths
stay small. Every loader must then give what it gives for the plain ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small
import torch
from PIL import Image
from published_layout import (
    EXTRACTORS,
    Published,
    publish_pickscore,
    publish_pipeline,
    publish_u2net,
    read,
)
from safetensors.torch import load_file
from torch import Tensor

from raypref.core.config import InputError, load
from raypref.core.rows import Row
from raypref.curate.perturb import Inpaint, PerturbConfig
from raypref.curate.saliency import Saliency, SaliencyConfig
from raypref.demo import photograph, world
from raypref.engine.batches import in_batches
from raypref.evaluate.generate import BASE, Generate
from raypref.images.decode import as_png, encode_png
from raypref.models.backbone import BackboneConfig, load_denoiser, load_encoder, load_pipeline
from raypref.models.families.sd15 import SD15Conditioning
from raypref.rewards.pickscore import PickScoreConfig
from raypref.run.config import RunConfig
from raypref.run.execute import execute
from raypref.run.pipeline import Run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Published:
    root = tmp_path_factory.mktemp("published")
    for name, extractor in EXTRACTORS.items():
        publish_pipeline(small.path(name), root / name, extractor=extractor)
    publish_pickscore(small.path("pickscore"), root / "model", root / "processor")
    publish_u2net(small.path("u2netp.pth"), root / "u2net.pth")
    names = ("sd15", "sd15-inpaint", "model", "processor", "u2net.pth")
    return Published(*(str(root / name) for name in names))


# ------------------------------------------------------------------ each loader


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    scenes = world.sample_scenes(3, seed=31)
    return [Image.fromarray(photograph.render_scene(s, seed=i)) for i, s in enumerate(scenes)]


CAPTIONS = ["a photo of a red ball on grass", "", "Zürich & ¾-inch nails, 日本 " * 20]
PLAIN = BackboneConfig(model=str(small.path("sd15")))


def test_the_layout_is_the_published_one(published):
    folder = Path(published.sd15)
    parts = {part.name: sorted(file.name for file in part.iterdir()) for part in folder.glob("*/")}
    weights = ["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors"]
    assert parts["unet"] == parts["vae"] == ["config.json", *weights]
    assert "safety_checker" in parts
    named = "merges.txt special_tokens_map.json tokenizer_config.json vocab.json"
    assert " ".join(parts["tokenizer"]) == named
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in vae
    assert "scaling_factor" not in read(folder / "vae" / "config.json")


def encoded(config: BackboneConfig, photos: list[Image.Image]) -> tuple[Tensor, Tensor]:
    encoder = load_encoder(config, device=CPU)
    return encoder.image_moments(photos), encoder.text_embeddings(CAPTIONS).sequence_BLD


def test_the_encoder(published, photos):
    config = BackboneConfig(model=published.sd15)
    assert config.folder() == published.sd15
    both = zip(encoded(config, photos), encoded(PLAIN, photos), strict=True)
    assert all(torch.equal(ours, plain) for ours, plain in both)


def predicted(config: BackboneConfig) -> Tensor:
    denoiser = load_denoiser(config, device=CPU)
    generator = torch.Generator().manual_seed(1)
    x_BCHW = torch.randn(2, 4, 8, 8, generator=generator)
    prompts = SD15Conditioning(torch.randn(2, 77, 32, generator=generator))
    timesteps_B = torch.tensor([999, 5])
    noised_BCHW = denoiser.add_noise(x_BCHW, torch.ones_like(x_BCHW), timesteps_B)
    with torch.no_grad():
        return denoiser.predict(noised_BCHW, timesteps_B, prompts)


def test_the_denoiser(published):
    assert torch.equal(predicted(BackboneConfig(model=published.sd15)), predicted(PLAIN))


def test_the_half_precision_variant(published, photos):
    variant = BackboneConfig(model=published.sd15, variant="fp16")
    pairs = [
        (predicted(variant), predicted(PLAIN)),
        *zip(encoded(variant, photos), encoded(PLAIN, photos), strict=True),
    ]
    for ours, plain in pairs:
        assert ours.dtype == torch.float32  # half in the file only
        assert not torch.equal(ours, plain)
        torch.testing.assert_close(ours, plain, atol=0.02, rtol=0.02)
    pipeline = load_pipeline(variant, device=CPU)
    assert pipeline.unet.dtype == pipeline.text_encoder.dtype == torch.float32


def drawn(config: BackboneConfig) -> np.ndarray:
    pipeline = load_pipeline(config, device=CPU)
    assert pipeline.safety_checker is None
    generator = torch.Generator().manual_seed(2)
    [image] = pipeline(
        CAPTIONS[0], num_inference_steps=3, height=64, width=64, generator=generator
    ).images
    return np.asarray(image)


def test_the_pipeline(published):
    image = drawn(BackboneConfig(model=published.sd15))
    assert image.std() > 1  # the safety checker would have made it black
    np.testing.assert_array_equal(image, drawn(PLAIN))


def photo_rows(photos: list[Image.Image]) -> list[Row]:
    return [
        {"key": str(i), "caption": caption, "chosen": encode_png(photo)}
        for i, (photo, caption) in enumerate(zip(photos, CAPTIONS, strict=True))
    ]


def repainted(config: PerturbConfig, photos: list[Image.Image]) -> list[np.ndarray]:
    saliency = np.zeros((64, 64), np.uint8)
    saliency[16:48, 16:48] = 255
    stage = Inpaint(config, seed=0)
    stage.setup()
    rows = [
        {**row, "saliency": encode_png(Image.fromarray(saliency))} for row in photo_rows(photos)
    ]
    in_batches(stage, rows)
    return [np.asarray(row["rejected"]) for row in rows]


def test_the_inpainter(published, photos):
    ours = repainted(PerturbConfig(model=published.inpaint, steps=2), photos)
    plain = repainted(PerturbConfig(model=str(small.path("sd15-inpaint")), steps=2), photos)
    assert all(image.std() > 1 for image in ours)
    np.testing.assert_array_equal(ours, plain)


def test_pickscore(published, photos):
    ours = PickScoreConfig(model=published.pickscore, processor=published.processor).load()
    plain = PickScoreConfig(
        model=str(small.path("pickscore")), processor=str(small.path("pickscore"))
    ).load()
    wide = [*photos[:2], photos[2].resize((150, 101))]
    np.testing.assert_array_equal(ours.score(wide, CAPTIONS), plain.score(wide, CAPTIONS))


def test_u2net(published, photos):
    maps = []
    for weights in (published.u2net, str(small.path("u2netp.pth"))):
        stage = Saliency(SaliencyConfig(weights=weights))
        stage.setup()
        rows = photo_rows(photos)[:2]
        in_batches(stage, rows)
        maps.append([as_png(row["saliency"]) for row in rows])
    assert maps[0] == maps[1]


# ------------------------------------------------------------------ the preset


@pytest.fixture
def overrides(published, tmp_path) -> list[str]:
    """What a person adds to the preset who has the published models on disk."""
    world.write_photos(tmp_path / "photos", 3, seed=1)
    (tmp_path / "prompts.txt").write_text("\n".join(world.held_out_prompts(2)), encoding="utf-8")
    return [
        f"source.path={tmp_path / 'photos'}",
        f"evaluate.prompts={tmp_path / 'prompts.txt'}",
        f"storage={tmp_path / 'runs'}",
        f"base.model={published.sd15}",
        f"perturb.model={published.inpaint}",
        f"pickscore.model={published.pickscore}",
        f"pickscore.processor={published.processor}",
        f"saliency.weights={published.u2net}",
        "images.size=64",
        "evaluate.size=64",
    ]


def test_the_sd15_preset_accepts_the_published_models(overrides):
    run = Run(load(RunConfig, "sd15", overrides))
    names = " ".join(step.name for step in run.steps)
    assert names == "pairs cache stage1 stage2 stage2_alone evaluation card report"
    for step in run.steps:
        for need in step.needs:
            need()
        assert not step.done


def test_the_sd15_preset_names_every_model_that_is_missing(overrides, tmp_path):
    missing = [f"{o.partition('=')[0]}={tmp_path / 'none'}" for o in overrides[3:8]]
    with pytest.raises(InputError) as caught:
        execute(load(RunConfig, "sd15", [*overrides, *missing]))
    keys = [line.partition(":")[0] for line in str(caught.value).splitlines()]
    assert sorted(keys) == [
        "base.model",
        "perturb.model",
        "pickscore.model",
        "pickscore.processor",
        "saliency.weights",
    ]


def test_the_sd15_preset_loads_and_runs_in_its_own_precision(overrides, photos):
    here = ["perturb.resources.num_gpus=0", "evaluate.resources.num_gpus=0"]
    config = load(RunConfig, "sd15", [*overrides, *here, "perturb.steps=2", "evaluate.steps=2"])
    assert (config.base.dtype, config.perturb.dtype) == ("bfloat16", "float16")
    assert all(image.std() > 1 for image in repainted(config.perturb, photos))
    for tensor in encoded(config.base, photos):
        assert tensor.dtype == torch.bfloat16
        assert tensor.isfinite().all()
    generate = Generate(config.base, config.evaluate, loras={})
    generate.setup()
    [row] = rows = [{"model": BASE, "prompt": CAPTIONS[0], "noise": 42}]
    in_batches(generate, rows)
    assert np.asarray(row["image"]).std() > 1
