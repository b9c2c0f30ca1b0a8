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
from raypref.models import lora
from raypref.models.backbone import BackboneConfig, load_denoiser
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
    lora.attach(denoiser.module, STRONG, names=("learner",), seed=3)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in denoiser.module.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    lora.save(lora.state(denoiser.module, "learner"), STRONG, folder=str(folder), component="unet")
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


@pytest.mark.parametrize("network", [False, True])
def test_the_lines_that_load_it_do(trained, tmp_path, network, monkeypatch):
    monkeypatch.chdir(Path(small.path("sd15")).parent)  # so that the last name of a path is enough
    base = BASE.model_copy(update={"network": BASE.model} if network else {})
    text = card(base=base)
    code = text.split("```python\n")[1].split("```")[0]
    assert ("unet=UNet2DConditionModel" in code) == network
    code = code.replace("path/to/this/folder", str(trained))
    code = code.replace(").images", ", num_inference_steps=1, height=64, width=64).images")
    made: dict[str, Any] = {}
    exec(code, made)
    assert made["image"].size == (64, 64)
    assert made["pipe"].get_active_adapters()


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
    assert f'from_pretrained("someone/unet", revision="{"b" * 40}", subfolder="unet")' in text
    assert "going on from the LoRA `other/lora` at `v2`" in text  # as it is written
    assert "going on from the LoRA `lora`," in card(starts_from="/home/x/lora", commits=commits)
