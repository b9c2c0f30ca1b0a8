"""A whole run on top of an aligned model: another UNet, a LoRA to start from, SFT, all merged."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, UNet2DConditionModel
from in_process import job_here

from jobs import SHORT, copy_of
from raypref.core.config import InputError, load
from raypref.demo import checkpoints
from raypref.run.config import RunConfig
from raypref.run.execute import execute

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def aligned(tmp_path: Path) -> tuple[Path, Path]:
    """A UNet alone, as Diffusion-DPO's, and a LoRA in peft's layout, as Flow-GRPO's."""
    unet = UNet2DConditionModel.from_pretrained(checkpoints.path("sd15"), subfolder="unet")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        unet.conv_out.bias.add_(0.01)
    unet.save_pretrained(tmp_path / "dpo" / "unet")
    config = peft.LoraConfig(
        r=8, lora_alpha=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"]
    )
    model = peft.get_peft_model(unet, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "grpo")
    return tmp_path / "dpo", tmp_path / "grpo"


def test_a_run_on_top_of_an_aligned_model(
    full: tuple[Path, str], aligned: tuple[Path, Path], tmp_path: Path
) -> None:
    unet, lora = aligned
    run = copy_of(full[0], tmp_path / "runs")
    shutil.rmtree(run / "cache")  # of another network
    settings = (
        *SHORT,
        f"storage={tmp_path / 'runs'}",
        'trainings=["sft", "stage1", "stage2"]',
        f"base.network={unet}",
        f"train.stage1.start={lora}",
        "train.stage2.objective=kto",
        "train.stage2.reference=base",
        "train.stage2.schedule=cosine",
        "train.sft.steps=2",
        "train.sft.batch=8",
        "train.sft.resources.workers=1",
        "model.fused=true",
    )
    status, output = job_here("run", *settings)
    assert status == 0, output
    assert f"LoRA: {run}/stage2/pytorch_lora_weights.safetensors" in output
    table = (run / "evaluation" / "table.md").read_text()
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert rows[2:] == ["base", "start", "SFT", "stage 1", "stage 1 + stage 2"]

    card = (run / "stage2" / "README.md").read_text()
    facts = yaml.safe_load(card.split("---\n")[1])
    assert "base_model" not in facts  # a folder is no id of the hub
    assert "going on from the LoRA `grpo`" in card
    assert "| base |" in card
    DiffusionPipeline.from_pretrained(run / "fused")
    index = json.loads((run / "fused" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"

    # A LoRA of another rank is refused before anything is done.
    with pytest.raises(InputError) as refused:
        execute(load(RunConfig, "tiny", [*settings[1:], "run=other", "lora.rank=4"]))
    output = str(refused.value)
    assert "train.stage1.start: the LoRA in" in output
    assert "has rank 8, and lora.rank is 4; set lora.rank=8 lora.alpha=16" in output
    assert not (tmp_path / "runs" / "other").exists()
