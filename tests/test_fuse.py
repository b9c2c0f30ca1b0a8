"""The merged pipeline, and the model card beside the LoRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
import yaml
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from huggingface_hub import ModelCard

from raypref.align.objectives.registry import OBJECTIVES
from raypref.core.config import InputError, results_of
from raypref.evaluate.generate import GenerateConfig
from raypref.models import adapters, lora
from raypref.models.backbone import BackboneConfig, load_denoiser
from raypref.models.families.registry import family
from raypref.models.fuse import fuse
from raypref.models.lora_config import LoraConfig
from raypref.report.card import model_card

BASE = BackboneConfig(model=str(small.path("sd15")))
STRONG = LoraConfig(rank=2, alpha=8)
COUNTS = {
    "pair": 512,
    "low_colorfulness": 14621,
    "negligible_degradation": 812,
    "beyond_top_k": 3529,
    "duplicate": 2,
    "too_small": 3,
    "unreadable": 1,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    denoiser = load_denoiser(BASE, device=torch.device("cpu"))
    adapters.attach(denoiser.module, STRONG, names=("learner",), seed=3)
    learner = adapters.vector(denoiser.module, "learner").detach()
    noise = torch.randn(learner.shape, generator=torch.Generator().manual_seed(3))
    adapters.fill(denoiser.module, "learner", learner + 0.1 * noise)
    lora.save(
        adapters.state(denoiser.module, "learner"), STRONG, folder=str(folder), component="unet"
    )
    return folder


def image(pipeline: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    [made] = pipeline(
        "a photo of a red ball",
        num_inference_steps=3,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(5),
    ).images
    return np.asarray(made).astype(int)


def test_the_merged_pipeline_draws_what_base_and_lora_draw(trained, tmp_path):
    fuse(BASE, lora=str(trained), dtype="float32", folder=str(tmp_path))
    plain = StableDiffusionPipeline.from_pretrained(small.path("sd15"))
    without = image(plain)
    plain.load_lora_weights(str(trained))
    merged = DiffusionPipeline.from_pretrained(tmp_path)  # finds the class by the index
    assert not list(tmp_path.rglob(".*")), "unfinished files"
    assert not [name for name, _ in merged.unet.named_parameters() if "lora" in name]
    assert np.abs(image(merged) - image(plain)).max() <= 1
    assert np.abs(image(plain) - without).mean() > 1
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"


def test_half_precision_is_the_rounded_float32_merge(trained, tmp_path):
    for dtype in ("float32", "bfloat16"):
        fuse(BASE, lora=str(trained), dtype=dtype, folder=str(tmp_path / dtype))
    full = DiffusionPipeline.from_pretrained(tmp_path / "float32").unet.state_dict()
    half = DiffusionPipeline.from_pretrained(
        tmp_path / "bfloat16", dtype=torch.bfloat16
    ).unet.state_dict()
    assert all(torch.equal(half[name], value.bfloat16()) for name, value in full.items())


def test_without_weights_nothing_is_merged(tmp_path):
    with pytest.raises(InputError, match="no LoRA weights in"):
        fuse(BASE, lora=str(tmp_path), dtype="float32", folder=str(tmp_path / "out"))


# ------------------------------------------------------------------ the card


def card(**changes: Any) -> str:
    trainings = {
        "stage1": results_of({"": OBJECTIVES["dro"](objective="dro", steps=1600)}),
        "stage2": results_of({"": OBJECTIVES["dpo"](objective="dpo", start="stage1", lr=2.56e-6)}),
    }
    given: dict[str, Any] = {
        "name": "my-run",
        "base": BackboneConfig(),
        "draw": GenerateConfig(),
        "shared": "my-run-stage2.safetensors",
        "licence": "creativeml-openrail-m",
        "photographs": "cc-by-4.0",
        "counts": COUNTS,
        "starts_from": "",
        "trainings": {n: {k.lstrip("."): v for k, v in s.items()} for n, s in trainings.items()},
        "lora": {"rank": 4, "alpha": 4.0, "targets": ("to_q", "to_k")},
        "table": "| model | PickScore |\n|---|---|\n| base | 20.65 |\n",
        "fused": False,
        "commits": {},
    }
    return model_card(**given | changes)


def test_the_header_is_what_the_hub_reads():
    text = card()
    _, header, body = text.split("---\n", 2)
    facts = yaml.safe_load(header)
    assert facts["base_model"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert facts["license"] == "creativeml-openrail-m"
    assert facts["library_name"] == "diffusers"
    assert facts["pipeline_tag"] == "text-to-image"
    assert "lora" in facts["tags"]
    assert ModelCard(text).data.base_model == facts["base_model"]
    assert body.startswith("\n# my-run")


def test_the_banner_stands_before_any_number():
    body = card(banner="Scores mean nothing.").split("---\n", 2)[2]
    assert body.index("> **Scores mean nothing.**") < body.index("## Use")
    assert ">" not in card().split("## Use")[0].split("---\n", 2)[2]


def test_it_tells_that_the_base_was_in_fewer_bits():
    text = card(base=BackboneConfig(quantise="nf4"))
    assert "`stable-diffusion-v1-5/stable-diffusion-v1-5` with its linear layers in nf4, by" in text
    assert "the evaluation drew with it in nf4" in text
    assert "nf4" not in card()


def test_it_tells_the_funnel_the_settings_and_the_table():
    text = card()
    total = sum(COUNTS.values())
    for row in (
        f"| photographs found | {total} |",
        f"| usable | {total - 4} |",
        f"| distinct | {total - 6} |",
        f"| above the mean colorfulness | {total - 6 - 14621} |",
        f"| visibly degraded | {512 + 3529} |",
        "| preference pairs | 512 |",
        "| setting | stage1 | stage2 |",
        "| steps | 1600 | 1000 |",
        "| lr | 0.0001 | 2.56e-06 |",
        "| base | 20.65 |",
    ):
        assert row in text.splitlines(), row
    assert "LoRA: rank 4, alpha 4.0, targets to_q to_k." in text
    assert "micro_batch" not in text  # changes no result
    assert "arXiv:2605.19839" in text
    assert "Not run." in card(table="")


RUNS = [
    (BASE, {}),
    (BASE, {"network": BASE.model}),
    (BASE, {"dtype": "bfloat16"}),
    (BackboneConfig(model="tiny:sd15"), {}),  # whose text encoder is stored in half precision
    (BackboneConfig(family="sd15_inpaint", model=str(small.path("sd15-inpaint"))), {}),
    (BackboneConfig(family="sdxl_inpaint", model=str(small.path("sdxl-inpaint"))), {}),
    (BackboneConfig(family="sd35m", model=str(small.path("sd3"))), {}),
    (BackboneConfig(family="flux_fill", model=str(small.path("flux-fill"))), {}),
]


@pytest.mark.parametrize(("base", "changes"), RUNS)
def test_the_example_runs_as_it_is_printed(base, changes, tmp_path, monkeypatch):
    base = base.model_copy(update=changes)
    denoiser = load_denoiser(base, device=torch.device("cpu"))
    config = LoraConfig(rank=2, alpha=8, targets=family(base.family).targets)
    adapters.attach(denoiser.module, config, names=("learner",), seed=3)
    values = adapters.state(denoiser.module, "learner")
    lora.save(values, config, folder=str(tmp_path), component=denoiser.component)
    (tmp_path / "my-run-stage2.safetensors").write_bytes(b"not the one to load")
    monkeypatch.chdir(tmp_path)
    for ref in (base.model, base.network):  # a local folder is named by its last name
        if ref and ":" not in ref and not (link := tmp_path / Path(ref).name).exists():
            link.symlink_to(ref)
    text = card(base=base, draw=GenerateConfig(steps=1, size=64, seeds=(5,)))
    made: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], made)
    assert made["image"].size == (64, 64)
    assert (tmp_path / "image.png").is_file()
    assert made["pipe"].get_active_adapters()
    assert next(made["pipe"].vae.parameters()).dtype == getattr(torch, base.dtype)


def test_the_example_draws_in_the_evaluations_precision_and_noise():
    text = card(draw=GenerateConfig(dtype="float16", noise_device="model", seeds=(5,)))
    assert "dtype=torch.float16)" in text and "torch.Generator(pipe.device).manual_seed(5)" in text
    assert "dtype=torch.float32)" in (plain := card(draw=GenerateConfig(seeds=(5,))))
    assert "torch.Generator().manual_seed(5)" in plain


def test_the_base_is_named_by_its_id_on_the_hub_or_not_at_all():
    for base in (BASE, BackboneConfig(model="tiny:sd15"), BackboneConfig(network="./unet")):
        assert "base_model" not in yaml.safe_load(card(base=base).split("---\n", 2)[1])
    assert "is a toy model" in card(base=BackboneConfig(model="tiny:sd15"))
    assert "is a toy model" not in card(base=BASE)
    assert "base_model: some/model" in card(base=BackboneConfig(model="some/model@v1"))


def test_the_file_for_other_programs_is_named():
    assert "`my-run-stage2.safetensors` is the same LoRA for ComfyUI" in card()


def test_no_path_of_the_machine_is_in_it():
    text = card(base=BASE, starts_from="/home/someone/secret/lora", fused=True)
    assert "/home" not in text
    assert str(small.path("sd15").parent) not in text
    assert "going on from the LoRA `lora`" in text
    assert "`fused/`" in text


def test_a_model_of_the_hub_is_named_with_its_commit():
    base = BackboneConfig(network="someone/unet@v1")
    commits = {base.model: "a" * 40, base.network: "b" * 40, "/home/x/lora": "local"}
    text = card(base=base, commits=commits, starts_from="other/lora@v2")
    facts = yaml.safe_load(text.split("---\n", 2)[1])
    assert facts["base_model"] == "someone/unet"  # as the hub knows it
    model = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert f"`someone/unet` at `{'b' * 40}` in `{model}` at `{'a' * 40}`" in text
    assert f'StableDiffusionPipeline.from_pretrained("{model}", revision="{"a" * 40}"' in text
    assert f'from_pretrained("someone/unet", revision="{"b" * 40}", subfolder="unet", ' in text
    assert "going on from the LoRA `other/lora` at `v2`" in text  # as it is written
    assert "going on from the LoRA `lora`," in card(starts_from="/home/x/lora", commits=commits)


@pytest.mark.parametrize(
    ("base", "code"),
    [
        (
            BackboneConfig(model="/m/mine.safetensors", config="/m/folder"),
            'from_single_file("mine.safetensors", dtype=torch.float32, config="folder")',
        ),
        (
            BackboneConfig(model="a/b@v1/c.safetensors"),
            'from_single_file("https://huggingface.co/a/b/blob/v1/c.safetensors", dtype=',
        ),
    ],
)
def test_the_example_loads_a_checkpoint_in_one_file(base: BackboneConfig, code: str) -> None:
    assert f"pipe = StableDiffusionPipeline.{code}" in card(base=base)
