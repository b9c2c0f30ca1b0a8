"""Where models come from: a local path, the model hub, or the embedded tiny set; and clear errors.

A model reference in the configuration is one of

* a local folder or file,
* a hub id, `OWNER/REPO` (a folder) or `OWNER/REPO/FILE` (one weight file),
* `tiny:NAME`, one of the small checkpoints that come with the package (`raypref/tiny`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from raypref.config import InputError
from raypref.messages import first_line
from raypref.tiny import checkpoints


def model_folder(ref: str, *, key: str, probe: str) -> str:
    """What to hand to `from_pretrained`: a local folder, or the hub id itself.

    Args:
        ref: the reference from the configuration.
        key: the configuration key it came from, for the error.
        probe: a small file every such model has (`model_index.json`, `config.json`); fetched now,
            so that a missing model fails before any work is done.

    Raises:
        InputError: the model is not on disk and cannot be fetched.
    """
    path = _on_disk(ref, key=key)
    if path.is_dir():
        if not (path / probe).is_file():
            raise InputError(f"{key}: the folder '{ref}' has no {probe}; is it a model folder?")
        return str(path)
    if path.is_absolute() or ref.startswith((".", "~")) or ref.count("/") != 1:
        raise InputError(f"{key}: no model folder '{ref}', and it is not a hub id (OWNER/REPO)")
    _download(ref, probe, key=key, fix=f"'hf download {ref}' and set {key}=/path/to/the/folder")
    return ref


def read_json(folder: str, name: str, *, key: str) -> dict[str, Any]:
    """A configuration file of a model.

    Args:
        folder: what `model_folder` returned.
        name: path of the file in it.
        key: the configuration key it came from, for the error.

    Raises:
        InputError: the file is not there, or holds no JSON object.
    """
    path = Path(folder) / name
    if not Path(folder).is_dir():
        path = _download(folder, name, key=key, fix=f"'hf download {folder}'")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{key}: no readable {name} in '{folder}' ({first_line(error)})") from None
    if not isinstance(found, dict):
        raise InputError(f"{key}: {name} in '{folder}' is no JSON object")
    return found


def weight_file(ref: str, *, key: str, origin: str) -> Path:
    """The local path of one weight file.

    Args:
        ref: a local file, `OWNER/REPO/FILE` on the hub, or `tiny:NAME`.
        key: the configuration key it came from, for the error.
        origin: where a person gets the file, for the error.

    Raises:
        InputError: the file is not on disk and cannot be fetched.
    """
    path = _on_disk(ref, key=key)
    if path.is_file():
        return path
    if path.is_absolute() or ref.startswith((".", "~")) or ref.count("/") != 2:
        raise InputError(
            f"{key}: the file '{ref}' is missing; get it from {origin} and set {key}=/path/to/it"
        )
    owner, repo, name = ref.split("/")
    return _download(f"{owner}/{repo}", name, key=key, fix=f"{origin} and set {key}=/path/to/it")


def first_file(repo: str, names: Sequence[str], *, key: str) -> Path:
    """The local path of the first of several files that a hub repository has.

    Args:
        repo: OWNER/REPO.
        names: paths in the repository, the preferred first.
        key: the configuration key it came from, for the error.

    Raises:
        InputError: it has none of them, or cannot be asked.
    """
    for name in names[:-1]:
        found = _fetch(repo, name)
        if isinstance(found, Path):
            return found
    fix = f"'hf download {repo}' and set {key}=/path/to/the/folder"
    return _download(repo, names[-1], key=key, fix=fix)


def _on_disk(ref: str, *, key: str) -> Path:
    """Where the reference would be on disk, were it no hub id; builds it when it is embedded."""
    if not ref.startswith("tiny:"):
        return Path(ref).expanduser()
    try:
        return checkpoints.path(ref.removeprefix("tiny:"))
    except InputError as error:
        raise InputError(f"{key}: {error}") from None


def _download(repo: str, name: str, *, key: str, fix: str) -> Path:
    found = _fetch(repo, name)
    if isinstance(found, Path):
        return found
    raise InputError(
        f"{key}: {name} of '{repo}' is missing: not in the local cache, and the model hub did not "
        f"give it ({found}). On a machine with network: {fix}"
    )


@cache
def _fetch(repo: str, name: str) -> Path | str:
    """The file, or why it cannot be had. Asked once: several steps need the same model."""
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(repo, name)
        if isinstance(cached, str):
            return Path(cached)
        # One quick question first: a download tries again and again for half a minute.
        HfApi().model_info(repo, timeout=10)
        return Path(hf_hub_download(repo, name))
    except Exception as error:  # the hub's HTTP client has errors of its own, by version
        return first_line(error)
