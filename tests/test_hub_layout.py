"""The code that runs on the embedded checkpoints runs on the layout of the published ones.

The embedded checkpoints are rewritten as the published repositories hold theirs: older key names,
older configurations, the tokenizer in parts, a safety checker, half-precision variants. Widths
stay small. Every loader must then give what it gives for the plain ones.
"""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig

from raypref.config import InputError, load
from raypref.curate.perturb import Inpaint, PerturbConfig
from raypref.curate.saliency import Saliency, SaliencyConfig
from raypref.diffusion.backbone import (
    BackboneConfig,
    load_denoiser,
    load_encoder,
    load_pipeline,
)
from raypref.evaluate.generate import BASE, Generate
from raypref.images import encode_png, open_png
from raypref.pipeline import Run, RunConfig
from raypref.rewards.pickscore import PickScoreConfig
from raypref.rows import Row
from raypref.tiny import checkpoints, photograph, world

CPU = torch.device("cpu")

# All that the published configurations of these parts say; newer keys take their defaults.
UNET_KEYS = (
    "_class_name act_fn attention_head_dim block_out_channels center_input_sample "
    "cross_attention_dim down_block_types downsample_padding flip_sin_to_cos freq_shift "
    "in_channels layers_per_block mid_block_scale_factor norm_eps norm_num_groups out_channels "
    "sample_size up_block_types"
)
VAE_KEYS = (
    "_class_name act_fn block_out_channels down_block_types in_channels latent_channels "
    "layers_per_block norm_num_groups out_channels sample_size up_block_types"
)
SCHEDULER_KEYS = (
    "_class_name beta_end beta_schedule beta_start num_train_timesteps set_alpha_to_one "
    "skip_prk_steps steps_offset trained_betas"
)

# What the index calls the feature extractor; the second name is gone from transformers.
EXTRACTORS = {"sd15": "CLIPImageProcessor", "sd15-inpaint": "CLIPFeatureExtractor"}

# The autoencoder's attention was saved under these names.
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


class Published(NamedTuple):
    """Folders and the file as a person would download them."""

    sd15: str
    inpaint: str
    pickscore: str
    processor: str
    u2net: str


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Published:
    root = tmp_path_factory.mktemp("published")
    for name, extractor in EXTRACTORS.items():
        publish_pipeline(checkpoints.path(name), root / name, extractor=extractor)
    publish_pickscore(checkpoints.path("pickscore"), root / "model", root / "processor")
    publish_u2net(checkpoints.path("u2netp.pth"), root / "u2net.pth")
    names = ("sd15", "sd15-inpaint", "model", "processor", "u2net.pth")
    return Published(*(str(root / name) for name in names))


