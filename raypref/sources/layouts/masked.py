"""A folder of photographs with captions, whose masks are pictures beside them (`a_mask.png`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from raypref.core.rows import MASKS, Row
from raypref.sources.captions import Columns
from raypref.sources.layouts import folder
from raypref.sources.masks import masks_of
from raypref.sources.store import Store


def photographs(store: Store, columns: Columns) -> Iterator[Row]:
    """What `folder` lists, and where the mask of each photograph is: the first one by name."""
    rows = list(folder.photographs(store, columns))
    sizes = {row["uri"]: row["size"] for row in rows}
    first: dict[str, str] = {}
    for mask, photo in masks_of(rows).items():
        first.setdefault(photo, mask)
    for row in rows:
        mask = first.get(row["uri"], "")
        where = {"mask_uri": mask, "mask_size": sizes[mask]} if mask else {}
        yield {**row, **dict.fromkeys(MASKS.names), **where}


LAYOUT = replace(folder.LAYOUT, photographs=photographs, speaks=None, masks=True)
