"""The pairs in the forms that other trainers read: Pick-a-Pic's columns, or images and a CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Literal

import pyarrow as pa

from raypref.core.ledger import Ledger, join, part_name, write_bytes
from raypref.core.rows import Row, seed_of

Format = Literal["pickapic", "folders"]

# The columns that public Diffusion-DPO trainers read, and those that say what is what.
PICKAPIC = pa.schema(
    [
        ("id", pa.string()),
        ("caption", pa.string()),
        ("jpg_0", pa.binary()),
        ("jpg_1", pa.binary()),
        ("label_0", pa.float64()),  # 1 where the first image is preferred, else 0
        ("label_1", pa.float64()),
        ("image_0_uid", pa.string()),
        ("image_1_uid", pa.string()),
        ("best_image_uid", pa.string()),
        ("has_label", pa.bool_()),
        ("are_different", pa.bool_()),
    ]
)
MODELS = (pa.field("model_0", pa.string()), pa.field("model_1", pa.string()))  # generators
_FOLDERS = {"chosen": "real", "rejected": "fake", "mask": "mask"}  # as the paper's code names them
# Columns of numbers that pairs may have, with their names there.
_NUMBERS = {
    "pickscore_chosen": "pickscore_real",
    "pickscore_rejected": "pickscore_fake",
    "colorfulness": "color_real",
    "chosen_model": "real_model",
    "rejected_model": "fake_model",
    "confidence": "confidence",
    "vote_share": "vote_share",
    "gap": "gap",
    "score_chosen": "score_real",
    "score_rejected": "score_fake",
}
_ROWS = 64  # a part


def export(pairs: Ledger, target: Ledger, form: Format) -> None:
    """Write the pairs once more, in another form, and commit.

    Args:
        pairs: the complete pairs.
        target: its folder gets the files.
        form: `pickapic`, Parquet files; or `folders`, `pairs.csv` with `real/`, `fake/`, `mask/`.
    """
    target.begin()
    written = _pickapic(pairs, target) if form == "pickapic" else _folders(pairs, target)
    target.commit(expected=written, counts={form: written})


def _pickapic(pairs: Ledger, target: Ledger) -> int:
    total, schema = 0, PICKAPIC
    if "chosen_model" in pairs.schema().names:  # of labelled pairs
        schema = pa.schema([*PICKAPIC, *MODELS])
    for number, rows in enumerate(_chunks(pairs)):
        table = pa.Table.from_pylist([_labelled(row) for row in rows], schema=schema)
        target.write_part(table, part_name(f"{number:06d}"))
        total += len(rows)
    return total


def _labelled(row: Row) -> Row:
    """Which image comes first is drawn from the key: a trainer must not learn the order."""
    images = [row["chosen"]["bytes"], row["rejected"]["bytes"]]
    uids = [f"{row['key'][:16]}_{what}" for what in ("chosen", "rejected")]
    models = [row.get("chosen_model"), row.get("rejected_model")]
    first = seed_of(0, "order", row["key"]) % 2
    return {
        "id": row["id"],
        "caption": row["prompt"],
        "jpg_0": images[first],
        "jpg_1": images[1 - first],
        "label_0": float(first == 0),
        "label_1": float(first == 1),
        "image_0_uid": uids[first],
        "image_1_uid": uids[1 - first],
        "best_image_uid": uids[0],
        "has_label": True,
        "are_different": True,
        "model_0": models[first],
        "model_1": models[1 - first],
    }


def _folders(pairs: Ledger, target: Ledger) -> int:
    text = io.StringIO(newline="")
    table = csv.writer(text)
    there = [name for name in _NUMBERS if name in pairs.schema().names]
    scores = [_NUMBERS[name] for name in there]
    table.writerow(["uid", "prompt", "real_image_path", "fake_image_path", *scores])
    for rows in _chunks(pairs):
        for row in rows:
            # One image may stand in several pairs, under several captions: the key tells.
            uid = row["key"][:16]
            for column, folder in _FOLDERS.items():
                if row.get(column) is None:  # labelled pairs have no mask
                    continue
                path = join(target.path, folder, f"{uid}.png")
                write_bytes(path, row[column]["bytes"])
            paths = [f"{folder}/{uid}.png" for folder in ("real", "fake")]
            table.writerow([uid, row["prompt"], *paths, *(row[name] for name in there)])
    write_bytes(join(target.path, "pairs.csv"), text.getvalue().encode())
    return 0  # its rows are files, not parts


def _chunks(pairs: Ledger) -> Iterator[list[Row]]:
    """Pairs in rank order, a few at a time."""
    for part in pairs.parts():
        rows = pairs.part(part).to_pylist()
        for start in range(0, len(rows), _ROWS):
            yield rows[start : start + _ROWS]
