"""Section `check`: whether a GPU computes what the CPU does, and whether it does so twice."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from gpu_sections.bench import Bench
from gpu_sections.curation import exact, inpainter, rows_of, scorer, tf32
from gpu_sections.networks import Change, as_is, autocast
from raypref.align import watch
from raypref.align.latents import FLIPS
from raypref.align.loop import Alone, train
from raypref.align.objectives.registry import OBJECTIVES
from raypref.align.pair_data import PairData
from raypref.core.device import DType, pick_device
from raypref.models.backbone import BackboneConfig, load_denoiser
from raypref.models.families.sd15 import SD15Conditioning
from raypref.models.lora_config import FILE_NAME, LoraConfig

CPU = torch.device("cpu")
TOLD = ("loss", "chosen_gap", "rejected_gap", "grad_norm", "lora_norm")  # metrics compared
BATCH = 8  # of the positions
Weights = dict[str, Tensor]


class Interrupted(Exception):  # noqa: N818  (stands for a kill)
    """Ends a training in the middle."""


def check(bench: Bench) -> None:
    """Parity with the CPU, metrics read late, bits of two runs, of a resumed one, of a batch."""
    bench.attempt("parity", lambda: _parity(bench))
    bench.attempt("metrics", lambda: _metrics(bench))
    bench.attempt("default", lambda: _bits(bench, "default"))
    bench.attempt("deterministic", lambda: _deterministic(bench))
    bench.attempt("positions", lambda: _positions(bench))
    bench.attempt("precision", lambda: _precision(bench))
    bench.attempt("refusal", lambda: _refusal(bench))


# ------------------------------------------------------------------ a short training


def _data() -> PairData:
    """Random pairs of the embedded model's shapes."""
    generator = torch.Generator().manual_seed(0)
    captions = SD15Conditioning(torch.randn(8, 77, 64, generator=generator))
    moments = torch.randn(8, 2, FLIPS, 2, 4, 16, 16, generator=generator)
    return PairData(moments, captions, captions[0])


