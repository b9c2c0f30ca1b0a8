"""Read the prompts of an evaluation set from a text, CSV, JSON lines or Parquet file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raypref.config import InputError

COLUMNS = ("prompt", "Prompt", "caption")  # the first one present is read


def read_prompts(path: str, *, limit: int | None) -> list[str]:
    """The prompts of a file in file order, without blanks and repeats.

    A repeated prompt would weigh twice in a mean, so only its first place counts (three of the
    four HPDv2 style files hold repeats). Surrounding spaces are no part of a prompt.

    Args:
        path: a `.txt` file (one prompt a line), or a `.csv`, `.jsonl` or `.parquet` file with a
            column or key `prompt`, `Prompt` or `caption`. Text is UTF-8.
        limit: take the first so many prompts after blanks and repeats are gone; None takes all.

    Raises:
        InputError: the file is missing, has an unknown suffix, cannot be parsed (the message names
            the line), lacks the column, or holds no prompt.
    """
    file = Path(path).expanduser()
    readers = {".txt": _lines, ".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    if file.suffix not in readers:
        raise InputError(
            f"{path}: unknown kind of prompt file '{file.suffix}'; use {', '.join(readers)}"
        )
    if not file.is_file():
        raise InputError(f"no prompt file '{path}'")
    try:
        # Consumed here, so that a decoding error in a lazy reader is caught here.
        prompts = list(islice(_distinct(readers[file.suffix](file)), limit))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from None
    if not prompts:
        raise InputError(f"{path} holds no prompt")
    return prompts


def _distinct(texts: Iterable[str | None]) -> Iterator[str]:
    seen: set[str] = set()
    for text in texts:
        prompt = (text or "").strip()
        if prompt and prompt not in seen:
            seen.add(prompt)
            yield prompt


def _lines(file: Path) -> Iterator[str]:
    # utf-8-sig drops the byte order mark that spreadsheets and Windows editors write.
    with file.open(encoding="utf-8-sig") as stream:
        yield from stream


def _csv(file: Path) -> Iterator[str | None]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        try:
            column = _column(file, reader.fieldnames or ())
            for row in reader:
                yield row[column]
        except csv.Error as error:
            raise InputError(f"{file}, line {reader.line_num}: {error}") from None


def _jsonl(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{where}: not JSON: {error}") from None
            if not isinstance(record, dict):
                raise InputError(f"{where}: not a JSON object")
            prompt = record[_column(where, record)]
            if not isinstance(prompt, str):
                raise InputError(f"{where}: the prompt is not text")
            yield prompt


def _parquet(file: Path) -> Iterator[str | None]:
    try:
        with pq.ParquetFile(file) as table:
            column = _column(file, table.schema_arrow.names)
            texts = table.read(columns=[column]).column(column)
    except pa.ArrowInvalid as error:
        raise InputError(f"{file} is not a Parquet file: {error}") from None
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        raise InputError(f"{file}: column '{column}' holds {texts.type}, not text")
    yield from texts.to_pylist()


def _column(where: Path | str, names: Iterable[str]) -> str:
    present = list(names)
    for column in COLUMNS:
        if column in present:
            return column
    raise InputError(
        f"{where}: no column {' or '.join(COLUMNS)}; found {', '.join(present) or 'none'}"
    )
