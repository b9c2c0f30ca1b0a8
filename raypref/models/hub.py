"""Where models come from: a local path, the model hub, or the embedded tiny set; and clear errors.

A model reference in the configuration is one of

* a local folder or file,
* a hub id, `OWNER/REPO` (a folder) or `OWNER/REPO/FILE` (one weight file),
* `tiny:NAME`, one of the small checkpoints that come with the package (`raypref/demo`).

A hub id may name a branch, tag or commit: `OWNER/REPO@REVISION`, `OWNER/REPO@REVISION/FILE`. A
slash in a revision is written `%2F`. Without a revision it is the head of the main branch. A
process asks once which commit that is and loads everything from that commit.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from raypref.core.config import InputError
from raypref.core.messages import first_line
from raypref.core.schemes import scheme_of

COMMITS = "RAYPREF_COMMITS"  # variable by which workers know the commits that their driver found
# transformers and diffusers replace functions of torch, and their own, while they load a model; two
# threads that load at once can leave them replaced, and later models without some of their weights.
_LOADING = threading.RLock()
LOCAL = "local"  # stands for a commit where a reference is no hub id

_ID = re.compile(r"([^/@]+/[^/@]+)(?:@([^/@]+))?(?:/(.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_found: dict[str, str] = {}  # every reference that was looked for with success -> commit or LOCAL


class HubId(NamedTuple):
    """A repository of the hub, or a file in it."""

    repo: str  # OWNER/REPO
    revision: str  # branch, tag or commit; empty for the head of the main branch
    file: str  # path in the repository; empty for all of it

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


def hub_id(ref: str) -> HubId | None:
    """A reference that has the form of a hub id, in its parts; None for another one."""
    parts = None if ref.startswith(("/", ".", "~")) else _ID.fullmatch(ref)
    return parts and HubId(parts[1], unquote(parts[2] or ""), parts[3] or "")


def file_address(named: HubId) -> str:
    """The address of a file of the hub, as diffusers' `from_single_file` takes it."""
    return f"https://huggingface.co/{named.repo}/blob/{named.revision or 'main'}/{named.file}"


