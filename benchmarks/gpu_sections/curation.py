"""Sections `inpaint`, `score` and `lock`: curation's models, as the real transforms run them."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import full
import torch
from plain_loop import photographs

from gpu_sections.bench import Bench
from raypref.core.config import Resources
from raypref.core.device import DType
from raypref.core.rows import ModelTransform, Row
from raypref.curate.perturb import Inpaint, PerturbConfig
from raypref.curate.saliency import Saliency, SaliencyConfig
from raypref.engine.batches import Device, in_batches
from raypref.images.decode import ImageConfig, center_square, decode
from raypref.rewards.base import Score
from raypref.rewards.pickscore import PickScoreConfig

THREADS = (1, 2, 4, 8)
HELPERS = 3  # cores of a worker, as in recipe 8xh100
STEPS = 50  # of the preset's inpainter


def rows_of(bench: Bench, count: int) -> list[Row]:
    """Decoded photographs with a bright square as their saliency map."""
    side = full.SIDE[bench.size]
    made = photographs(min(count, 16), side)
    mask = made[0][1].convert("L").point(lambda _: 0)
    mask.paste(255, (side // 4, side // 4, 3 * side // 4, 3 * side // 4))
    return [
        {"key": f"{i}", "caption": text, "chosen": photo, "saliency": mask}
        for i, (text, photo, _) in zip(range(count), itertools.cycle(made), strict=False)
    ]


def inpainter(bench: Bench, batch: int, *, steps: int, **settings: Any) -> Inpaint:
    """The transform of the preset, with other settings of `perturb`, set up."""
    dtype: DType = "float16" if bench.cuda else "float32"
    resources = Resources(batch=batch, num_gpus=bench.num_gpus)
    model = bench.model("sd15-inpaint")
    config = PerturbConfig(model=model, dtype=dtype, steps=steps, resources=resources, **settings)
    transform = Inpaint(config, seed=0)
    transform.setup()
    return transform


def scorer(bench: Bench, batch: int, *, dtype: DType = "float32") -> Score:
    """PickScore of the photographs, set up."""
    folder = bench.model("pickscore")
    resources = Resources(batch=batch, num_gpus=bench.num_gpus)
    config = PickScoreConfig(model=folder, processor=folder, dtype=dtype, resources=resources)
    transform = Score(config, columns={"chosen": "pickscore"}, prompt="caption")
    transform.setup()
    return transform


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Matrix products of float32 in TF32, or not."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if on else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def exact() -> Iterator[None]:
    """Float32 all through: cuDNN's convolutions would be in TF32 by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with tf32(False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


# ------------------------------------------------------------------ inpaint


def inpaint(bench: Bench) -> None:
    """Seconds per twin: by batch and scheduler, channels_last, compiled; saliency."""
    steps = bench.pick(STEPS, 2)
    first = bench.pick(8, 2)
    bench.attempt(f"PNDM {steps}", lambda: _split(bench, first, steps))
    for batch in (8, 16, 32, 64) if bench.size == "full" else (1, 2):
        bench.attempt(f"batch {batch}", partial(_twins, bench, batch, steps, f"batch {batch}"))
    ways: dict[str, dict[str, Any]] = {"channels_last": {"channels_last": True}}
    if bench.cuda:  # on a CPU to compile takes minutes and says nothing
        ways["compiled blocks"] = {"compile": True}
        ways["compiled blocks, channels_last"] = {"compile": True, "channels_last": True}
    for variant, settings in ways.items():
        bench.attempt(
            variant, partial(_twins, bench, bench.pick(16, 2), steps, variant, **settings)
        )
    for few in (20, 25) if bench.size == "full" else (2,):
        variant = f"DPM-Solver++ {few}"
        solver = {"scheduler": "dpmsolver++"}
        bench.attempt(variant, partial(_twins, bench, bench.pick(16, 2), few, variant, **solver))
    bench.attempt("", lambda: _saliency(bench))


def _twins(
    bench: Bench,
    batch: int,
    steps: int,
    variant: str,
    **settings: Any,
) -> None:
    transform = inpainter(bench, batch, steps=steps, **settings)
    rows = rows_of(bench, batch)

    transform.compute(transform.prepare(rows))  # warm-up
    inputs, seconds = transform.prepare(rows), [0.0]  # generators are used up, so made anew

    def measured() -> None:
        seconds[0] = bench.once(lambda: transform.compute(inputs))

    bench.record_memory(measured, variant=variant)
    bench.record("device time per twin", seconds[0] / batch, "s", variant=variant)


def _split(bench: Bench, batch: int, steps: int) -> None:
    """Where the time of a batch goes: UNet, VAE, CPU."""
    transform, rows = inpainter(bench, batch, steps=steps), rows_of(bench, batch)
    pipeline = transform.pipeline
    spent = {"UNet": 0.0, "VAE": 0.0}

    def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            found: list[Any] = []
            bench.wait()
            spent[part] += bench.once(lambda: found.append(call(*args, **options)))
            return found[0]

        return run

    pipeline.unet.forward = timed("UNet", pipeline.unet.forward)
    pipeline.vae.encode = timed("VAE", pipeline.vae.encode)
    pipeline.vae.decode = timed("VAE", pipeline.vae.decode)
    transform.compute(transform.prepare(rows))  # warm-up
    spent |= dict.fromkeys(spent, 0.0)
    began = bench.clock()
    batch_in = transform.prepare(rows)
    prepared = bench.clock()
    out = transform.compute(batch_in)
    computed = bench.clock()
    transform.finish(rows, out)
    cpu = prepared - began + bench.clock() - computed
    for part, seconds in spent.items():
        bench.record(f"{part} per twin", seconds / batch, "s", variant=f"PNDM {steps}")
    bench.record("CPU per twin", cpu / batch, "s", variant=f"PNDM {steps}")


