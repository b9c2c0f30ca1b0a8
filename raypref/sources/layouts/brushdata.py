"""BrushData: WebDataset shards whose samples hold an image, a caption and masks in run lengths.

Members of a sample are `KEY.image` (or `.jpg`, ...), `KEY.caption`, `KEY.height`, `KEY.width` and
`KEY.segmentation`, JSON with a list `mask`; further ones are left alone. Masks are read when a
hole is wanted (holes.kind=segmentation): a listing opens none.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from functools import partial
from typing import IO

from raypref.core.rows import MASKS, Row, index_row
from raypref.sources.base import Layout
from raypref.sources.captions import SIDECAR_BYTES, Columns, caption_in
from raypref.sources.reading import sound_files
from raypref.sources.samples import IMAGE_ENDS
from raypref.sources.store import Store
from raypref.sources.tar import contents, keyed

_NUMBER_BYTES = 6  # of a height or width


def photographs(store: Store, _columns: Columns) -> Iterator[Row]:
    """The image of every sample of every shard, in order, and where its masks are."""
    names = (file.name for file in store.files() if file.name.endswith(".tar"))
    yield from (_whole(row) for row in sound_files(store, names, partial(_rows, store)))


def _whole(row: Row) -> Row:
    return {**dict.fromkeys(MASKS.names), **row}


def _rows(store: Store, shard: str) -> Iterator[Row]:
    for id_, name, row in keyed(store, shard, partial(_read, shard)):
        if "uri" in row:
            yield {**row, "id": id_}
        else:
            problem = f"bad_record: sample {name} of {shard} has no image"
            yield index_row(id_, shard, row.get("caption"), problem=problem)


def _read(shard: str, file: IO[bytes], members: Iterator[tarfile.TarInfo]) -> Row:
    """What a sample's members say, as far as it is there."""
    found: Row = {}
    caption: tuple[str | None, str | None] = None, None
    for member in members:
        ending = posixpath.basename(member.name).partition(".")[2].lower()
        if ending == "image" or ending in IMAGE_ENDS:
            if "uri" not in found:
                size, start = member.size, member.offset_data
                found |= index_row("", shard, None, size=size, member=start)
        elif ending == "segmentation":
            found["mask_uri"] = shard
            found["mask_member"], found["mask_size"] = member.offset_data, member.size
        elif ending in ("caption", "txt") and member.size <= SIDECAR_BYTES:
            caption = caption_in(contents(file, member), member.name)
        elif ending in ("height", "width") and member.size <= _NUMBER_BYTES:
            digits = contents(file, member).strip()
            if digits.isdigit() and int(digits):
                found[f"mask_{ending}"] = int(digits)
    return {**found, "caption": caption[0], "problem": caption[1]}


LAYOUT = Layout(
    photographs=photographs,
    suffixes=(".tar",),
    sampled=True,
    masks=True,
    advice="each sample needs a member KEY.caption",
)