def model_folder(ref: str, *, key: str, probe: str) -> str:
    """What to hand to `from_pretrained` below: a local folder, or `OWNER/REPO@COMMIT`.

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
        _found[ref] = LOCAL
        return str(path)
    named = hub_id(ref)
    if named is None or named.file:
        raise InputError(f"{key}: no model folder '{ref}', and it is not a hub id (OWNER/REPO)")
    _download(named, probe, key=key, fix=f"'{_command(named)}' and set {key}=/path/to/the/folder")
    _found[ref] = _commit(named.repo, named.revision)
    return f"{named.repo}@{_found[ref]}"


def from_pretrained(kind: Any, source: str | None, **options: Any) -> Any:
    """`kind.from_pretrained`, of diffusers or transformers, of what `model_folder` returned.

    One thread of a process loads at a time.

    Args:
        kind: a class that has it.
        source: a local folder, `OWNER/REPO@COMMIT`, or None where the options hold all.
        **options: handed on.
    """
    named = None if source is None or Path(source).is_dir() else hub_id(source)
    with _LOADING:
        if named is None:
            return kind.from_pretrained(source, **options)
        return kind.from_pretrained(named.repo, revision=named.revision, **options)


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
    named = None if Path(folder).is_dir() else hub_id(folder)
    if named is not None:
        path = _download(named, name, key=key, fix=f"'{_command(named)}'")
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
        _found[ref] = LOCAL
        return path
    named = hub_id(ref)
    if named is None or not named.file:
        raise InputError(
            f"{key}: the file '{ref}' is missing; get it from {origin} and set {key}=/path/to/it"
        )
    file = _download(named, named.file, key=key, fix=f"{origin} and set {key}=/path/to/it")
    _found[ref] = _commit(named.repo, named.revision)
    return file


def first_file(ref: str, names: Sequence[str], *, key: str) -> Path:
    """The local path of the first of several files that a hub repository has.

    Args:
        ref: a hub id; its own file is not looked at.
        names: paths in the repository, the preferred first.
        key: the configuration key it came from, for the error.

    Raises:
        InputError: it is no hub id, has none of them, or cannot be asked.
    """
    named = hub_id(ref)
    if named is None:
        raise InputError(f"{key}: no folder or file '{ref}', and it is not a hub id (OWNER/REPO)")
    held = (file for name in names[:-1] if isinstance(file := _fetch(*named[:2], name), Path))
    fix = f"'{_command(named)}' and set {key}=/path/to/the/folder"
    file = next(held, None) or _download(named, names[-1], key=key, fix=fix)
    _found[ref] = _commit(named.repo, named.revision)
    return file


@cache
def file_names(ref: str) -> frozenset[str] | None:
    """Names of the files of a repository: the hub's word, else those in the local cache.

    Args:
        ref: a hub id.

    Returns:
        Paths in the repository; None where the hub cannot be asked and nothing is in the cache.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    named = hub_id(ref)
    if named is None:
        return None
    try:
        info = HfApi().model_info(named.repo, revision=named.revision or None, timeout=10)
        return frozenset(sibling.rfilename for sibling in info.siblings or ())
    except Exception:  # the hub's HTTP client has errors of its own, by version
        pass
    try:
        commit = _commit(named.repo, named.revision)
    except Exception:  # as above
        return None
    cached = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=named.repo, repo_type="model"))
    root = cached / "snapshots" / commit
    files = frozenset(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    return files or None


def commits(refs: Iterable[object]) -> dict[str, str]:
    """The commits of those among some settings that this process has found as models.

    Returns:
        Reference to commit, or to `LOCAL`.
    """
    return {ref: _found[ref] for ref in refs if isinstance(ref, str) and ref in _found}


def moved_heads(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """A line for each reference that stands for another commit than before."""
    lines = []
    for ref, new in now.items():
        old, named = before.get(ref, new), hub_id(ref)
        if named is not None and old != new and LOCAL not in (old, new):
            kept = f"{named.repo}@{old}{f'/{named.file}' if named.file else ''}"
            lines.append(f"{ref} is now commit {new} and was {old} in this folder; {kept} keeps it")
    return lines


def tell_workers() -> None:
    """Let processes that inherit this one's variables load what this one found.

    A head that moves during a run would otherwise be another model for a worker that starts later.
    """
    known = {ref: commit for ref, commit in _found.items() if commit != LOCAL}
    told = {str(hub_id(ref)): commit for ref, commit in known.items()}
    os.environ[COMMITS] = json.dumps(_told() | told)


def _told() -> dict[str, str]:
    told: dict[str, str] = json.loads(os.environ.get(COMMITS, "{}"))
    return told


def _on_disk(ref: str, *, key: str) -> Path:
    """Where the reference would be on disk, were it no hub id; builds it when it is embedded."""
    embedded = scheme_of(ref)
    if embedded is None:
        return Path(ref).expanduser()
    scheme, name = embedded
    try:
        path: Path = scheme.model(name)
        return path
    except InputError as error:
        raise InputError(f"{key}: {error}") from None


def _command(named: HubId) -> str:
    """What downloads all of a repository."""
    revision = f" --revision {named.revision}" if named.revision else ""
    return f"hf download {named.repo}{revision}"


def _download(named: HubId, name: str, *, key: str, fix: str) -> Path:
    found = _fetch(named.repo, named.revision, name)
    if isinstance(found, Path):
        return found
    raise InputError(
        f"{key}: {name} of '{named}' is missing: it is not in the local cache and could not be "
        f"fetched from the model hub ({found}). On a machine with network: {fix}"
    )


@cache
def _fetch(repo: str, revision: str, name: str) -> Path | str:
    """The file, or why it cannot be had. Asked once: several steps need the same model."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        commit = _commit(repo, revision)
        cached = try_to_load_from_cache(repo, name, revision=commit)
        if isinstance(cached, str):
            return Path(cached)
        # By name where that is possible: the cache then knows the name without network.
        told = str(HubId(repo, revision, "")) in _told()
        return Path(hf_hub_download(repo, name, revision=commit if told else revision or None))
    except Exception as error:  # the hub's HTTP client has errors of its own, by version
        return first_line(error)


@cache
def _commit(repo: str, revision: str) -> str:
    """The commit that a revision is: the driver's word, else the hub's, else the local cache's."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    if _COMMIT.fullmatch(revision):
        return revision
    if told := _told().get(str(HubId(repo, revision, ""))):
        return told
    try:
        # One quick question first: a download tries again and again for half a minute.
        return str(HfApi().model_info(repo, revision=revision or None, timeout=10).sha)
    except Exception:  # as above; offline, this is raised at once
        folder = repo_folder_name(repo_id=repo, repo_type="model")
        ref = Path(constants.HF_HUB_CACHE, folder, "refs", revision or "main")
        if not ref.is_file():
            raise
        return ref.read_text().strip()
