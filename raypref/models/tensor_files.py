"""Safetensors files of any size: written portion by portion, since a copy may not fit the host."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow import fs as pafs

from raypref.core.ledger import filesystem, read_bytes, write_chunks

if TYPE_CHECKING:
    from torch import Tensor

PORTION = 2**26  # values that are on their way to the file at a time
DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.bfloat16": "BF16",
    "torch.float16": "F16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}


def write_tensors(path: str, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as a safetensors file that appears only when it is whole.

    Args:
        path: local or URI.
        tensors: by name, on any device.

    Raises:
        NoRoomError: the disk is full; nothing is left of the attempt.
    """
    # The widest first, as the library writes them: each then begins at a multiple of its width.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        shape = [*tensor.shape]
        header[name] = {
            "dtype": DTYPES[str(tensor.dtype)],
            "shape": shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    begun = len(text).to_bytes(8, "little") + text
    write_chunks(path, len(begun) + end, _chunks(begun, [tensor for _, tensor in ordered]))


def read_tensors(path: str) -> dict[str, Tensor] | None:
    """The tensors of a safetensors file by name, on the host; None where there is no such file.

    A local file is mapped, not copied: processes that read the same one share it.

    Args:
        path: local or URI.
    """
    from safetensors.torch import load, load_file

    fs, inside = filesystem(path)
    if isinstance(fs, pafs.LocalFileSystem):
        return load_file(inside) if Path(inside).is_file() else None
    data = read_bytes(path)
    return None if data is None else load(data)


def _chunks(begun: bytes, tensors: list[Tensor]) -> Iterator[Any]:
    """What is written, one after another."""
    import torch

    yield begun
    for tensor in tensors:
        for part in tensor.detach().contiguous().reshape(-1).split(PORTION):
            yield part.cpu().contiguous().view(torch.uint8).numpy()


def types_of(file: Path) -> set[str]:
    """Safetensors' names for the types of the tensors in a local file, as `F32`; none if broken."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            return {opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118
    except SafetensorError:  # whoever loads it says so
        return set()
