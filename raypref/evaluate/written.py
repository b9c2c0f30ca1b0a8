"""The files that scores and tables of a prompt set are written to, in the set's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from raypref.core.ledger import join, remove_file, write_bytes, write_table
from raypref.evaluate import tables
from raypref.evaluate.sets import ABOUT

if TYPE_CHECKING:
    import pandas as pd

SCORES = "scores.parquet"  # of single images
TEXTS = (
    *("table.md", "table.csv", "table.tex"),
    *("categories.md", "categories.csv", "wins.csv", ABOUT),
)


def write_tables(
    folder: str,
    scores: pd.DataFrame,
    summary: pd.DataFrame,
    categories: pd.DataFrame,
    wins: pd.DataFrame,
    *,
    published: tables.Published | None,
    labels: Mapping[str, str],
    about: Mapping[str, str],
) -> None:
    """Write what people look for of a set.

    Args:
        folder: of the set, local or URI.
        scores: one row per image and metric.
        summary: of `statistics.summarise`.
        categories: of `statistics.by_category`.
        wins: of `statistics.win_rates`.
        published: the published numbers beside ours.
        labels: names of the models for people, as `Run.labels`.
        about: the name of the set and where its prompts come from.
    """
    write_table(join(folder, SCORES), pa.Table.from_pandas(scores, preserve_index=False))
    texts = (
        tables.markdown(summary, published=published, labels=labels),
        tables.csv(summary, published=published),
        tables.latex(summary, published=published, labels=labels),
        tables.categories_markdown(categories, labels=labels),
        tables.plain_csv(categories),
        tables.plain_csv(wins),
        json.dumps(dict(about), indent=1),
    )
    for name, text in zip(TEXTS, texts, strict=True):
        write_bytes(join(folder, name), text.encode())


def drop_tables(folder: str) -> None:
    """Remove what `write_tables` wrote."""
    for name in (SCORES, *TEXTS):
        remove_file(join(folder, name))
