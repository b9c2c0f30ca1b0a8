"""AdamW with moments in 8 bits: bitsandbytes' own steps, resumed to the bit, near AdamW."""

from __future__ import annotations

from pathlib import Path

import memory
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from training import BASES, CPU, run, training

from raypref.align import adamw8bit
from raypref.align.adamw8bit import AdamW8bit
from raypref.core.config import InputError, load, results_of
from raypref.models.backbone import load_denoiser
from raypref.models.lora_config import LoraConfig
from raypref.run.config import RunConfig
from raypref.run.memory_plan import predicted_gib
from raypref.run.model_sizes import SIZES
from raypref.run.pipeline import Run

DPO = training(
    objective="dpo",
    optimizer="adamw8bit",
    lr=1e-3,
    beta=100,
    steps=6,
    batch=2,
    micro_batch=2,
    ema_decay=0.9,
    checkpoint_every=3,
)


def gradients(count: int, steps: int = 20) -> list[Tensor]:
    """Of a loss with large and small slopes, some of them 0."""
    generator = torch.Generator().manual_seed(4)
    scale = 10 ** torch.linspace(-6, 0, count) * (torch.arange(count) % 5 > 0)
    return [torch.randn(count, generator=generator) * scale for _ in range(steps)]


def stepped(kind: type, count: int, steps: int = 20, **options: object) -> Tensor:
    """A vector after so many steps, each with another learning rate."""
    vector = nn.Parameter(torch.linspace(-1, 1, count))
    own = kind([vector], lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, **options)
    for number, gradient in enumerate(gradients(count, steps)):
        own.param_groups[0]["lr"] = 1e-3 * (1 + number % 3)
        vector.grad = gradient.clone()
        own.step()
        own.zero_grad()
    return vector.detach()


@pytest.mark.bitsandbytes
@pytest.mark.parametrize("count", [100, 4096, 5000])
def test_steps_are_those_of_bitsandbytes(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes

    expected = stepped(bitsandbytes.optim.AdamW8bit, count, min_8bit_size=1)
    assert torch.equal(stepped(AdamW8bit, count), expected)
    monkeypatch.setattr(adamw8bit, "PORTION", 512)
    assert torch.equal(stepped(AdamW8bit, count), expected)


@pytest.mark.bitsandbytes
def test_it_is_near_adamw() -> None:
    own, precise = stepped(AdamW8bit, 5000), stepped(torch.optim.AdamW, 5000)
    moved = (precise - torch.linspace(-1, 1, 5000)).abs()
    assert (own - precise).norm() < 0.1 * moved.norm()
    assert not torch.equal(own, precise)


def trained(folder: Path, steps: int, *, rank: int, optimizer: str) -> dict[str, Tensor]:
    """What a training in float32 writes."""
    stage = DPO.model_copy(update={"steps": steps, "optimizer": optimizer})
    network = load_denoiser(BASES["sd15"].in_precision("float32"), device=CPU)
    run(stage, str(folder), network=network, lora=LoraConfig(rank=rank, alpha=4))
    name = "pytorch_lora_weights" if rank else "unet/diffusion_pytorch_model"
    return load_file(folder / f"{name}.safetensors")


@pytest.mark.bitsandbytes
@pytest.mark.parametrize("rank", [4, 0])
def test_a_training_resumes_to_the_bit(rank: int, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", 6, rank=rank, optimizer="adamw8bit")
    trained(tmp_path / "parts", 3, rank=rank, optimizer="adamw8bit")
    resumed = trained(tmp_path / "parts", 6, rank=rank, optimizer="adamw8bit")
    assert all(torch.equal(value, whole[key]) for key, value in resumed.items())


@pytest.mark.bitsandbytes
def test_a_training_is_near_the_one_by_adamw(tmp_path: Path) -> None:
    own, precise = (
        torch.cat([v.flatten() for k, v in made.items() if ".up." in k or ".lora_B." in k])
        for made in (
            trained(tmp_path / name, 20, rank=4, optimizer=name) for name in ("adamw8bit", "adamw")
        )
    )
    assert 0 < (own - precise).norm() < 0.05 * precise.norm()  # B begins as 0


def test_only_those_who_ask_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "stage2_alone"
    given = [f"trainings={name}", f"train.{name}.optimizer=adamw8bit"]
    plain = load(RunConfig, "tiny", [given[0]])
    assert f"train.{name}.optimizer" not in results_of({"": plain})
    own = Run(load(RunConfig, "tiny", given))
    assert own.trained[name].fingerprint != Run(plain).trained[name].fingerprint

    monkeypatch.setattr("raypref.align.graph.require_library", lambda *args, **options: None)
    own.alignment.check_training(name)
    wide = Run(load(RunConfig, "tiny", [*given, "base.dtype=float64"]))
    with pytest.raises(InputError, match=r"optimizer=adamw8bit: it works in float32"):
        wide.alignment.check_training(name)
    monkeypatch.undo()
    monkeypatch.setattr("raypref.core.extras.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"adamw8bit: bitsandbytes is not installed; pip install"):
        own.alignment.check_training(name)


def test_memory_by_hand() -> None:
    """Two moments of a byte and a 64th in the place of 4 bytes; no vector of AdamW's own."""
    given = [*memory.GIVEN, "trainings=stage2_alone", "lora.rank=0"]
    key = "train.stage2_alone"
    given += [f"{key}.gradient_checkpointing=true", f"{key}.micro_batch=1", f"{key}.ema_decay=0"]

    def gib(optimizer: str) -> float:
        made = load(RunConfig, "sdxl", [*given, f"{key}.optimizer={optimizer}"])
        return predicted_gib(made)["stage2_alone"]

    saved = 2 * (4 - (1 + 4 / 256)) + 4  # bytes per weight
    expected = saved * SIZES["sdxl"].trained * 1e9 / 2**30
    # Of two images of 1024x1024; without the vector they are the most beside what stays.
    activations = SIZES["sdxl"].recomputed * 2 * 1.17 * 4
    assert gib("adamw") - gib("adamw8bit") == pytest.approx(expected - activations, abs=0.11)
