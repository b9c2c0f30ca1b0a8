"""Files of tensors that are written in portions are what the safetensors library reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from raypref.models import tensor_files
from raypref.models.tensor_files import DTYPES, write_tensors


@pytest.mark.parametrize("portion", [5, 2**20])
def test_the_library_reads_what_was_written(
    portion: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "PORTION", portion)
    tensors = {
        f"{name}.{shape}": (torch.randn(shape) * 3).to(getattr(torch, name.removeprefix("torch.")))
        for name in DTYPES
        for shape in ((), (3,), (2, 0), (4, 3, 2, 5))
    }
    tensors["images"] = torch.randn(4, 3, 2, 5).to(memory_format=torch.channels_last)
    tensors["view"] = torch.arange(24.0).view(4, 6).T
    tensors["learned"] = torch.nn.Parameter(torch.randn(7))
    path = tmp_path / "of.safetensors"
    write_tensors(str(path), tensors)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, value in found.items():
        assert value.dtype == tensors[name].dtype and torch.equal(value, tensors[name]), name
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert [each.name for each in tmp_path.iterdir()] == ["of.safetensors"]
