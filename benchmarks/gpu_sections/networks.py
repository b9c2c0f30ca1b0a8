"""Denoisers to train, pairs to train them on, and what is varied about them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import full
import torch
from torch import Tensor

from gpu_sections.bench import Bench
from gpu_sections.predictions import TFLOP, peak_of
from raypref.align.latents import FLIPS
from raypref.align.loop import Alone, train
from raypref.align.objectives.registry import OBJECTIVES
from raypref.align.pair_data import PairData
from raypref.align.residuals import LEARNER, POLICY, REFERENCE
from raypref.models import adapters
from raypref.models.backbone import BackboneConfig, load_denoiser
from raypref.models.compiled import compile_blocks
from raypref.models.families.base import Denoiser
from raypref.models.families.conditioning import Conditioning
from raypref.models.families.registry import family
from raypref.models.families.sd3 import SD3Conditioning
from raypref.models.families.sd15 import SD15Conditioning
from raypref.models.lora_config import LoraConfig

Change = Callable[[Denoiser], None]
TOKENS = {"sd15": 77, "sd35m": 77 + 256}
# The presets' adapters.
RANKS = {"sd15": LoraConfig(), "sd35m": LoraConfig(rank=32, alpha=64)}


def base_of(bench: Bench, name: str, *, dtype: str = "bfloat16") -> BackboneConfig:
    """The settings of a base model, `sd15` or `sd35m`."""
    return BackboneConfig(family=name, model=bench.model(name), dtype=dtype)


def adapter_of(name: str) -> LoraConfig:
    """The shape of the adapters that the preset trains."""
    return RANKS[name].model_copy(update={"targets": family(name).targets})


def denoiser_of(bench: Bench, name: str, *, adapted: bool = True) -> Denoiser:
    """The network as the training loads it, with the adapters of a training."""
    denoiser = load_denoiser(base_of(bench, name), device=bench.device)
    if adapted:
        shape = adapter_of(name)
        adapters.attach(denoiser.module, shape, names=(LEARNER, REFERENCE, POLICY), seed=0)
    return denoiser


def latent_shape(bench: Bench, name: str) -> tuple[int, int, int]:
    """Of one sample: (C, h, w)."""
    side = full.SIDE[bench.size] // 8
    return (16 if name == "sd35m" else 4, side, side)


def conditioning(bench: Bench, name: str, count: int) -> Conditioning:
    """Random captions as the family reads them, float32 on the CPU."""
    generator = torch.Generator().manual_seed(1)
    if name == "sd35m":
        sizes = full.TRANSFORMER[bench.size]
        shape = (count, TOKENS[name], sizes["joint_attention_dim"])
        pooled = torch.randn(count, sizes["pooled_projection_dim"], generator=generator)
        return SD3Conditioning(torch.randn(shape, generator=generator), pooled)
    shape = (count, TOKENS[name], full.UNET[bench.size]["cross_attention_dim"])
    return SD15Conditioning(torch.randn(shape, generator=generator))


def pairs_of(bench: Bench, name: str, count: int) -> PairData:
    """Random encoded pairs."""
    generator = torch.Generator().manual_seed(2)
    shape = (count, 2, FLIPS, 2, *latent_shape(bench, name))
    captions = conditioning(bench, name, count)
    return PairData(torch.randn(shape, generator=generator), captions, captions[0])


class Inputs(NamedTuple):
    """What a denoiser predicts from."""

    x_BCHW: Tensor
    timesteps_B: Tensor
    prompts: Conditioning


def inputs_of(bench: Bench, name: str, denoiser: Denoiser, count: int) -> Inputs:
    """Noisy latents of random timesteps, as `experience.py` hands them on: float32."""
    generator = torch.Generator().manual_seed(3)
    shape = latent_shape(bench, name)
    times = torch.stack([denoiser.draw_timestep(generator, shape) for _ in range(count)])
    prompts = conditioning(bench, name, count).to(bench.device, torch.float32)
    x = torch.randn((count, *shape), generator=generator)
    return Inputs(x.to(bench.device), times.to(bench.device), prompts)


# ------------------------------------------------------------------ variants


def as_is(denoiser: Denoiser) -> None:
    """The code as it is."""


def autocast(denoiser: Denoiser) -> None:
    """Every prediction within `torch.autocast`, as before the code did without."""
    plain = denoiser.predict

    def predict(x: Tensor, timesteps: Tensor, prompts: Any) -> Tensor:
        with torch.autocast(denoiser.device.type, dtype=denoiser.dtype):
            return plain(x, timesteps, prompts)

    denoiser.predict = predict  # type: ignore[method-assign, assignment]


def contiguous(denoiser: Denoiser) -> None:
    """Weights of convolutions not in channels_last."""
    denoiser.module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def compiled_blocks(denoiser: Denoiser, **options: Any) -> None:
    """The repeated blocks compiled, as `compile = true` does."""
    assert compile_blocks(denoiser.module, **options), "no blocks"


def compiled_transformers(denoiser: Denoiser, **options: Any) -> None:
    """Transformer blocks alone compiled: fewer graphs, convolutions as they are."""
    kinds = ("BasicTransformerBlock", "JointTransformerBlock")
    assert compile_blocks(denoiser.module, kinds=kinds, **options), "no blocks"


def compiled_whole(denoiser: Denoiser, **options: Any) -> None:
    """`torch.compile` of the whole network."""
    denoiser.module.compile(**options)


# ------------------------------------------------------------------ trainings


def record_training(
    bench: Bench,
    name: str,
    objective: str,
    data: PairData,
    *,
    variant: str,
    batch: int,
    steps: int,
    change: Change = as_is,
    **settings: Any,
) -> float:
    """Time the training loop; record the seconds that 256 samples take, MFU and memory.

    Args:
        bench: the bench.
        name: of the base model.
        objective: of the training.
        data: pairs.
        variant: its name in the results.
        batch: samples per optimizer step.
        steps: that are timed, after one that is not.
        change: of the denoiser, before adapters are attached.
        **settings: of the training.

    Returns:
        Seconds per 256 samples.
    """
    training = OBJECTIVES[objective](
        objective=objective, steps=steps + 1, batch=batch, checkpoint_every=10**6, **settings
    )
    denoiser = load_denoiser(base_of(bench, name), device=bench.device)
    change(denoiser)
    forwards, predict = 0, denoiser.predict

    def counted(x: Tensor, timesteps: Tensor, prompts: Conditioning) -> Tensor:
        nonlocal forwards
        forwards += len(x)
        return predict(x, timesteps, prompts)

    denoiser.predict = counted  # type: ignore[method-assign, assignment]
    clock: list[float] = []  # when the metrics of each step were there

    def on_step(metrics: Mapping[str, float]) -> None:
        clock.append(bench.clock())

    with tempfile.TemporaryDirectory() as folder:
        memory = bench.peak(
            lambda: train(
                denoiser,
                data,
                training,
                adapter_of(name),
                name="bench",
                draws="bench",
                seed=0,
                folder=folder,
                start=None,
                group=Alone(),
                on_step=on_step,
            )
        )
    seconds = (clock[-1] - clock[0]) / steps
    bench.record(f"{objective}, 256 samples", seconds * 256 / batch, "s", variant=variant)
    if bench.cuda:
        forward, backward = TFLOP[name]
        passes = forwards / ((steps + 1) * batch)
        # The policy's finished image gets no gradient.
        learned = 1 if settings.get("policy_state") == "final" else len(training.sides)
        done = (passes * forward + learned * backward) * batch / seconds
        if bench.size == "full":
            record_rate(bench, objective, done, variant=variant)
        bench.record(f"{objective}, peak memory, allocated", memory[0], "GiB", variant=variant)
        bench.record(f"{objective}, peak memory, reserved", memory[1], "GiB", variant=variant)
    return seconds * 256 / batch


def record_rate(bench: Bench, name: str, tflops: float, *, variant: str) -> None:
    """TFLOP/s, and their share of the card's published peak where that is known."""
    bench.record(f"{name}, rate", tflops, "TFLOP/s", variant=variant)
    peak = peak_of(torch.cuda.get_device_name(bench.device))
    if peak:
        bench.record(f"{name}, MFU", tflops / peak, "", variant=variant)
