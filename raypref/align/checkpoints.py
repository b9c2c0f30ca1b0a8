"""Training checkpoints: one safetensors file each, whole or absent, no pickle."""

from __future__ import annotations

from collections.abc import Mapping

from pyarrow import fs as pafs
from torch import Tensor

from raypref.core.ledger import filesystem, join
from raypref.models.tensor_files import read_tensors, write_tensors

KEEP = 2


def write(folder: str, step: int, tensors: Mapping[str, Tensor]) -> None:
    """Write the state after `step` optimizer steps and drop all but the last two."""
    write_tensors(join(folder, f"step-{step:08d}.safetensors"), tensors)
    fs, _ = filesystem(folder)
    for path in _files(folder)[:-KEEP]:
        fs.delete_file(path)


def latest(folder: str) -> tuple[int, dict[str, Tensor]] | None:
    """The last state written and its step, or None."""
    name = newest(folder)
    if name is None:
        return None
    found = read_tensors(join(folder, name))
    assert found is not None
    return int(name.removeprefix("step-").removesuffix(".safetensors")), found


def clear(folder: str) -> None:
    """Remove all states."""
    fs, _ = filesystem(folder)
    for path in _files(folder):
        fs.delete_file(path)


def newest(folder: str) -> str | None:
    """The name of the last file written, or None."""
    files = _files(folder)
    return files[-1].rsplit("/", 1)[-1] if files else None


def _files(folder: str) -> list[str]:
    fs, root = filesystem(folder)
    found = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    return sorted(f.path for f in found if f.base_name.startswith("step-"))
