"""All pairs for the gallery: numbers and captions in the page, pictures within or beside it.

The pictures of thousands of pairs would not fit into a page, nor all at once into memory: they are
written beside it while the ledger streams by. A second report of the same pairs writes none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from itertools import islice
from typing import Any

from raypref.core.ledger import Ledger
from raypref.core.progress import Progress
from raypref.report.pictures import Folder, data_uri, is_pixelated, open_image, overlay, small_file
from raypref.report.views import PairView, Picture

INLINE = 96  # pairs whose small pictures lie within the page, the best ones: four pages
THREADS = 8  # Pillow and the filesystems release the interpreter's lock
PROGRESS_SECONDS = 10.0
KINDS = ("chosen", "region", "rejected")
NUMBERS = ("prompt", "pickscore_chosen", "pickscore_rejected", "colorfulness", "rank")
IMAGES = ("chosen", "rejected", "mask")


def gallery(pairs: Ledger, *, report: str) -> list[PairView]:
    """The views of all pairs, best first; writes their pictures where they are not there yet.

    Args:
        pairs: the complete ledger of pairs.
        report: the folder of the page, local or URI.
    """
    facts = sorted(pairs.table(NUMBERS).to_pylist(), key=lambda row: row["rank"])
    rows = pairs.rows(["rank", *IMAGES], batch_size=4 * THREADS)
    return pictured(pairs, facts, rows, report=report, kinds=KINDS)


def pictured(
    pairs: Ledger,
    facts: Sequence[Mapping[str, Any]],
    rows: Iterator[dict[str, Any]],
    *,
    report: str,
    kinds: Sequence[str],
    name: str = "",
) -> list[PairView]:
    """The views of pairs; writes their pictures where they are not there yet.

    Args:
        pairs: the complete ledger of pairs.
        facts: what is known of each shown pair besides images, `rank` (from 0) among it, in order.
        rows: `rank` and images of the same pairs, in any order; read where pictures are lacking.
        report: the folder of the page, local or URI.
        kinds: which pictures there are, of `KINDS`.
        name: of the folder for them; begins with `pairs-`. Empty: by the pairs' fingerprint.
    """
    if not facts:
        return []
    side = _side(pairs)
    folder = Folder(report, f"files/{name or f'pairs-{pairs.fingerprint}'}")
    with ThreadPoolExecutor(THREADS) as pool:
        if not all(set(_names(row["rank"], side, kinds)) <= folder.before for row in facts):
            progress = Progress("report", total=len(facts), unit="pairs", every=PROGRESS_SECONDS)
            for some in _some(rows):
                # A few at a time: a thread pool would take all rows into memory at once.
                list(pool.map(lambda row: _write(row, folder, side, kinds), some))
                progress.add(len(some), note="pictures")
            folder.remove_others(prefix="pairs-")
        first = pool.map(
            lambda row: [
                data_uri(folder.read(name))
                for name in _names(row["rank"], side, kinds)[len(kinds) :]
            ],
            facts[:INLINE],
        )
        within = dict(zip((row["rank"] for row in facts), first, strict=False))
    return [_view(row, folder, side, kinds, within.get(row["rank"])) for row in facts]


def _side(pairs: Ledger) -> int:
    """Of all images of a run: they are squares of one size, or have about as many pixels."""
    row = next(pairs.rows(["chosen"], batch_size=1))
    return open_image(row["chosen"]["bytes"]).width


def _names(rank: int, side: int, kinds: Sequence[str]) -> list[str]:
    """The files of a pair: the full ones, then the small ones (the same where pixels are seen)."""
    hard = is_pixelated((side, side))
    full = [f"{rank + 1:05d}-{kind}" for kind in kinds]
    # A picture with the tint is drawn here, and a photograph's would weigh too much as PNG.
    endings = ["png" if hard or kind != "region" else "jpg" for kind in kinds]
    files = [f"{name}.{ending}" for name, ending in zip(full, endings, strict=True)]
    return files + (files if hard else [f"{name}-small.jpg" for name in full])


def _some(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while some := list(islice(rows, 4 * THREADS)):
        yield some


def _write(row: Mapping[str, Any], folder: Folder, side: int, kinds: Sequence[str]) -> None:
    full = [
        overlay((row.get("source") or row["chosen"])["bytes"], row["mask"]["bytes"])
        if kind == "region"
        else row[kind]["bytes"]
        for kind in kinds
    ]
    names = _names(row["rank"], side, kinds)
    files = dict(zip(names, (*full, *map(small_file, full)), strict=True))
    for name, data in files.items():
        folder.write(name, data)


def _view(
    row: Mapping[str, Any],
    folder: Folder,
    side: int,
    kinds: Sequence[str],
    within: list[str] | None,
) -> PairView:
    names = [f"{folder.name}/{name}" for name in _names(row["rank"], side, kinds)]
    full, small = names[: len(kinds)], within or names[len(kinds) :]
    hard = is_pixelated((side, side))
    found: dict[str, Any] = {
        kind: Picture(s, f, side, side, hard) for kind, s, f in zip(kinds, small, full, strict=True)
    }
    known = {field.name for field in fields(PairView)} - {"rank"}
    found |= {name: value for name, value in row.items() if name in known}
    return PairView(rank=row["rank"] + 1, **found)
