"""The embedded checkpoints are remade by one command; here shortened to a few steps."""

import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from jobs import running
from raypref.demo import checkpoints, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def shapes(folder: Path) -> dict[str, dict[str, tuple[int, ...]]]:
    return {
        str(path.relative_to(folder)): {k: tuple(v.shape) for k, v in load_file(path).items()}
        for path in sorted(folder.rglob("*.safetensors"))
    }


def test_the_command_makes_what_is_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shortened = ("--scale", "0.002")
    command = (sys.executable, "-m", "raypref.demo.train", str(tmp_path / "made"), *shortened)
    env = {"RAYPREF_CACHE": str(tmp_path / "cache")}
    with running(*command, folder=tmp_path / "logs", env=env) as training:
        assert training.wait() == 0, training.output
    made = {k: v for k, v in shapes(tmp_path / "made").items() if not k.startswith("vae/")}
    assert made == shapes(checkpoints.WEIGHTS)
    others = {p.relative_to(checkpoints.WEIGHTS) for p in checkpoints.WEIGHTS.rglob("*.json")}
    assert all((tmp_path / "made" / path).is_file() for path in others)

    # On one kind of processor: to the byte.
    again = ["train", str(tmp_path / "again"), *shortened, "--only", "critic"]
    monkeypatch.setattr(sys, "argv", again)
    train.remake()
    critics = [(tmp_path / name / "critic.safetensors").read_bytes() for name in ("again", "made")]
    assert critics[0] == critics[1]
