"""Sections `env` and `build`: what the machine is and can do; the folders of all models."""

from __future__ import annotations

import os
import platform
import shutil
from functools import partial
from importlib.metadata import version

import full
import torch

from gpu_sections.bench import GIB, Bench
from gpu_sections.counting import count
from gpu_sections.curation import tf32

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")


def env(bench: Bench) -> None:
    """Versions, copy rate, rates of matrix products."""
    for name in LIBRARIES:
        bench.record(name, version(name), "")
    bench.record("python", platform.python_version(), "")
    bench.record("cores", os.cpu_count() or 0, "")
    if bench.cuda:
        found = torch.cuda.get_device_properties(bench.device)
        bench.record("memory", found.total_memory / GIB, "GiB")
        bench.record("CUDA of torch", torch.version.cuda or "", "")
        bench.record("cuDNN", torch.backends.cudnn.version() or 0, "")
        bench.record("streaming multiprocessors", found.multi_processor_count, "")
    for name in ("sd15", "sd35m") if bench.size == "full" else ("sd15",):
        bench.attempt(name, partial(_counted, bench, name))
    bench.attempt("", lambda: _copy(bench))
    for name in ("bfloat16", "float32", "TF32"):
        bench.attempt(name, partial(_product, bench, name))


def _counted(bench: Bench, name: str) -> None:
    """What a training pass of the full size consists of; no card is needed for that."""
    counts = count(name, backward=bench.size == "full")
    bench.record("counted: kernels, forward", counts.kernels, "", variant=name)
    bench.record("counted: conversions, forward", counts.casts, "", variant=name)
    bench.record("counted: kept for backward per sample", counts.saved, "GiB", variant=name)
    bench.record("counted: forward per sample", counts.forward, "TFLOP", variant=name)
    if counts.kernels_both:
        bench.record("counted: kernels, both", counts.kernels_both, "", variant=name)
        bench.record("counted: backward per sample", counts.backward, "TFLOP", variant=name)


def _copy(bench: Bench) -> None:
    source = torch.zeros(bench.pick(GIB, 2**24) // 4, device=bench.device)
    target = torch.empty_like(source)
    seconds = bench.seconds(lambda: target.copy_(source))
    bench.record("copy", 2 * source.nbytes / seconds / 1e12, "TB/s")


def _product(bench: Bench, name: str) -> None:
    side = 8192 if bench.cuda else 512
    dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
    a = torch.randn(side, side, device=bench.device, dtype=dtype)
    with tf32(name == "TF32"):
        seconds = bench.seconds(lambda: a @ a)
    bench.record("matrix product", 2 * side**3 / seconds / 1e12, "TFLOP/s", variant=name)


def build(bench: Bench) -> None:
    """Write every model's folder, and say what it takes."""
    free = shutil.disk_usage(bench.models).free / 2**30
    bench.record("free disk", free, "GiB")

    def write(name: str) -> None:
        seconds = bench.once(lambda: bench.model(name))
        bench.record("written", seconds, "s", variant=name)

    for name in full.DTYPES:
        bench.attempt(name, partial(write, name))