def _train(
    device: torch.device,
    objective: str,
    *,
    steps: int,
    batch: int,
    dtype: DType = "float32",
    change: Change = as_is,
    folder: str | None = None,
    stop_at: int | None = None,
) -> tuple[list[dict[str, float]], Weights]:
    """Train the embedded model; its metrics and its LoRA.

    Args:
        device: where.
        objective: of the training.
        steps: optimizer steps.
        batch: samples per step.
        dtype: of the base.
        change: of the denoiser.
        folder: of checkpoints, to be resumed from; None for one of its own.
        stop_at: raise Interrupted when the metrics of this step are read.
    """
    denoiser = load_denoiser(BackboneConfig(model="tiny:sd15", dtype=dtype), device=device)
    change(denoiser)
    # A small beta: the published one turns differences of rounding into ones of the loss.
    own = {"rollout_steps": 3, "policy_lag": 2} if objective == "dro" else {"beta": 10}
    training = OBJECTIVES[objective](
        objective=objective,
        steps=steps,
        batch=batch,
        micro_batch=max(2, batch // 2),
        checkpoint_every=3,
        **own,
    )

    def on_step(metrics: Mapping[str, float]) -> None:
        if metrics["step"] == stop_at:
            raise Interrupted

    with tempfile.TemporaryDirectory() as scratch:
        where = folder or scratch
        history = train(
            denoiser,
            _data(),
            training,
            LoraConfig(),
            name="check",
            draws="check",
            seed=0,
            folder=where,
            start=None,
            group=Alone(),
            on_step=on_step,
        )
        return history, load_file(Path(where) / FILE_NAME)


def _difference(ours: Weights, theirs: Weights) -> float:
    """Largest difference of two LoRAs, relative to the largest weight."""
    most = max(float(value.abs().max()) for value in theirs.values())
    return max(float((ours[key] - theirs[key]).abs().max()) for key in theirs) / most


def _cosine(ours: Weights, theirs: Weights) -> float:
    """Of what two LoRAs learned: their B, which begins at zero."""
    own, other = (
        torch.cat([each[key].double().flatten() for key in sorted(each) if "lora.up" in key])
        for each in (ours, theirs)
    )
    return float(torch.nn.functional.cosine_similarity(own, other, dim=0))


def _equal(ours: Weights, theirs: Weights) -> float:
    return float(all(torch.equal(ours[key], theirs[key]) for key in theirs))


def _parity(bench: Bench) -> None:
    """(1) Against the CPU in float32: float32 without TF32, bfloat16, bfloat16 under autocast."""
    ways: dict[str, tuple[DType, Change]] = {
        "float32": ("float32", as_is),
        "bfloat16": ("bfloat16", as_is),
        "bfloat16, autocast": ("bfloat16", autocast),
    }
    short: dict[str, Any] = {"steps": bench.pick(4, 2), "batch": bench.pick(8, 2)}
    with exact():
        for objective in ("dro", "dpo"):
            history, weights = _train(CPU, objective, **short)
            error = max(row["ref_chosen"] for row in history)
            for variant, (dtype, change) in ways.items():
                found, own = _train(bench.device, objective, dtype=dtype, change=change, **short)
                pairs = list(zip(found, history, strict=True))
                off = max(abs(row["loss"] - other["loss"]) for row, other in pairs) / error
                bench.record(f"loss off the CPU's / error, {objective}", off, "", variant=variant)
                off = _difference(own, weights)
                bench.record(f"LoRA off the CPU's, {objective}", off, "", variant=variant)
                same = _cosine(own, weights)
                bench.record(f"cosine of LoRA's B, {objective}", same, "", variant=variant)


def _metrics(bench: Bench) -> None:
    """(2) Metrics that are read one step late equal those read at once."""
    found = []
    for lag in (0, 1):
        with patch.object(watch, "LAG", {}), patch.object(watch, "LAG_ELSEWHERE", lag):
            history, _ = _train(bench.device, "dpo", steps=4, batch=bench.pick(8, 2))
        found.append([[row[key] for key in TOLD] for row in history])
    bench.record("equal bits, watched late and at once", float(found[0] == found[1]), "")


def _bits(bench: Bench, variant: str) -> None:
    """(3) The same training twice, and six steps against three and three."""
    batch = bench.pick(8, 2)
    again = partial(_train, bench.device, "dro", steps=6, batch=batch, dtype="bfloat16")
    began = time.perf_counter()
    runs = [again()[1] for _ in range(2)]
    seconds = (time.perf_counter() - began) / 2
    bench.record("training of six steps", seconds, "s", variant=variant)
    bench.record("equal bits, twice", _equal(*runs), "", variant=variant)
    with tempfile.TemporaryDirectory() as folder:
        try:
            again(folder=folder, stop_at=4)
        except Interrupted:
            _, resumed = again(folder=folder)
            bench.record("equal bits, resumed", _equal(resumed, runs[0]), "", variant=variant)


def _deterministic(bench: Bench) -> None:
    """The same with deterministic algorithms, which cuBLAS must know of before it begins."""
    if not bench.cuda:
        deterministic(bench)
        return
    script = Path(__file__).parents[1] / "gpu.py"
    words = ["deterministic", "--size", bench.size, "--device", "cuda", "--seconds", "120"]
    folders = ["--out", str(bench.out), "--models", str(bench.models)]
    done = subprocess.run([sys.executable, str(script), *words, *folders], check=False)
    bench.record("exit status", done.returncode, "", variant="deterministic")


def deterministic(bench: Bench) -> None:
    """`_bits` in a process of its own, where `CUBLAS_WORKSPACE_CONFIG` is set from the start."""
    # Operations without a deterministic form warn: what they are is part of the answer.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _bits(bench, "deterministic")
    finally:
        torch.use_deterministic_algorithms(False)
    without = {str(w.message).split()[0] for w in caught if "deterministic" in str(w.message)}
    told = ", ".join(sorted(without)) or "none"
    bench.record("operations without a deterministic form", told, "", variant="deterministic")


# ------------------------------------------------------------------ batches and precision


def _positions(bench: Bench) -> None:
    """(4) One photograph at every position of a batch: the same bits?"""
    batch, steps = bench.pick(BATCH, 2), bench.pick(8, 1)
    transforms: tuple[tuple[str, Any, str], ...] = (
        ("PickScore", scorer(bench, batch), "pickscore"),
        ("inpaint", inpainter(bench, batch, steps=steps), "rejected"),
    )
    for name, transform, column in transforms:
        found = []
        for position in range(batch):
            rows = rows_of(bench, batch)
            rows[0], rows[position] = rows[position], rows[0]
            transform.finish(rows, transform.compute(transform.prepare(rows)))
            found.append(np.asarray(rows[position][column]))
        same = all(np.array_equal(found[0], other) for other in found)
        bench.record(f"equal bits of a batch's positions, {name}", float(same), "")


def _precision(bench: Bench) -> None:
    """(5) PickScore in TF32 and in halves against float32. Random weights: an order of magnitude.

    Scores of real weights spread more; what counts is the error beside the gaps that are selected.
    """
    count, batch = bench.pick(512, 8), bench.pick(64, 4)
    rows = rows_of(bench, count)
    for i, row in enumerate(rows):  # no photograph twice
        row["chosen"] = row["chosen"].rotate(i % 360)

    def scores(dtype: DType, fast: bool) -> np.ndarray:
        transform = scorer(bench, batch, dtype=dtype)
        found: list[Any] = []
        with tf32(fast):
            for first in range(0, count, batch):
                found += transform.compute(transform.prepare(rows[first : first + batch]))
        return np.concatenate(found)

    with exact():
        true = scores("float32", False)
    ways: dict[str, tuple[DType, bool]] = {
        "TF32": ("float32", True),
        "float16": ("float16", False),
        "bfloat16": ("bfloat16", False),
    }
    bench.record("PickScore, spread in float32", float(true.std()), "")
    for variant, (dtype, fast) in ways.items():
        if dtype != "float16" or bench.cuda:
            off = float(np.abs(scores(dtype, fast) - true).max())
            bench.record("PickScore off float32's, at most", off, "", variant=variant)


def _refusal(bench: Bench) -> None:
    """(6) What is done where a GPU was asked for and CUDA is not there."""
    with patch.object(torch.cuda, "is_available", lambda: False):
        told = _said(lambda: pick_device(1.0))
    bench.record("a GPU is asked for and there is none", told, "")


def _said(call: Callable[[], torch.device]) -> str:
    try:
        return f"goes on with {call()}"
    except RuntimeError as error:
        return f"refused: {error}"