def _saliency(bench: Bench) -> None:
    config = SaliencyConfig(
        weights=bench.model("u2net"),
        side=bench.pick(320, 32),
        resources=Resources(batch=8, num_gpus=bench.num_gpus),
    )
    transform = Saliency(config)
    transform.setup()
    rows = rows_of(bench, bench.pick(8, 2))
    batch = transform.prepare(rows)
    seconds = bench.seconds(lambda: transform.compute(batch))
    bench.record("saliency per image", 1000 * seconds / len(rows), "ms")


# ------------------------------------------------------------------ score


def score(bench: Bench) -> None:
    """PickScores per second by precision and batch; what the CPU does before, by threads."""
    precisions: dict[str, tuple[DType, bool]] = {
        "float32": ("float32", False),
        "TF32": ("float32", True),
        "float16": ("float16", False),
    }
    if not bench.cuda:
        del precisions["float16"]  # of which CPUs are no judge
    for name, (dtype, fast) in precisions.items():
        for batch in (32, 128) if bench.size == "full" else (4,):
            variant = f"{name}, batch {batch}"
            bench.attempt(variant, partial(_scores, bench, batch, dtype, fast, variant))
    bench.attempt("prepare", lambda: _prepared(bench))


def _scores(bench: Bench, batch: int, dtype: DType, fast: bool, variant: str) -> None:
    transform = scorer(bench, batch, dtype=dtype)
    inputs = transform.prepare(rows_of(bench, batch))
    with tf32(fast):
        seconds = bench.seconds(lambda: transform.compute(inputs))
        bench.record("PickScores", batch / seconds, "1/s", variant=variant)
        bench.record_memory(lambda: transform.compute(inputs), variant=variant)


def _prepared(bench: Bench) -> None:
    """CPU time before the model, on several threads: one interpreter lock bounds them all."""
    count = bench.pick(64, 4)
    transform, rows = scorer(bench, 8), rows_of(bench, count)
    encoded = []
    for row in rows:
        file = io.BytesIO()
        row["chosen"].save(file, "JPEG", quality=90)
        encoded.append(file.getvalue())
    limits = ImageConfig(size=full.SIDE[bench.size])

    def prepare(i: int) -> None:
        crop = center_square(decode(encoded[i], limits), limits.size)
        transform.prepare([{**rows[i], "chosen": crop}])

    for threads in THREADS:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(prepare, range(min(count, threads))))
            began = bench.clock()
            list(pool.map(prepare, range(count)))
            each = (bench.clock() - began) / count
        variant = f"{threads} thread{'s' if threads > 1 else ''}"
        bench.record("CPU per image", 1000 * each, "ms", variant=variant)


# ------------------------------------------------------------------ lock


def lock(bench: Bench) -> None:
    """The device's share of the time, with CPU work ahead of it as the worker does, and in turn."""
    batch, rows = bench.pick(128, 2), bench.pick(1024, 8)
    bench.attempt("score", lambda: _shares(bench, "score", scorer(bench, batch), rows))
    batch, rows = bench.pick(8, 2), bench.pick(32, 8)
    bench.attempt(
        "inpaint",
        lambda: _shares(
            bench, "inpaint", inpainter(bench, batch, steps=bench.pick(STEPS, 1)), rows
        ),
    )


def _shares(bench: Bench, name: str, transform: Any, count: int) -> None:
    assert isinstance(transform, ModelTransform)
    rows, spans = rows_of(bench, count), []
    compute = transform.compute

    def logged(batch: Any) -> Any:
        bench.wait()
        began = time.perf_counter()
        found: list[Any] = []
        device = bench.once(lambda: found.append(compute(batch)))
        spans.append((began, time.perf_counter(), device))
        return found[0]

    size = transform.resources.batch
    logged(transform.prepare(rows[:size]))  # warm-up
    transform.compute = logged  # type: ignore[method-assign]
    spans.clear()
    for first in range(0, count, size):
        some = rows[first : first + size]
        transform.finish(some, transform.compute(transform.prepare(some)))
    _record_share(bench, name, "in turn", spans)
    spans.clear()
    device, helpers = Device(), ThreadPoolExecutor(HELPERS)
    half = count // 2
    with helpers, ThreadPoolExecutor(2) as threads:
        blocks = [
            threads.submit(
                in_batches, transform, some, device=partial(device.held, i), helpers=helpers
            )
            for i, some in enumerate((rows[:half], rows[half:]))
        ]
        busy = sum(block.result().busy for block in blocks)
    _record_share(bench, name, "ahead", spans)
    told = sum(end - began for began, end, _ in spans)
    bench.record(f"busy as reported / measured, {name}", busy / told, "", variant="ahead")


def _record_share(
    bench: Bench, name: str, variant: str, spans: list[tuple[float, float, float]]
) -> None:
    """Device time over the time from the first batch to the last."""
    whole = max(end for _, end, _ in spans) - min(began for began, _, _ in spans)
    held = sum(end - began for began, end, _ in spans)
    bench.record(f"device share, {name}", held / whole, "", variant=variant)
    if bench.cuda:
        device = sum(each for _, _, each in spans)
        bench.record(f"device share by events, {name}", device / whole, "", variant=variant)
