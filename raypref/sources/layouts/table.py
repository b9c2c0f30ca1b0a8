"""Tables with a header, separated by commas or tabs, as PartiPrompts and DrawBench are."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from raypref.core.config import InputError
from raypref.sources.base import Layout
from raypref.sources.prompts import Prompt, column, of_record
from raypref.sources.reading import csv_fault, shown, text_lines
from raypref.sources.store import Store

_LONGEST = 2**17  # characters of a field


def prompts(store: Store, file: str) -> Iterator[Prompt]:
    """Every line after the header."""
    where, lines = shown(store, file), text_lines(store, file, newline="")
    # Tab-separated files are written without quoting: quotes in PartiPrompts.tsv are the prompt's.
    if file.endswith(".tsv"):
        reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.DictReader(lines)
    try:
        column(where, reader.fieldnames or ())
        for row in reader:
            # A quote left open swallows the lines after it.
            if any(isinstance(text, str) and len(text) > _LONGEST for text in row.values()):
                said = f"a field has more than {_LONGEST} characters; is a quote left open?"
                raise InputError(f"{where}, line {reader.line_num}: {said}")
            yield of_record(where, row)
    except csv.Error as error:
        raise InputError(f"{where}, line {reader.line_num}: {csv_fault(error)}") from None


LAYOUT = Layout(prompts=prompts, suffixes=(".csv", ".tsv"))
