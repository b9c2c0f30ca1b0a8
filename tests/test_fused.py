"""Images with the LoRA merged per model: the same but for rounding, and the base to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import small
import torch

from raypref.core.config import results_of
from raypref.core.device import DType
from raypref.core.rows import Row
from raypref.evaluate.generate import BASE, Generate, GenerateConfig, rows_to_generate
from raypref.models import adapters, lora
from raypref.models.backbone import BackboneConfig, load_denoiser
from raypref.models.fused import Fused
from raypref.models.lora_config import LoraConfig

MODEL = str(small.path("sd15"))
CONFIG = GenerateConfig(prompts="tiny:prompts", seeds=(42, 7), steps=3, size=64)
PROMPTS = ["a photo of a red ball", "snow at night"]


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """LoRAs of two ranks, each on layers of its own besides common ones."""
    folders = {}
    shapes = {
        "wide": LoraConfig(rank=4, alpha=8, targets=("to_q", "to_k", "to_v", "to_out.0")),
        "narrow": LoraConfig(rank=2, alpha=2, targets=("to_q", "proj_in")),
    }
    for seed, (name, shape) in enumerate(shapes.items()):
        folder = str(tmp_path_factory.mktemp(name))
        denoiser = load_denoiser(BackboneConfig(model=MODEL), device=torch.device("cpu"))
        linear = {k for k, v in denoiser.module.named_modules() if isinstance(v, torch.nn.Linear)}
        some = tuple(t for t in shape.targets if any(k.endswith(f".{t}") for k in linear))
        shape = shape.model_copy(update={"targets": some})
        adapters.attach(denoiser.module, shape, names=("learner",), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        vector = adapters.vector(denoiser.module, "learner")
        adapters.fill(
            denoiser.module, "learner", 0.1 * torch.randn(vector.shape, generator=generator)
        )
        lora.save(
            adapters.state(denoiser.module, "learner"), shape, folder=folder, component="unet"
        )
        folders[name] = folder
    return folders


def stage(loras: dict[str, str], *, fuse: bool, dtype: DType = "float32") -> Generate:
    config = CONFIG.model_copy(update={"fuse": fuse})
    made = Generate(BackboneConfig(model=MODEL, dtype=dtype), config, loras=loras)
    made.setup()
    return made


def rows_of(models: Sequence[str]) -> list[Row]:
    return rows_to_generate(PROMPTS, CONFIG, models).to_pylist()


def images(made: Generate, rows: Sequence[Row], *, batch: int = 4) -> dict[str, np.ndarray]:
    """Pixels from 0 to 255 by the id of the row."""
    found = {}
    for first in range(0, len(rows), batch):
        some = list(rows[first : first + batch])
        for row, pixels in zip(some, made.compute(made.prepare(some)), strict=True):
            found[row["id"]] = 255 * pixels.astype(np.float64)
    return found


def weights(made: Generate) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in made.pipeline.unet.state_dict().items() if "lora_" not in k}


def off(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours)


def test_merged_images_equal_unmerged_ones_but_for_rounding(loras: dict[str, str]) -> None:
    rows = rows_of([BASE, *loras])
    plain, fused = (images(stage(loras, fuse=fuse), rows) for fuse in (False, True))
    assert off(fused, plain) < 0.05  # of 255
    base = {name: plain[f"base/{name.partition('/')[2]}"] for name in plain}
    assert off(plain, base) > 1, "the LoRAs change nothing"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_taken_out_the_base_is_there_to_the_bit(loras: dict[str, str], dtype: DType) -> None:
    made = stage(loras, fuse=True, dtype=dtype)
    before, rows = weights(made), rows_of([BASE])
    first = images(made, rows)
    drawn = images(made, rows_of([*loras]))
    changed = weights(made)
    assert any(not torch.equal(changed[name], before[name]) for name in before)
    assert off(images(made, rows), first) == 0
    after = weights(made)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert off(images(made, rows_of([*loras])), drawn) == 0, "nothing is left of the other LoRA"


def test_each_lora_is_merged_once(loras: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    merged: list[str] = []
    use = Fused.use

    def noted(self: Fused, adapter: str) -> None:
        if adapter != self.adapter:
            merged.append(adapter)
        use(self, adapter)

    monkeypatch.setattr(Fused, "use", noted)
    made, rows = stage(loras, fuse=True), rows_of([BASE, *loras])
    images(made, rows, batch=3)  # two batches hold rows of two models
    assert merged == ["model_wide", "model_narrow"]
    made.compute(
        made.prepare([rows[0], rows[-1]])
    )  # as after a kill: the one in the weights goes first
    assert merged == ["model_wide", "model_narrow", ""]


def test_small_updates_survive_half_precision(loras: dict[str, str], tmp_path: Path) -> None:
    """Merged into weights that are in bfloat16 already, an update below their spacing vanishes."""
    shape = LoraConfig(rank=4, alpha=4, targets=("to_q", "to_k"))
    denoiser = load_denoiser(BackboneConfig(model=MODEL), device=torch.device("cpu"))
    adapters.attach(denoiser.module, shape, names=("learner",), seed=1)
    vector = adapters.vector(denoiser.module, "learner")
    noise = torch.randn(vector.shape, generator=torch.Generator().manual_seed(1))
    adapters.fill(denoiser.module, "learner", 0.005 * noise)  # products of some 5e-5
    values = adapters.state(denoiser.module, "learner")
    lora.save(values, shape, folder=str(tmp_path), component="unet")
    made = stage({"faint": str(tmp_path)}, fuse=True, dtype="bfloat16")
    assert made.fused is not None
    made.fused.use("model_faint")
    swallowed, kept = [], []
    for layer, weight, _, precise in made.fused.layers:
        delta = layer.get_delta_weight("model_faint").double().flatten()
        merged = layer.get_base_layer().weight.data
        naive = (weight.float() + delta.float().view_as(weight)).bfloat16()
        for found, original, into in (
            (kept, precise.double(), merged),
            (swallowed, weight.double(), naive),
        ):
            change = (into.double() - original).flatten()
            found.append(float(change @ delta / (delta @ delta)))
    # Of the update, projected on itself: all of it, against a quarter.
    assert np.mean(kept) == pytest.approx(1, abs=0.1)
    assert abs(np.mean(swallowed)) < 0.5


def test_images_made_before_stay_valid() -> None:
    assert "evaluate.fuse" not in results_of({"evaluate": CONFIG})
    fused = CONFIG.model_copy(update={"fuse": True})
    assert results_of({"evaluate": fused})["evaluate.fuse"] is True
