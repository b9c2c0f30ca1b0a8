"""A small curation, published by the code that publishes every curation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from corpus import encode, scene

from raypref.core.ledger import Ledger, in_folder, placed
from raypref.core.rows import REJECT, Row, content_key
from raypref.curate.cards import Provenance
from raypref.curate.publish import CuratedLedgers, publish
from raypref.curate.select import Ranking, SelectConfig

ORIGIN = Provenance("cc-by-4.0", "sd15", "owner/inpaint", "owner/scorer")
IMAGES = ("chosen", "rejected", "mask")
FACTS = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "key", "uri", "caption")),
        *((name, pa.int32()) for name in ("width", "height")),
        ("colorfulness", pa.float64()),
        *REJECT,
    ]
)
SCORES = pa.schema([("id", pa.string()), ("pickscore", pa.float32()), *REJECT])
TWINS = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "key", "caption")),
        *((name, pa.binary()) for name in IMAGES),
        *((name, pa.float32()) for name in ("pickscore", "pickscore_rejected")),
        ("colorfulness", pa.float64()),
        *REJECT,
    ]
)


def photograph(number: int, *, bad: bool) -> Row:
    """An input with all that a curation finds out about it."""
    images = {name: encode(scene(3 * number + i), "PNG") for i, name in enumerate(IMAGES)}
    caption = f"a thing, no. {number}"
    row: Row = dict.fromkeys(REJECT.names)
    row |= {"id": f"{number:03d}.png", "uri": f"{number:03d}.png", "caption": caption}
    row |= {"key": content_key(images["chosen"], caption), "width": 120, "height": 80, **images}
    row |= {"colorfulness": 40.0 + number, "pickscore": 20.0 + number, "pickscore_rejected": 19.0}
    if bad:
        row |= {"key": None, "width": None, "height": None, "colorfulness": None}
        row |= {"reject_stage": "photos", "reject_reason": "truncated"}
        row |= {"reject_message": "the file ends in the middle"}
    return row


def filled(ledger: Ledger, rows: list[Row], schema: pa.Schema) -> Ledger:
    """A complete ledger of one part; a part of the same name belongs to the same inputs."""
    ledger.begin()
    ledger.write_part(pa.Table.from_pylist(rows, schema=schema), "part-000000.parquet")
    ledger.commit(expected=len(rows), counts={})
    return ledger


def curation(
    folder: Path, *, good: int = 5, bad: int = 2, pairs: int = 3, **settings: Any
) -> dict[str, Ledger]:
    """Publish a curation of good and bad photographs into a run's folder; its three tables."""
    rows = [photograph(number, bad=number >= good) for number in range(good + bad)]
    sound = rows[:good]
    place = in_folder(str(folder))
    made = CuratedLedgers(
        filled(placed(place, "curate/measured", {}), rows, FACTS),
        filled(placed(place, "curate/scored", {}), sound, SCORES),
        filled(placed(place, "curate/twins", {}), sound, TWINS),
    )
    ranking = Ranking(SelectConfig(top_k=pairs), also=lambda row: True)
    ranking.begin(row["id"] for row in reversed(sound))
    ranking.add(sound)
    tables = {name: placed(place, name, settings) for name in ("photos", "rejects", "pairs")}
    publish(made, ranking, {}, **tables, origin=ORIGIN)
    return tables
