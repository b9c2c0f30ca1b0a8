"""Photographs that became no pair, to browse: some of each reason, drawn once, from the source.

The source is untrusted: bytes are decoded within the limits of curation, and what is shown is
always encoded anew. What is too small or too long to train on can still be looked at.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow.compute as pc
from PIL import Image

from raypref.core.config import InputError
from raypref.core.fingerprints import fingerprint
from raypref.core.ledger import Ledger, join, read_bytes
from raypref.core.rows import Row
from raypref.curate.config import CurateConfig
from raypref.images.decode import BadImage, ImageConfig, decode
from raypref.report.pictures import PIXELATED, Folder, encode, list_files
from raypref.report.reasons import keeps
from raypref.report.views import Dropped, DroppedFor, Picture
from raypref.sources.index import fetch
from raypref.sources.store import SourceError, Store

MOST = 240  # photographs shown in all, spread over the reasons
SIDE = 320  # px; the longer side of a picture
THREADS = 2  # each may hold a photograph of `images.max_pixels`
DRAWN = "drawn.json"  # id of each shown photograph -> size of its picture, or null
ENTRY = ("uri", "member", "column", "size")  # how to read a photograph again


class _Folder(NamedTuple):
    run: str
    report: str


def dropped(
    folder: str, config: CurateConfig, *, report: str, mean: float | None, order: list[str]
) -> list[DroppedFor]:
    """The reasons with some of their photographs; draws the pictures where they are not there yet.

    Args:
        folder: the run's folder; its curation is complete.
        config: the settings of the curation.
        report: the folder of the page, local or URI.
        mean: the mean colorfulness of the set; None where the filter did not use it.
        order: reasons in the order of the filters; others come before them.
    """
    photos = Ledger(join(folder, "photos"), {})
    counts = _counts(photos)
    if not counts:
        return []
    rows = list(_chosen(photos, counts))
    messages = _by_id(Ledger(join(folder, "rejects"), {}), rows, ("message",))
    pictures = _pictures(_Folder(folder, report), photos, rows, config)
    views: dict[str, list[Dropped]] = {reason: [] for reason in counts}
    for row in rows:
        message = messages.get(row["id"], {}).get("message") or _measured(row)
        shown = Dropped(row["uri"], row["caption"] or "", message, pictures.get(row["id"]))
        views[row["reason"]].append(shown)
    reasons = sorted(counts, key=lambda own: order.index(own) if own in order else -1)
    return [
        DroppedFor(
            reason=reason,
            count=counts[reason],
            keep=keeps(reason, config, mean=mean),
            shown=views[reason],
        )
        for reason in reasons
    ]


def shares(counts: Mapping[str, int], most: int) -> dict[str, int]:
    """How many of each reason are shown: as even as the counts allow, `most` in all."""
    given: dict[str, int] = {}
    left = most
    for number, reason in enumerate(sorted(counts, key=lambda own: counts[own])):
        given[reason] = min(counts[reason], left // (len(counts) - number))
        left -= given[reason]
    return given


def _counts(photos: Ledger) -> Counter[str]:
    counts: Counter[str] = Counter()
    for batch in photos.batches(["reason"]):
        for entry in pc.value_counts(batch["reason"]).to_pylist():
            if entry["values"]:
                counts[entry["values"]] += entry["counts"]
    return counts


def _chosen(photos: Ledger, counts: Mapping[str, int]) -> Iterator[Row]:
    """Rows of the photographs that are shown: evenly spread over the table, none preferred."""
    given = shares(counts, MOST)
    wanted = {
        reason: {round(i * (counts[reason] - 1) / max(1, share - 1)) for i in range(share)}
        for reason, share in given.items()
    }
    seen: Counter[str] = Counter()
    columns = ["id", "uri", "caption", "reason", "colorfulness", "pickscore"]
    for batch in photos.batches(columns):
        for place, reason in enumerate(batch["reason"].to_pylist()):
            if reason:
                if seen[reason] in wanted[reason]:
                    yield batch.slice(place, 1).to_pylist()[0]
                seen[reason] += 1


def _by_id(ledger: Ledger, rows: list[Row], columns: tuple[str, ...]) -> dict[str, Row]:
    if not ledger.parts():  # removed to save space
        return {}
    where = pc.field("id").isin([row["id"] for row in rows])
    return {row["id"]: row for row in ledger.table(columns, where=where).to_pylist()}


def _measured(row: Row) -> str:
    numbers = [(name, row[name]) for name in ("colorfulness", "pickscore") if row[name] is not None]
    names = {"colorfulness": "colorfulness", "pickscore": "PickScore"}
    return ", ".join(f"{names[name]} {value:.2f}" for name, value in numbers)


def _pictures(
    folder: _Folder, photos: Ledger, rows: list[Row], config: CurateConfig
) -> dict[str, Picture]:
    """The pictures by id; what cannot be drawn has none."""
    made = fingerprint({"ids": [row["id"] for row in rows], "photos": _identity(photos)})
    target = Folder(folder.report, f"files/dropped-{made}")
    known = read_bytes(join(folder.report, target.name, DRAWN))
    sizes = json.loads(known) if known else _draw(folder.run, target, rows, config)
    pictures = {}
    for place, row in enumerate(rows):
        if size := sizes.get(row["id"]):
            hard = max(size) <= PIXELATED
            file = f"{target.name}/{_name(place, hard=hard)}"
            pictures[row["id"]] = Picture(file, file, size[0], size[1], hard)
    return pictures


def _identity(photos: Ledger) -> Any:
    return photos.begun().get("fingerprint", "")


def _draw(
    run: str, target: Folder, rows: list[Row], config: CurateConfig
) -> dict[str, tuple[int, int] | None]:
    """Write the pictures and what was drawn; what the source does not give now is tried again."""
    entries = _by_id(Ledger(join(run, "curate", "measured"), {}), rows, ENTRY)
    try:
        store = config.source.store()
    except (InputError, OSError):
        return {}
    limits = config.images.model_copy(
        update={"min_side": 1, "max_aspect": 1e9, "animated": "first_frame"}
    )
    sizes: dict[str, tuple[int, int] | None] = {}

    def draw(place: int) -> None:
        id_ = rows[place]["id"]
        image = _decoded(entries[id_], store, limits)
        if image is None:
            sizes[id_] = None
            return
        hard = max(image.size) <= PIXELATED
        if not hard:
            image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
        target.write(_name(place, hard=hard), encode(image, "PNG" if hard else "JPEG"))
        sizes[id_] = image.size

    known = [place for place, row in enumerate(rows) if row["id"] in entries]
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(draw, known))
    except OSError:  # an object store failed: the next page tries again
        return sizes
    if known or list_files(join(target.report, target.name)):
        target.write(DRAWN, json.dumps(sizes).encode())
        target.remove_others(prefix="dropped-")
    return sizes


def _decoded(entry: Row, store: Store, limits: ImageConfig) -> Image.Image | None:
    try:
        return decode(fetch(entry, store, max_bytes=limits.max_bytes), limits)
    except (SourceError, BadImage):
        return None


def _name(place: int, *, hard: bool) -> str:
    return f"{place:04d}.{'png' if hard else 'jpg'}"
