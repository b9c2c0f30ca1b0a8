"""The LoRA's second file, of a run that was trained before there was one."""

from pathlib import Path

import torch

from raypref.core.config import load
from raypref.models import lora
from raypref.models.lora_config import FILE_NAME, LoraConfig
from raypref.run.config import RunConfig
from raypref.run.pipeline import Run


def test_a_training_of_an_older_version_gets_the_file_that_opens_elsewhere(tmp_path):
    run = Run(load(RunConfig, "tiny", [f"storage={tmp_path}", "run=a/mine"]))
    ledger = run.alignment.trained["stage1"]
    ledger.begin()
    values = {
        "mid_block.attn.to_q.lora_A.weight": torch.ones(2, 4),
        "mid_block.attn.to_q.lora_B.weight": torch.ones(4, 2),
    }
    lora.save(values, LoraConfig(rank=2, alpha=2), folder=ledger.path, component="unet")
    run.alignment.write_missing_shared()
    names = [FILE_NAME]
    assert sorted(p.name for p in Path(ledger.path).glob("*.safetensors")) == names, "unfinished"
    ledger.commit(expected=0, counts={})
    run.alignment.write_missing_shared()
    file = Path(ledger.path) / "mine-stage1.safetensors"
    written = file.stat().st_mtime_ns
    run.alignment.write_missing_shared()
    assert file.stat().st_mtime_ns == written
    assert not list(tmp_path.rglob("*-stage2.safetensors"))
