"""All weights trained on the pairs of a whole run: networks in the place of LoRAs, in all steps."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from in_process import job_here

from jobs import SHORT, copy_of
from raypref.demo import checkpoints
from raypref.run.push import collect as pushed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_a_run_of_all_weights(full: tuple[Path, str], tmp_path: Path) -> None:
    copy_of(full[0], tmp_path / "runs")
    settings = (
        *SHORT,
        f"storage={tmp_path / 'runs'}",
        "lora.rank=0",
        "train.stage1.lr=1e-4",
        "train.stage2.lr=1e-4",
        "model.fused=true",
        "model.fused_file=true",
    )
    status, output = job_here("run", *settings)
    assert status == 0, output
    run = tmp_path / "runs" / "run"
    assert f"Network: {run}/stage2/unet" in output
    assert not list(run.rglob("pytorch_lora_weights.safetensors"))
    table = (run / "evaluation" / "table.md").read_text()
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert rows[2:] == ["base", "stage 1", "stage 1 + stage 2"]

    base = UNet2DConditionModel.from_pretrained(checkpoints.path("sd15"), subfolder="unet")
    networks = [base.state_dict()] + [
        UNet2DConditionModel.from_pretrained(run / name, subfolder="unet").state_dict()
        for name in ("stage1", "stage2")
    ]
    for one, other in pairwise(networks):
        moved = [not torch.equal(one[name], other[name]) for name in one]
        assert sum(moved) > 0.9 * len(moved)
    fused = DiffusionPipeline.from_pretrained(run / "fused").unet.state_dict()
    assert all(torch.equal(fused[name], value) for name, value in networks[-1].items())
    assert (run / "fused" / "run.safetensors").is_file()
    assert sorted(path.name for path in (run / "stage1" / "samples").iterdir()) == [
        f"step-{step:08d}.png" for step in (0, 2, 4)
    ]

    card = (run / "stage2" / "README.md").read_text()
    assert "All weights of the network were trained." in card and "| base |" in card
    page = (run / "report" / "index.html").read_text()
    assert "stage2/unet/diffusion_pytorch_model.safetensors" in page
    assert "UNet2DConditionModel.from_pretrained" in page and "load_lora_weights" not in page
    config = {"base": {"model": "tiny:sd15"}, "source": {"path": "tiny:world"}, "run": "run"}
    [upload] = pushed(str(run), config, what="lora", repo="me/mine", licence="cc0-1.0")
    assert {*upload.files} == {
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    assert 'from_pretrained("me/mine", subfolder="unet"' in upload.card
