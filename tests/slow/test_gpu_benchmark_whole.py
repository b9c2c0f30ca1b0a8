"""The whole of `benchmarks/gpu.py` on a CPU, without the libraries that a GPU machine may lack."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gpu
import pytest
from test_gpu_benchmark import NAMES

ROOT = Path(__file__).parents[2]
# Libraries that a GPU machine may lack: all that the wheels for it do not bring.
ABSENT = ["ray", "mlflow", "imagehash", "pywt", "pandas", "scipy", "optuna", "matplotlib"]
ABSENT += ["jinja2", "sklearn", "datasets", "boto3", "moto", "torchvision"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_all_sections_run_to_their_end_without_ray(tmp_path: Path) -> None:
    code = f"import sys; sys.modules |= dict.fromkeys({ABSENT}); import gpu\n"
    code += "sys.exit(gpu.main(sys.argv[1:]))"
    # On a slow machine 120 s may end it early; what this holds is that all of it works.
    words = ["all", "--device", "cpu", "--size", "small", "--seconds", "600"]
    folders = ["--out", str(tmp_path), "--models", str(tmp_path / "models")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, *folders],
        cwd=ROOT / "benchmarks",
        env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    figures = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {one["section"] for one in figures if one["name"] == "whole section"} == {*gpu.SECTIONS}
    assert not [one for one in figures if one["name"] in ("failed", "not begun", "does not fit")]
    for section, names in NAMES.items():
        assert {one["name"] for one in figures if one["section"] == section} >= names, section
    for one in figures:
        assert one["size"] == "small" and one["commit"]
        counted = one["name"].startswith("counted")
        assert counted or one["prediction"] is None, "predictions are of the full size on a GPU"
        assert isinstance(one["value"], str) or one["value"] >= 0
    told = {(one["section"], one["name"], one["variant"]): one["value"] for one in figures}
    # On one device the comparison with itself is exact, and bits repeat.
    assert told["check", "loss off the CPU's / error, dro", "float32"] == 0
    assert told["check", "equal bits, resumed", "default"] == 1
    assert told["compile", "graphs, learner and policy", "blocks"] > 1