def publish_pipeline(source: Path, target: Path, *, extractor: str) -> None:
    shutil.copytree(source, target)
    config = read(target / "model_index.json")
    config.pop("image_encoder", None)
    config["_diffusers_version"] = "0.6.0"
    config["feature_extractor"] = ["transformers", extractor]
    config["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    write(target / "model_index.json", config)

    age_config(target / "unet" / "config.json", UNET_KEYS)
    age_config(target / "vae" / "config.json", VAE_KEYS)
    age_config(target / "scheduler" / "scheduler_config.json", SCHEDULER_KEYS, clip_sample=False)
    vae = target / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({old_attention(k): v for k, v in load_file(vae).items()}, vae, metadata=PT)

    text = target / "text_encoder"
    weights = {f"text_model.{k}": v for k, v in load_file(text / "model.safetensors").items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, text / "model.safetensors", metadata=PT)
    age_clip_config(text / "config.json")

    publish_tokenizer(target / "tokenizer", target / "tokenizer")
    write(target / "feature_extractor" / "preprocessor_config.json", old_processor(224))
    add_safety_checker(target / "safety_checker")
    for file in list(target.rglob("*.safetensors")):
        add_variant(file)


def publish_pickscore(source: Path, model: Path, processor: Path) -> None:
    """Model and processor are two repositories; this processor has the tokenizer's one file too."""
    weights = load_file(source / "model.safetensors")
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    weights["vision_model.embeddings.position_ids"] = torch.arange(65)[None]
    model.mkdir()
    save_file(weights, model / "model.safetensors", metadata=PT)
    shutil.copy(source / "config.json", model)
    age_clip_config(model / "config.json")
    write(processor / "preprocessor_config.json", old_processor(64))
    shutil.copy(source / "tokenizer.json", processor)
    publish_tokenizer(source, processor)
    assert (processor / "tokenizer.json").is_file()


def publish_u2net(source: Path, target: Path) -> None:
    """The published file predates torch's zip format."""
    state = OrderedDict(torch.load(source, weights_only=True))
    torch.save(state, target, _use_new_zipfile_serialization=False)


PT = {"format": "pt"}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def age_config(path: Path, keys: str, **more: Any) -> None:
    config = {key: value for key, value in read(path).items() if key in keys.split()}
    write(path, {**config, "_diffusers_version": "0.6.0", **more})


def age_clip_config(path: Path) -> None:
    """Old ids of the special tokens, in every part, though the vocabulary has others."""
    config = read(path)
    config.pop("dtype", None)
    config |= {"torch_dtype": "float32", "transformers_version": "4.22.0.dev0"}
    for part in (config, config.get("text_config")):
        if part and "max_position_embeddings" in part:
            part |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    write(path, config)


def old_attention(key: str) -> str:
    for new, old in OLD_ATTENTION.items():
        key = key.replace(f"mid_block.attentions.0.{new}.", f"mid_block.attentions.0.{old}.")
    return key


def publish_tokenizer(source: Path, target: Path) -> None:
    """vocab.json, merges.txt and the two files beside them, as CLIP's first tokenizer had them."""
    model = read(source / "tokenizer.json")["model"]
    if source == target:
        shutil.rmtree(target)
    write(target / "vocab.json", model["vocab"])
    merges = "".join(f"{' '.join(pair)}\n" for pair in model["merges"])
    (target / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    start, end = ({"content": f"<|{which}oftext|>", **flags} for which in ("start", "end"))
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end["content"]}
    write(target / "special_tokens_map.json", special)
    typed = {
        name: {"__type": "AddedToken", **token} if isinstance(token, dict) else token
        for name, token in special.items()
    }
    more = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "name_or_path": "openai/clip-vit-large-patch14",
        "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer",
    }
    write(target / "tokenizer_config.json", {**typed, **more})


def old_processor(side: int) -> dict[str, Any]:
    return {
        "crop_size": side,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": side,
    }


def add_safety_checker(folder: Path) -> None:
    """One that finds every image unsafe: where it runs, images are black."""
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    part["num_attention_heads"] = 2
    vision = {**part, "image_size": 224, "patch_size": 32}
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(text_config={**part, "vocab_size": 64}, vision_config=vision, projection_dim=16)
    )
    checker.concept_embeds_weights.data.fill_(-2)
    checker.save_pretrained(folder)


def add_variant(file: Path) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in load_file(file).items()}
    save_file(half, file.with_suffix(".fp16.safetensors"), metadata=PT)


# ------------------------------------------------------------------ each loader


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    scenes = world.sample_scenes(3, seed=31)
    return [Image.fromarray(photograph.render(s, seed=i)) for i, s in enumerate(scenes)]


CAPTIONS = ["a photo of a red ball on grass", "", "Zürich & ¾-inch nails, 日本 " * 20]
PLAIN = BackboneConfig(model="tiny:sd15")


