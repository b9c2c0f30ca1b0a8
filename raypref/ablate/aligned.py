"""Models that others aligned, as rows of tables take them: a whole network, or a LoRA on the base.

A row says `copy = { "base.network" = "ablate.KEY" }`. Where the user gives a LoRA there, it is not
merged into the network: in half precision much of a small update would be lost. A row that
shows the model draws with it as one of `evaluate.loras`; a row that trains starts from it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypref.align import plan as align_plan
from raypref.core.config import InputError, replaced
from raypref.core.schemes import scheme_of
from raypref.evaluate.generate import BASE
from raypref.models.families.registry import family
from raypref.models.hub import file_names, hub_id
from raypref.models.lora_config import FILE_NAME
from raypref.models.lora_formats import PEFT_WEIGHTS

if TYPE_CHECKING:
    from raypref.ablate.table import Row
    from raypref.run.config import RunConfig

NETWORK = "base.network"
LARGEST_HEADER = 100_000_000  # bytes: safetensors' own limit


def with_lora(row: Row, changes: Mapping[str, Any], base: RunConfig) -> tuple[Row, dict[str, Any]]:
    """A row and its settings, with a LoRA that was given for the network where a LoRA belongs.

    Args:
        row: what the table says.
        changes: the row's settings that differ from the base's.
        base: the settings of the command.

    Raises:
        InputError: what was given is neither a network nor a LoRA; names the key.
    """
    key, ref = row.copy_.get(NETWORK, ""), changes.get(NETWORK, "")
    if not key or not is_lora(ref, component=family(base.base.family).component, key=key):
        return row, dict(changes)
    rest = {name: value for name, value in changes.items() if name != NETWORK}
    if row.model == BASE:
        name = key.rpartition(".")[2]
        shown = row.model_copy(update={"model": name})
        return shown, rest | {"evaluate.loras": {name: ref}}
    config = replaced(base, rest)
    trained = align_plan.in_order(config.trainings, config.train)
    first = align_plan.lineage(row.model or align_plan.final(trained), trained)[0]
    return row, rest | {f"train.{first}.start": ref}


def is_lora(ref: str, *, component: str, key: str) -> bool:
    """Whether an aligned model is a LoRA, told from names of files and tensors alone.

    A repository of the hub that can neither be asked nor is in the local cache is taken for a
    network: it is looked for again before any work.

    Args:
        ref: a folder, file, URI or hub id.
        component: of the base, `unet` or `transformer`.
        key: the setting it comes from, for the error.

    Raises:
        InputError: it is not there, or is neither a network of this kind nor a LoRA.
    """
    if scheme_of(ref):
        return False
    if "://" in ref:
        return True
    path, named = Path(ref).expanduser(), hub_id(ref)
    if path.is_file():
        _require_lora(path, key=key)
        return True
    if path.is_dir():
        if (path / "config.json").is_file():  # the network itself
            return False
        names = [name for name in _marks(component) if (path / name).is_file()]
        return _lora_among(names, ref, component=component, key=key)
    if named is None:
        raise InputError(f"{key}: no folder or file '{ref}', and it is not a hub id (OWNER/REPO)")
    if named.file:
        return True
    found = file_names(ref)
    return found is not None and _lora_among(found, ref, component=component, key=key)


def _marks(component: str) -> tuple[str, ...]:
    """The files that tell a network, which comes first, and LoRAs."""
    return f"{component}/config.json", FILE_NAME, PEFT_WEIGHTS


def _lora_among(names: Collection[str], ref: str, *, component: str, key: str) -> bool:
    network, *loras = _marks(component)
    if network in names:
        return False
    if any(name in names for name in loras):
        return True
    raise InputError(
        f"{key}: '{ref}' holds neither a network ({network}) nor a LoRA ({' or '.join(loras)})"
    )


def _require_lora(path: Path, *, key: str) -> None:
    """Raise InputError where a file is no safetensors file, or has no LoRA's tensors."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            names = [*json.loads(file.read(size))] if size <= LARGEST_HEADER else []
    except (ValueError, TypeError, RecursionError):
        names = []
    if not any("lora" in name for name in names):
        raise InputError(
            f"{key}: '{path}' is no safetensors file with the tensors of a LoRA; give a LoRA, or "
            "the folder of a whole network"
        )
