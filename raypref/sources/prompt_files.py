"""Read prompts, with their categories, from a file or folder.

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
    listed = (prompt for _, prompt in prompts_in(locate(path, key="evaluate.prompts")))
    prompts = list(islice(_distinct(listed), limit))
    if not prompts:
        raise InputError(f"{path} holds no prompt")
    return prompts


def prompts_in(store: Store) -> list[tuple[str, Prompt]]:
    """All prompts of a store in order, blanks and repeats too, each with where it stands.

    Args:
        store: a file, or a folder of files, in a layout that `read_prompts` names.

    Returns:
        Pairs of `FILE#NUMBER`, unique, and the prompt as it is written; numbers count from 1.

    Raises:
        InputError: as `read_prompts`, but for a store without prompts.
    """
    files = _folder(store) if store.only is None else {store.only: _file(store, store.only)}
    return [
        (f"{file}#{number:09d}", prompt)
        for file, own in files.items()
        for number, prompt in enumerate(own, start=1)
    ]


def _distinct(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    seen: set[str] = set()
    for prompt in prompts:
        text = prompt.text.strip()
        if text and text not in seen:
            seen.add(text)
            yield prompt._replace(text=text)


def _folder(store: Store) -> dict[str, list[Prompt]]:
    names = (name for name in store.names("") if not never_data(name))
    files = sorted(name for name in names if _suffix(name) in _suffixes())
    sets = {file: _file(store, file) for file in files}
    stems = [posixpath.splitext(file)[0] for file in files]
    written = [sum(1 for prompt in own if prompt.text.strip()) for own in sets.values()]
    if files and all(_suffix(file) == ".txt" for file in files) and max(written) <= 1:
        return {
            file: [prompt._replace(id=stem) for prompt in own]
            for stem, (file, own) in zip(stems, sets.items(), strict=True)
        }
    return {
        file: [
            prompt if prompt.groups or len(files) == 1 else prompt._replace(groups={"style": style})
            for prompt in own
        ]
        for style, (file, own) in zip(_differences(stems), sets.items(), strict=True)
    }


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
