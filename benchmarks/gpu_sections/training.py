"""Sections `train`, `compile` and `sd35`: passes of the network, and steps of the real loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import full
import torch
from plain_loop import Plain, photographs
from torch._dynamo.utils import counters

from gpu_sections.bench import Bench
from gpu_sections.networks import (
    Change,
    adapter_of,
    as_is,
    autocast,
    base_of,
    compiled_blocks,
    compiled_transformers,
    compiled_whole,
    contiguous,
    denoiser_of,
    inputs_of,
    pairs_of,
    record_rate,
    record_training,
)
from gpu_sections.predictions import TFLOP
from raypref.align.experience import policy_trajectories
from raypref.align.objectives.dro import DRO
from raypref.align.residuals import LEARNER, POLICY, Draw
from raypref.models import adapters
from raypref.models.families.base import Denoiser

VARIANTS: dict[str, Change] = {"as is": as_is, "autocast": autocast, "contiguous": contiguous}
ROLLOUT = 20  # solver steps, as in the preset


def train(bench: Bench) -> None:
    """SD-1.5: passes, memory per sample, steps by variant and batch, and the plain loop."""
    count = bench.pick(16, 2)
    bench.attempt("no adapter", lambda: _forward(bench, "sd15", count, "no adapter"))
    for variant, change in VARIANTS.items():
        bench.attempt(variant, partial(_passes, bench, "sd15", count, variant, change))
    bench.attempt("checkpointing", partial(_memory, bench, "sd15", count, "checkpointing", _sparse))
    data = pairs_of(bench, "sd15", bench.pick(64, 4))
    batch, micro = bench.pick(64, 4), bench.pick(16, 2)
    run = partial(record_training, bench, "sd15", data=data, batch=batch)
    dro: dict[str, Any] = {
        "objective": "dro",
        "rollout_steps": bench.pick(ROLLOUT, 4),
        "steps": bench.pick(3, 1),
    }
    dpo: dict[str, Any] = {"objective": "dpo", "steps": bench.pick(5, 1)}
    ours: dict[str, float] = {}
    for variant, change in VARIANTS.items():

        def both(variant: str = variant, change: Change = change) -> None:
            some: dict[str, Any] = {"variant": variant, "change": change, "micro_batch": micro}
            ours.setdefault("dpo", run(**dpo, **some))
            if bench.cuda or change is as_is:
                ours.setdefault("dro", run(**dro, **some))

        bench.attempt(variant, both)
    bench.attempt(
        "two stops",
        partial(run, **dro, variant="two stops", micro_batch=micro, rollout_stops=2),
    )
    for size in (4, 8, 32, 64) if bench.size == "full" else (1,):
        variant = f"micro_batch {size}"
        bench.attempt(variant, partial(run, **dpo, variant=variant, micro_batch=size))
    _rollouts(bench)
    bench.attempt("plain loop", lambda: _plain(bench, ours))


def compile_(bench: Bench) -> None:
    """SD-1.5 compiled: by blocks, which share graphs, and as a whole."""
    # On a CPU the graphs are only captured: to compile them takes minutes and says nothing.
    options: dict[str, Any] = {} if bench.cuda else {"backend": "eager"}
    ways: dict[str, Change] = {"blocks": partial(compiled_blocks, **options)}
    if bench.cuda:
        ways["transformer blocks"] = partial(compiled_transformers, **options)
        ways["whole"] = partial(compiled_whole, **options)
    count, batch = bench.pick(16, 2), bench.pick(64, 2)
    data = pairs_of(bench, "sd15", bench.pick(64, 4))
    run = partial(record_training, bench, "sd15", data=data, batch=batch)
    for variant, change in ways.items():
        bench.attempt(variant, partial(_compiled, bench, count, variant, change))
        some: dict[str, Any] = {"variant": variant, "change": change, "micro_batch": count}
        if not bench.cuda:
            continue  # a training would capture the same graphs once more
        torch._dynamo.reset()
        bench.attempt(variant, partial(run, "dpo", steps=bench.pick(5, 1), **some))
        if variant == "blocks":  # whole, each batch of a rollout compiles for minutes
            torch._dynamo.reset()
            dro: dict[str, Any] = {"steps": 3, "rollout_steps": ROLLOUT, "rollout_batch": batch}
            bench.attempt(variant, partial(run, "dro", **dro, **some))


def sd35(bench: Bench) -> None:
    """SD-3.5-Medium: passes with and without checkpointing, steps of both trainings."""
    count = bench.pick(8, 2)
    for variant in ("as is", "autocast"):
        bench.attempt(variant, partial(_passes, bench, "sd35m", count, variant, VARIANTS[variant]))
    bench.attempt(
        "checkpointing", partial(_passes, bench, "sd35m", count, "checkpointing", _sparse)
    )
    data = pairs_of(bench, "sd35m", bench.pick(16, 4))
    run = partial(record_training, bench, "sd35m", data=data, batch=bench.pick(16, 2))
    dro: dict[str, Any] = {
        "policy_state": "final",
        "rollout_steps": bench.pick(10, 2),
        "policy_lag": 1,
    }
    for variant, sparse in (("checkpointing", True), ("as is", False)):
        some: dict[str, Any] = {
            "variant": variant,
            "micro_batch": count,
            "gradient_checkpointing": sparse,
            "steps": bench.pick(3, 1),
        }
        bench.attempt(variant, partial(run, "dpo", **some))
        bench.attempt(variant, partial(run, "dro", **some, **dro))


# ------------------------------------------------------------------ passes


def _sparse(denoiser: Denoiser) -> None:
    """Recompute activations in backward."""
    cast("Any", denoiser.module).enable_gradient_checkpointing()


def _forward(bench: Bench, name: str, count: int, variant: str) -> None:
    denoiser = denoiser_of(bench, name, adapted=False)
    inputs = inputs_of(bench, name, denoiser, count)
    with torch.no_grad():
        seconds = bench.seconds(lambda: denoiser.predict(*inputs))
    bench.record(f"forward at {count}", 1000 * seconds, "ms", variant=variant)


def _backward_of(bench: Bench, name: str, denoiser: Denoiser, count: int) -> Callable[[], None]:
    """A pass forward and back of the learner."""
    inputs = inputs_of(bench, name, denoiser, count)

    def both() -> None:
        adapters.activate(denoiser.module, LEARNER, train=True)
        denoiser.predict(*inputs).float().square().mean().backward()

    return both


def _passes(bench: Bench, name: str, count: int, variant: str, change: Change) -> None:
    """Times of one pass, its kernels, and memory per sample."""
    denoiser = denoiser_of(bench, name)
    change(denoiser)
    inputs = inputs_of(bench, name, denoiser, count)

    @torch.no_grad()
    def forward() -> None:
        denoiser.predict(*inputs)

    both = _backward_of(bench, name, denoiser, count)
    adapters.activate(denoiser.module, POLICY)
    seconds = bench.seconds(forward)
    bench.record(f"forward at {count}", 1000 * seconds, "ms", variant=variant)
    bench.record_profile("forward", forward, variant=variant)
    seconds = bench.seconds(both)
    bench.record(f"forward and backward at {count}", 1000 * seconds, "ms", variant=variant)
    if bench.cuda and bench.size == "full":
        rate = count * sum(TFLOP[name]) / seconds
        record_rate(bench, "forward and backward", rate, variant=variant)
    bench.record_profile("forward and backward", both, variant=variant)
    _memory_of(bench, name, denoiser, count, variant)


def _memory(bench: Bench, name: str, count: int, variant: str, change: Change) -> None:
    denoiser = denoiser_of(bench, name)
    change(denoiser)
    _memory_of(bench, name, denoiser, count, variant)


def _memory_of(bench: Bench, name: str, denoiser: Denoiser, count: int, variant: str) -> None:
    """What a sample more takes in a pass forward and back."""
    half = count // 2
    peaks = [bench.peak(_backward_of(bench, name, denoiser, size))[0] for size in (half, count)]
    if bench.cuda:
        bench.record("memory per sample", (peaks[1] - peaks[0]) / half, "GiB", variant=variant)


def _compiled(bench: Bench, count: int, variant: str, change: Change) -> None:
    """Seconds until compiled, passes after it, and graphs, of learner and policy."""
    torch._dynamo.reset()
    counters.clear()
    denoiser = denoiser_of(bench, "sd15")
    change(denoiser)
    inputs = inputs_of(bench, "sd15", denoiser, count)

    @torch.no_grad()
    def forward() -> None:
        denoiser.predict(*inputs)

    both = _backward_of(bench, "sd15", denoiser, count)
    bench.record("until the learner is compiled", bench.once(both), "s", variant=variant)
    seconds = bench.seconds(both)
    bench.record(f"forward and backward at {count}", 1000 * seconds, "ms", variant=variant)
    adapters.activate(denoiser.module, POLICY)
    bench.record("until the policy is compiled", bench.once(forward), "s", variant=variant)
    bench.record(f"forward at {count}", 1000 * bench.seconds(forward), "ms", variant=variant)
    graphs = counters["stats"]["unique_graphs"]
    bench.record("graphs, learner and policy", graphs, "", variant=variant)


# ------------------------------------------------------------------ rollouts, the plain loop


def _rollouts(bench: Bench) -> None:
    """Policy rollouts of many samples, by how many are rolled out at once."""
    count = bench.pick(256, 4)
    data = pairs_of(bench, "sd15", 4)
    training = DRO(rollout_steps=bench.pick(ROLLOUT, 2), batch=count)

    def rollout(denoiser: Denoiser, total: int, size: int) -> None:
        for first in range(0, total, size):
            some = range(first, first + size)
            draws = [Draw(i % 4, torch.Generator().manual_seed(i)) for i in some]
            policy_trajectories(denoiser, data, training, draws)

    for size in (32, 128, 256) if bench.size == "full" else (2, 4):
        variant = f"rollout_batch {size}"

        def measure(size: int = size, variant: str = variant) -> None:
            denoiser = denoiser_of(bench, "sd15")
            rollout(denoiser, size, size)  # warm-up
            seconds = [0.0]

            def measured() -> None:
                seconds[0] = bench.once(lambda: rollout(denoiser, count, size))

            bench.record_memory(measured, variant=variant)
            bench.record("rollouts, 256 samples", seconds[0] * 256 / count, "s", variant=variant)

        bench.attempt(variant, measure)

    def profiled() -> None:
        denoiser, size = denoiser_of(bench, "sd15"), bench.pick(32, 2)
        call = partial(rollout, denoiser, size, size)
        bench.record_profile(f"rollout of {size}", call, variant="as is")

    bench.attempt("as is", profiled)


def _plain(bench: Bench, ours: dict[str, float]) -> None:
    """One step of the released scripts' loop: encoders at every step, whole rollouts, a copy."""
    batch = bench.pick(16, 2)
    pairs = photographs(batch, full.SIDE[bench.size])
    loop = Plain(
        base_of(bench, "sd15"), adapter_of("sd15"), micro=bench.pick(8, 2), device=bench.device
    )

    def step(objective: str) -> None:
        with torch.autocast(bench.device.type, dtype=torch.bfloat16):
            loop.step(objective, pairs)

    for objective in ("dpo", "dro"):
        if bench.cuda:
            step(objective)  # warm-up
        seconds = bench.once(partial(step, objective)) * 256 / batch
        bench.record(f"{objective}, 256 samples", seconds, "s", variant="plain loop")
        if objective in ours:
            bench.record(f"{objective}, plain loop / ours", seconds / ours[objective], "")
