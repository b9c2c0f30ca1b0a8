"""The embedded checkpoints are remade by one command; here shortened to a few steps."""

import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from jobs import running
from raypref.demo import checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def shapes(folder: Path) -> dict[str, dict[str, tuple[int, ...]]]:
    return {
        str(path.relative_to(folder)): {k: tuple(v.shape) for k, v in load_file(path).items()}
        for path in sorted(folder.rglob("*.safetensors"))
    }


def remake(folder: Path, name: str, *arguments: str) -> None:
    """Run the command, shortened."""
    command = (sys.executable, "-m", "raypref.demo.train", str(folder / name), "--scale", "0.002")
    env = {"RAYPREF_CACHE": str(folder / "cache")}
    with running(*command, *arguments, folder=folder / "logs", env=env) as training:
        assert training.wait() == 0, training.output


def test_the_command_makes_what_is_shipped(tmp_path: Path) -> None:
    remake(tmp_path, "made")
    made = {k: v for k, v in shapes(tmp_path / "made").items() if not k.startswith("vae/")}
    assert made == shapes(checkpoints.WEIGHTS)
    others = {p.relative_to(checkpoints.WEIGHTS) for p in checkpoints.WEIGHTS.rglob("*.json")}
    assert all((tmp_path / "made" / path).is_file() for path in others)

    # On one kind of processor: to the byte.
    remake(tmp_path, "again", "--only", "critic")
    again, made = (tmp_path / name / "critic.safetensors" for name in ("again", "made"))
    assert again.read_bytes() == made.read_bytes()
