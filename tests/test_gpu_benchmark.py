"""What `benchmarks/gpu.py` writes: failures, deadline, predictions, shares.

Its sections run in slow/test_gpu_benchmark_whole.py.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu
import pytest
import torch
from gpu_sections.bench import Bench, busy_share, launched, table
from gpu_sections.predictions import ON_H100


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def bench_of(out: Path, models: Path, *, seconds: float = 300) -> Bench:
    deadline = time.monotonic() + seconds
    return Bench(torch.device("cpu"), "small", out, models, deadline)


def written(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


# Figures that a section must write.
NAMES = {
    "env": {"torch", "copy", "matrix product"},
    "build": {"free disk", "written"},
    "check": {"equal bits, watched late and at once"},
    "train": {"forward at 2", "dpo, 256 samples", "dro, 256 samples"},
    "inpaint": {
        *("UNet per twin", "CPU per twin", "device time per twin"),
        "saliency per image",
    },
    "evaluate": {"device time per image", "from LoRA to LoRA and to the base"},
    "score": {"PickScores"},
    "lock": {"device share, score", "busy as reported / measured, score"},
    "sd35": {"forward at 2", "dro, 256 samples", "dpo, 256 samples"},
}


def test_a_section_that_fails_does_not_end_the_others(tmp_path: Path, models: Path) -> None:
    def breaks(bench: Bench) -> None:
        bench.record("before", 1.0, "s")
        raise RuntimeError("CUDA error: no kernel image")

    def partly(bench: Bench) -> None:
        def too_large() -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        bench.attempt("wrong", lambda: 1 / 0)
        bench.attempt("large", too_large)
        bench.attempt("right", lambda: bench.record("after", 2.0, "s", variant="right"))

    bench = bench_of(tmp_path, models)
    gpu.run(bench, ["a", "b"], {"a": breaks, "b": partly})
    told = {
        (one["section"], one["variant"], one["name"]): one["value"] for one in written(tmp_path)
    }
    assert told["a", "", "before"] == 1.0
    assert told["a", "", "failed"] == "failed: RuntimeError: CUDA error: no kernel image"
    assert told["b", "wrong", "failed"] == "failed: ZeroDivisionError: division by zero"
    assert told["b", "large", "does not fit"] == "out of memory"
    assert told["b", "right", "after"] == 2.0
    assert "| b | after | right |  | 2 | s |" in table(bench.figures)


def test_nothing_is_begun_after_the_deadline(tmp_path: Path, models: Path) -> None:
    bench = bench_of(tmp_path, models, seconds=60)

    def late(bench: Bench) -> None:
        bench.deadline = time.monotonic() - 1
        bench.attempt("more", lambda: bench.record("more", 1.0, "s"))

    gpu.run(bench, ["a", "b"], {"a": late, "b": late})
    told = [(one["section"], one["variant"], one["name"]) for one in written(tmp_path)]
    assert told == [("a", "more", "not begun"), ("a", "", "whole section"), ("b", "", "not begun")]


def test_predictions_stand_beside_figures_of_the_full_size_on_a_gpu(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    bench = Bench(torch.device("cuda"), "full", tmp_path, models, time.monotonic() + 1, "train")
    bench.record("forward at 16", 70.0, "ms", variant="autocast")
    assert bench.figures[0]["prediction"] == ON_H100["train", "forward at 16", "autocast"] == 67
    assert "| train | forward at 16 | autocast | 67 | 70 | ms |" in table(bench.figures)


def test_kernels_and_copies_are_told_from_a_profile() -> None:
    def event(name: str, start: float, end: float, **more: Any) -> Any:
        known = {"device_type": torch.autograd.DeviceType.CUDA, "is_user_annotation": False}
        return SimpleNamespace(
            name=name, time_range=SimpleNamespace(start=start, end=end), **known | more
        )

    events = [
        event("aten::mm", 0, 9, device_type=torch.autograd.DeviceType.CPU),
        event("Optimizer.step#AdamW.step", 0, 90, is_user_annotation=True),
        event("Memcpy HtoD (Pageable -> Device)", 1, 2),
        event("Memcpy DtoD (Device -> Device)", 2, 3),
        event("Memset (Device)", 3, 4),
        event("sm90_xmma_gemm_bf16", 4, 8),
    ]
    kernels, copies, spans = launched(events)
    assert (kernels, copies) == (1, 1)
    assert busy_share(spans) == 1.0 and len(spans) == 4


def test_the_busy_share_counts_overlapping_kernels_once() -> None:
    assert busy_share([(0.0, 4.0), (2.0, 5.0), (8.0, 10.0), (8.5, 9.0)]) == pytest.approx(0.7)


def test_a_machine_without_a_gpu_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not torch.cuda.is_available()
    assert gpu.main(["env", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("no usable GPU: torch ")