def test_the_layout_is_the_published_one(published):
    folder = Path(published.sd15)
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert files == [
        "feature_extractor/preprocessor_config.json",
        "model_index.json",
        "safety_checker/config.json",
        "safety_checker/model.fp16.safetensors",
        "safety_checker/model.safetensors",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in vae
    assert "scaling_factor" not in read(folder / "vae" / "config.json")


def encoded(config: BackboneConfig, photos: list[Image.Image]) -> tuple[Tensor, Tensor]:
    encoder = load_encoder(config, device=CPU)
    return encoder.image_moments(photos), encoder.text_embeddings(CAPTIONS)


def test_the_encoder(published, photos):
    config = BackboneConfig(model=published.sd15)
    assert config.folder() == published.sd15
    for ours, plain in zip(encoded(config, photos), encoded(PLAIN, photos), strict=True):
        assert torch.equal(ours, plain)


def predicted(config: BackboneConfig) -> Tensor:
    denoiser = load_denoiser(config, device=CPU)
    generator = torch.Generator().manual_seed(1)
    x_BCHW = torch.randn(2, 4, 8, 8, generator=generator)
    prompts_BLD = torch.randn(2, 77, 32, generator=generator)
    timesteps_B = torch.tensor([999, 5])
    noised_BCHW = denoiser.add_noise(x_BCHW, torch.ones_like(x_BCHW), timesteps_B)
    with torch.no_grad():
        return denoiser.predict(noised_BCHW, timesteps_B, prompts_BLD)


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
    stage(rows)
    return [np.asarray(open_png(row["rejected"])) for row in rows]


def test_the_inpainter(published, photos):
    ours = repainted(PerturbConfig(model=published.inpaint, steps=2), photos)
    plain = repainted(PerturbConfig(model="tiny:sd15-inpaint", steps=2), photos)
    assert all(image.std() > 1 for image in ours)
    np.testing.assert_array_equal(ours, plain)


def test_pickscore(published, photos):
    ours = PickScoreConfig(model=published.pickscore, processor=published.processor).load()
    plain = PickScoreConfig(model="tiny:pickscore", processor="tiny:pickscore").load()
    wide = [*photos[:2], photos[2].resize((150, 101))]
    np.testing.assert_array_equal(ours.score(wide, CAPTIONS), plain.score(wide, CAPTIONS))


def test_u2net(published, photos):
    maps = []
    for weights in (published.u2net, "tiny:u2netp.pth"):
        stage = Saliency(SaliencyConfig(weights=weights))
        stage.setup()
        rows = photo_rows(photos[:2] + photos[:1])[:2]
        stage(rows)
        maps.append([row["saliency"] for row in rows])
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
    names = [step.name for step in run.steps]
    assert names == [
        *("pairs", "cache", "stage1", "stage2", "stage2_alone", "evaluation", "report")
    ]
    for step in run.steps:
        step.check()
        assert not step.done or step.name == "report"


def test_the_sd15_preset_names_every_model_that_is_missing(overrides, tmp_path):
    missing = [f"{o.partition('=')[0]}={tmp_path / 'none'}" for o in overrides[3:8]]
    steps = Run(load(RunConfig, "sd15", [*overrides, *missing])).steps
    with pytest.raises(InputError) as caught:
        steps[0].check()
    lines = str(caught.value).splitlines()
    keys = ["saliency.weights", "perturb.model", "pickscore.model"]
    assert [line.partition(":")[0] for line in lines] == keys
    with pytest.raises(InputError, match=r"^base\.model: "):
        steps[1].check()


def test_the_sd15_preset_loads_and_runs_in_its_own_precision(overrides, photos):
    config = load(RunConfig, "sd15", [*overrides, "perturb.steps=2", "evaluate.steps=2"])
    assert (config.base.dtype, config.perturb.dtype) == ("bfloat16", "float16")
    assert all(image.std() > 1 for image in repainted(config.perturb, photos))
    moments, embeddings = encoded(config.base, photos)
    assert moments.dtype == embeddings.dtype == torch.bfloat16
    assert moments.isfinite().all()
    assert embeddings.isfinite().all()
    generate = Generate(config.base, config.evaluate, loras={})
    generate.setup()
    [row] = rows = [{"model": BASE, "prompt": CAPTIONS[0], "seed": 42}]
    generate(rows)
    assert np.asarray(open_png(row["image"])).std() > 1
