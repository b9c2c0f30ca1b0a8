"""What the sections measure with: figures written at once, times, memory, profiles, variants."""

from __future__ import annotations

import gc
import json
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import full
import torch
from torch.profiler import ProfilerActivity, profile

from gpu_sections.predictions import predicted
from raypref.core.messages import first_line
from raypref.core.versions import commit

WARM_UPS, ROUNDS = 2, 5
ON_CPU = 1  # warm-ups and rounds on a CPU, where only the code is tried
SHOWN = 15  # operations of a profile
GIB = 2**30


@dataclass
class Bench:
    """One call of gpu.py.

    Args:
        device: what is measured.
        size: of the models, `full` or `small`.
        out: folder of `results.jsonl` and of the profiles.
        models: folder of the models, written on first use.
        deadline: of `time.monotonic()`; nothing new is begun after it.
    """

    device: torch.device
    size: full.Size
    out: Path
    models: Path
    deadline: float
    section: str = ""
    figures: list[dict[str, Any]] = field(default_factory=list)
    commit: str = field(default_factory=lambda: commit() or "unknown")

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def num_gpus(self) -> float:
        """What a transform's resources ask for."""
        return 1.0 if self.cuda else 0.0

    def pick(self, full_size: int, small: int) -> int:
        """A count by the size of the models."""
        return full_size if self.size == "full" else small

    def model(self, name: str) -> str:
        """The folder (U2-Net: the file) of a model of `full.DTYPES`."""
        return full.model(name, self.size, under=self.models, device=self.device)

    # ------------------------------------------------------------------ figures

    def record(self, name: str, value: float | str, unit: str, *, variant: str = "") -> None:
        """Write a figure to `results.jsonl` and print it.

        Args:
            name: what was measured.
            value: a number, or a word such as `failed`.
            unit: of the number.
            variant: what was changed, or empty.
        """
        expected = predicted(self.section, name, variant, size=self.size, cuda=self.cuda)
        figure = {
            "section": self.section,
            "name": name,
            "value": value,
            "unit": unit,
            "prediction": expected,
            "variant": variant,
            "size": self.size,
            "card": torch.cuda.get_device_name(self.device) if self.cuda else platform.machine(),
            "torch": torch.__version__,
            "commit": self.commit,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        self.figures.append(figure)
        with (self.out / "results.jsonl").open("a", encoding="utf-8") as results:
            results.write(json.dumps(figure) + "\n")
        told = f"  {name}{f' [{variant}]' if variant else ''}: {shown(value)} {unit}".rstrip()
        print(
            told + (f" (predicted {shown(expected)})" if expected is not None else ""), flush=True
        )

    def attempt(self, variant: str, measure: Callable[[], object]) -> None:
        """Measure a variant, if there is time; record what keeps it from being measured.

        A variant that fails does not end the others: time on a card is short.
        """
        if time.monotonic() > self.deadline:
            self.record("not begun", "out of time", "", variant=variant)
            return
        try:
            measure()
        except torch.OutOfMemoryError:
            self.record("does not fit", "out of memory", "", variant=variant)
        except Exception as error:
            self.fail(error, variant=variant)
        self.clear()

    def fail(self, error: Exception, *, variant: str = "") -> None:
        """Record a failure; the traceback goes to stderr."""
        traceback.print_exception(error, file=sys.stderr)
        self.record("failed", f"failed: {first_line(error)}", "", variant=variant)

    def each(self, variants: Mapping[str, Callable[[], object]]) -> None:
        """Attempt several variants in turn."""
        for variant, measure in variants.items():
            self.attempt(variant, measure)

    def clear(self) -> None:
        """Give memory back: variants load models of their own."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    # ------------------------------------------------------------------ time and memory

    def clock(self) -> float:
        """Seconds: of the wall beside a GPU, of this process on a CPU that others use too."""
        return time.perf_counter() if self.cuda else time.process_time()

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], object], *, rounds: int = ROUNDS) -> float:
        """Median time of a call after warm-ups: of CUDA events, or of the process on a CPU."""
        for _ in range(WARM_UPS if self.cuda else ON_CPU):
            call()
        times = [self.once(call) for _ in range(rounds if self.cuda else ON_CPU)]
        return statistics.median(times)

    def once(self, call: Callable[[], object]) -> float:
        """Time of one call, without warm-up."""
        if not self.cuda:
            began = time.process_time()
            call()
            return time.process_time() - began
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    def peak(self, call: Callable[[], object]) -> tuple[float, float]:
        """Most GiB that tensors took during a call, and most that torch held; 0 on a CPU."""
        if not self.cuda:
            call()
            return 0.0, 0.0
        self.clear()
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        self.wait()
        allocated = torch.cuda.max_memory_allocated(self.device)
        return allocated / GIB, torch.cuda.max_memory_reserved(self.device) / GIB

    def record_memory(self, call: Callable[[], object], *, variant: str = "") -> None:
        """Record the peaks of a call, on a GPU."""
        allocated, reserved = self.peak(call)
        if self.cuda:
            self.record("peak memory, allocated", allocated, "GiB", variant=variant)
            self.record("peak memory, reserved", reserved, "GiB", variant=variant)

    # ------------------------------------------------------------------ profiles

    def record_profile(self, name: str, call: Callable[[], object], *, variant: str = "") -> None:
        """Record kernels, copies and the GPU's busy share of a call; its top operations in a file.

        On a CPU only the file is written.
        """
        call()
        self.wait()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
        with profile(activities=activities) as profiled:
            call()
            self.wait()
        column = f"self_{'device' if self.cuda else 'cpu'}_time_total"
        table = profiled.key_averages().table(sort_by=column, row_limit=SHOWN)
        words = [word for word in (self.section, name, variant) if word]
        file = "-".join("".join(c if c.isalnum() else "_" for c in word) for word in words)
        (self.out / f"profile-{file}.txt").write_text(table, encoding="utf-8")
        if not self.cuda:
            return
        seen = launched(profiled.events() or ())
        self.record(f"kernels, {name}", seen.kernels, "", variant=variant)
        self.record(f"host-to-device copies, {name}", seen.copies, "", variant=variant)
        if seen.spans:
            self.record(f"GPU busy, {name}", busy_share(seen.spans), "", variant=variant)


class Launched(NamedTuple):
    """What a GPU did during a profile."""

    kernels: int
    copies: int  # from the host to the device
    spans: list[tuple[float, float]]  # begin and end of each, microseconds


def launched(events: Iterable[Any]) -> Launched:
    """What a GPU did, from a profile's events."""
    kernels = copies = 0
    spans: list[tuple[float, float]] = []
    for event in events:
        # Marks such as an optimizer's step also cover the time between kernels.
        if event.device_type != torch.autograd.DeviceType.CUDA or event.is_user_annotation:
            continue
        spans.append((event.time_range.start, event.time_range.end))
        copies += event.name.startswith("Memcpy HtoD")
        kernels += not event.name.startswith(("Memcpy", "Memset"))
    return Launched(kernels, copies, spans)


def busy_share(spans: list[tuple[float, float]]) -> float:
    """Share of the time from the first begin to the last end that any span covers."""
    covered, reached = 0.0, min(start for start, _ in spans)
    first = reached
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered / (reached - first) if reached > first else 1.0


def shown(value: float | str | None) -> str:
    """A figure in a few digits."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def table(figures: list[dict[str, Any]]) -> str:
    """Prediction beside measurement, as Markdown."""
    lines = [
        "| section | figure | variant | predicted | measured | unit |",
        "|---|---|---|---|---|---|",
    ]
    for one in figures:
        cells = (
            one["section"],
            one["name"],
            one["variant"],
            shown(one["prediction"]),
            shown(one["value"]),
            one["unit"],
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
