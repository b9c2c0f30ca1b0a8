"""Read the prompts of an evaluation set, with their categories, from a file or folder.

The format is told by its suffix and columns, so the published sets are read as they are published:
PartiPrompts.tsv, DrawBench's CSV, GenEval's evaluation_metadata.jsonl, DPG-Bench's folder of text
files, Pick-a-Pic's Parquet, HPDv2's folder of one list a style; and anyone's own file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from raypref.config import InputError
from raypref.messages import first_line

COLUMNS = ("prompt", "Prompt", "caption")  # the first one present is read
# Columns that divide the prompts into groups, in any case; the first one present is the category.
GROUPINGS = ("category", "style", "tag", "challenge")
IDS = ("id", "item_id")


class Prompt(NamedTuple):
    """One prompt of an evaluation set."""

    text: str
    groups: Mapping[str, str] = {}  # read only; by grouping, `{"category": "Animals"}`
    id: str = ""  # its name in the set, where it has one (DPG-Bench)

    @property
    def category(self) -> str:
        """Its group in the first grouping; empty where there is none."""
        return next(iter(self.groups.values()), "")


def read_prompts(path: str, *, limit: int | None) -> list[Prompt]:
    """The prompts of a set in file order, without blanks and repeats.

    A repeated prompt would weigh twice in a mean, so only its first place counts (three of the
    four HPDv2 style files hold repeats). Surrounding spaces are no part of a prompt.

    Args:
        path: a file with one prompt a line (`.txt`), or with a column or key `prompt`, `Prompt` or
            `caption` (`.csv`, `.tsv`, `.jsonl`, `.json`, `.parquet`), and maybe `category`,
            `style`, `tag` or `challenge`, and `id`. A `.json` list may hold plain strings. Or a
            folder of such files: the part of their names in which they differ becomes the
            `style`, unless each is a text file of one line, whose name then is the prompt's id.
            Text is UTF-8.
        limit: take the first so many prompts after blanks and repeats are gone; None takes all.

    Raises:
        InputError: the path is missing, has an unknown suffix, cannot be parsed (the message names
            the line), lacks the column, or holds no prompt.
    """
    place = Path(path).expanduser()
    prompts = list(islice(_distinct(_folder(place) if place.is_dir() else _file(place)), limit))
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


def _folder(folder: Path) -> list[Prompt]:
    files = sorted(file for file in folder.iterdir() if file.suffix in READERS)
    sets = {file: [p for p in _file(file) if p.text.strip()] for file in files}
    if files and all(file.suffix == ".txt" and len(sets[file]) <= 1 for file in files):
        return [p._replace(id=file.stem) for file, own in sets.items() for p in own]
    names = _differences([file.stem for file in files])
    return [
        prompt if prompt.groups or len(files) == 1 else prompt._replace(groups={"style": name})
        for name, own in zip(names, sets.values(), strict=True)
        for prompt in own
    ]


def _differences(stems: list[str]) -> list[str]:
    """Names without the words all begin with: `hpdv2_photo` among its like is `photo`."""
    words = [stem.split("_") for stem in stems]
    shared = 0
    while all(len(own) > shared + 1 for own in words) and len({own[shared] for own in words}) == 1:
        shared += 1
    return ["_".join(own[shared:]) for own in words]


def _file(file: Path) -> list[Prompt]:
    if file.suffix not in READERS:
        known = ", ".join(READERS)
        raise InputError(f"{file}: unknown kind of prompt file '{file.suffix}'; use {known}")
    if not file.is_file():
        raise InputError(f"no prompt file '{file}'")
    try:
        # Consumed here, so that a decoding error in a lazy reader is caught here.
        prompts = list(READERS[file.suffix](file))
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: {error}") from None
    for number, prompt in enumerate(prompts, start=1):
        try:
            prompt.text.encode()
        except UnicodeEncodeError:  # JSON can hold what is no text
            text = ascii(prompt.text[:40])
            raise InputError(f"{file}: prompt {number} holds half a character: {text}") from None
    return prompts


def _lines(file: Path) -> Iterator[Prompt]:
    # utf-8-sig drops the byte order mark that spreadsheets and Windows editors write.
    with file.open(encoding="utf-8-sig") as stream:
        for line in stream:
            yield Prompt(line)


def _csv(file: Path) -> Iterator[Prompt]:
    # Tab-separated files are written without quoting: quotes in PartiPrompts.tsv are the prompt's.
    with file.open(encoding="utf-8-sig", newline="") as stream:
        if file.suffix == ".tsv":
            reader = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            reader = csv.DictReader(stream)
        try:
            _column(file, reader.fieldnames or ())
            for row in reader:
                yield _prompt(file, row)
        except csv.Error as error:
            raise InputError(f"{file}, line {reader.line_num}: {error}") from None


def _jsonl(file: Path) -> Iterator[Prompt]:
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                where = f"{file}, line {number}"
                yield _record(where, _json(where, line))


def _json_list(file: Path) -> Iterator[Prompt]:
    entries = _json(str(file), file.read_text(encoding="utf-8-sig"))
    if not isinstance(entries, list):
        raise InputError(f"{file}: not a JSON list")
    for number, entry in enumerate(entries, start=1):
        where = f"{file}, entry {number}"
        yield Prompt(entry) if isinstance(entry, str) else _record(where, entry)


def _parquet(file: Path) -> Iterator[Prompt]:
    try:
        with pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            column = _column(file, names)
            kind = table.schema_arrow.field(column).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise InputError(f"{file}: column '{column}' holds {kind}, not text")
            # Not the others: Pick-a-Pic's hold the images.
            wanted = [column, *(name for name in names if name.lower() in (*GROUPINGS, *IDS))]
            for batch in table.iter_batches(columns=wanted):
                for row in batch.to_pylist():
                    yield _prompt(file, row)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} is not a Parquet file: {first_line(error)}") from None


READERS = {
    ".txt": _lines,
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _jsonl,
    ".json": _json_list,
    ".parquet": _parquet,
}


def _json(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {error}") from None


def _record(where: str, record: Any) -> Prompt:
    if not isinstance(record, dict):
        raise InputError(f"{where}: not a JSON object")
    if not isinstance(record[_column(where, record)], str):
        raise InputError(f"{where}: the prompt is not text")
    return _prompt(where, record)


def _prompt(where: Path | str, row: Mapping[str, Any]) -> Prompt:
    by_name = {name.lower(): value for name, value in row.items() if name}
    groups = {kind: str(by_name[kind]) for kind in GROUPINGS if by_name.get(kind)}
    ids = [str(by_name[name]) for name in IDS if by_name.get(name) is not None]
    return Prompt(row[_column(where, row)] or "", groups, ids[0] if ids else "")


def _column(where: Path | str, names: Iterable[str]) -> str:
    present = [name for name in names if name]
    for column in COLUMNS:
        if column in present:
            return column
    found = ", ".join(" ".join(name.split()) for name in present) or "none"  # one line
    raise InputError(f"{where}: no column {' or '.join(COLUMNS)}; found {found}")
