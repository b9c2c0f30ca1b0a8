"""Read the prompts of an evaluation set, with their categories, from a file or folder.

The layout is told by a file's suffix and columns, so the published sets are read as they are
published: PartiPrompts.tsv, DrawBench's CSV, GenEval's evaluation_metadata.jsonl, DPG-Bench's
folder of text files, Pick-a-Pic's Parquet, HPDv2's folder of one list a style; and anyone's own.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from raypref.core.config import InputError
from raypref.sources.layouts import giving
from raypref.sources.leftout import never_data
from raypref.sources.prompts import Prompt
from raypref.sources.reading import shown
from raypref.sources.store import SourceError, Store, locate


def read_prompts(path: str, *, limit: int | None) -> list[Prompt]:
    """The prompts of a set in file order, without blanks and repeats.

    A repeated prompt would weigh twice in a mean, so only its first place counts (three of the
    four HPDv2 style files hold repeats). Surrounding spaces are no part of a prompt.

    Args:
        path: a file with one prompt per line (`.txt`), or a column or key `prompt`, `Prompt` or
            `caption` (`.csv`, `.tsv`, `.jsonl`, `.json`, `.parquet`), and maybe `category`,
            `style`, `tag` or `challenge`, and `id`. A `.json` list may hold plain strings. Or a
            folder of such files: the part of their names in which they differ becomes the
            `style`, unless each is a text file of one line, whose name then is the prompt's id.
            Text is UTF-8. Local or on an object store.
        limit: take the first so many prompts after blanks and repeats are gone; None takes all.

    Raises:
        InputError: the path is missing, has an unknown suffix, cannot be parsed (the message names
            the line), lacks the column, or holds no prompt.
    """
    if "://" not in path and not Path(path).expanduser().exists():
        _must_be_known(path)
        raise InputError(f"evaluate.prompts: no prompt file '{path}'")
    store = locate(path, key="evaluate.prompts")
    listed = _folder(store) if store.only is None else _file(store, store.only)
    prompts = list(islice(_distinct(listed), limit))
    if not prompts:
        raise InputError(f"{path} holds no prompt")
    return prompts


def _distinct(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    seen: set[str] = set()
    for prompt in prompts:
        text = prompt.text.strip()
        if text and text not in seen:
            seen.add(text)
            yield prompt._replace(text=text)


def _folder(store: Store) -> list[Prompt]:
    names = (name for name in store.names("") if not never_data(name))
    files = sorted(name for name in names if _suffix(name) in _suffixes())
    sets = {file: [p for p in _file(store, file) if p.text.strip()] for file in files}
    stems = [posixpath.splitext(file)[0] for file in files]
    if files and all(_suffix(file) == ".txt" and len(sets[file]) <= 1 for file in files):
        return [
            p._replace(id=stem) for stem, own in zip(stems, sets.values(), strict=True) for p in own
        ]
    return [
        prompt if prompt.groups or len(files) == 1 else prompt._replace(groups={"style": style})
        for style, own in zip(_differences(stems), sets.values(), strict=True)
        for prompt in own
    ]


def _differences(stems: list[str]) -> list[str]:
    """Names without the words all begin with: `hpdv2_photo` among its like is `photo`."""
    words = [stem.split("_") for stem in stems]
    shared = 0
    while all(len(own) > shared + 1 for own in words) and len({own[shared] for own in words}) == 1:
        shared += 1
    return ["_".join(own[shared:]) for own in words]


def _file(store: Store, file: str) -> list[Prompt]:
    where = shown(store, file)
    _must_be_known(where)
    try:
        if store.size(file) is None:
            raise InputError(f"no prompt file '{where}'")
        listing = giving("prompts")[_suffixes()[_suffix(file)]].prompts
        assert listing is not None, "it is among those that give prompts"
        prompts = list(listing(store, file))
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text: {error}") from None
    except SourceError as error:
        outside = error.reason == "outside_root"
        said = "it is a link out of its folder" if outside else error.message
        raise InputError(f"{where} cannot be read: {said}") from None
    for number, prompt in enumerate(prompts, start=1):
        try:
            prompt.text.encode()
        except UnicodeEncodeError:  # JSON can hold what is no text
            text = ascii(prompt.text[:40])
            raise InputError(f"{where}: prompt {number} is not valid Unicode: {text}") from None
    return prompts


def _must_be_known(path: str) -> None:
    if _suffix(path) not in _suffixes():
        known = ", ".join(_suffixes())
        raise InputError(f"{path}: unknown kind of prompt file '{_suffix(path)}'; use {known}")


def _suffixes() -> dict[str, str]:
    """From the suffix of a file to the first layout of prompts that has it."""
    found: dict[str, str] = {}
    for name, layout in giving("prompts").items():
        for end in layout.suffixes:
            found.setdefault(end, name)
    return found


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1]
