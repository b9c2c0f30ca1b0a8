"""Section `evaluate`: images of the base and of LoRAs, with kernels of their own and merged."""

from __future__ import annotations

import tempfile
from functools import partial

import full
import torch

from gpu_sections.bench import Bench
from gpu_sections.networks import adapter_of, base_of, denoiser_of
from raypref.align.residuals import LEARNER
from raypref.core.config import Resources
from raypref.evaluate.generate import BASE, Generate, GenerateConfig
from raypref.models import adapters, lora

STEPS = 50  # of the preset
NAMES = ("first", "second")  # of the LoRAs


def evaluate(bench: Bench) -> None:
    """Seconds per image of base and LoRA, each way; what it takes to go from LoRA to LoRA."""
    with tempfile.TemporaryDirectory() as folder:
        made = {name: f"{folder}/{name}" for name in NAMES}
        bench.attempt("LoRAs", lambda: _write(bench, made))
        for variant, fuse in (("LoRA", False), ("LoRA merged", True)):
            bench.attempt(variant, partial(_images, bench, made, variant, fuse=fuse))


def _write(bench: Bench, folders: dict[str, str]) -> None:
    """Random LoRAs of the preset's shape, as a training leaves them."""
    denoiser, shape = denoiser_of(bench, "sd15"), adapter_of("sd15")
    vector = adapters.vector(denoiser.module, LEARNER)
    for folder in folders.values():
        adapters.fill(denoiser.module, LEARNER, 0.01 * torch.randn_like(vector))
        values = adapters.state(denoiser.module, LEARNER)
        lora.save(values, shape, folder=folder, component=denoiser.component)


def _images(bench: Bench, folders: dict[str, str], variant: str, *, fuse: bool) -> None:
    batch, side = bench.pick(16, 2), full.SIDE[bench.size]
    config = GenerateConfig(
        steps=bench.pick(STEPS, 2),
        size=side,
        seeds=(1,),
        fuse=fuse,
        resources=Resources(batch=batch, num_gpus=bench.num_gpus),
    )
    transform = Generate(base_of(bench, "sd15"), config, loras=folders)
    transform.setup()
    by_model = {
        name: transform.prepare(
            [{"model": name, "prompt": "a red ball on a meadow", "noise": 1}] * batch
        )
        for name in (BASE, *NAMES)
    }

    def draw(model: str) -> None:
        transform.compute(by_model[model])

    draw(BASE)  # warm-up
    if not fuse:
        seconds = bench.once(lambda: draw(BASE))
        bench.record("device time per image", seconds / batch, "s", variant="base")
    draw(NAMES[0])
    seconds = bench.once(lambda: draw(NAMES[0]))
    bench.record("device time per image", seconds / batch, "s", variant=variant)
    bench.record_memory(lambda: draw(NAMES[0]), variant=variant)

    def switch() -> None:
        for name in (NAMES[1], BASE):
            transform.activate(name)

    seconds = bench.once(switch)
    bench.record("from LoRA to LoRA and to the base", 1000 * seconds, "ms", variant=variant)
