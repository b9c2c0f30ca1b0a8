"""All candidates of the shown pairs with every score: pages beside the report, some pairs each.

Each page holds its pictures, small, within itself. Parts of ledgers without a shown candidate are
not opened. A part is read once: of the others' pairs in it the small pictures wait in memory.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pandas as pd
from PIL import Image

from raypref.core.ledger import Ledger, join, write_bytes
from raypref.core.progress import Progress
from raypref.evaluate.bias import RULE, reward_text
from raypref.evaluate.labels import digits, lower_is_better
from raypref.report.candidate_rows import PHOTOGRAPH, Candidates
from raypref.report.layout import fill
from raypref.report.listed import PAGE_OF_PAIRS, number_text
from raypref.report.pictures import PIXELATED, data_uri, list_files, open_image, overlay

SIDE = 160  # px, longest side of a picture
QUALITY = 80  # of WebP
THREADS = 8
PROGRESS_SECONDS = 10.0


class Tile(NamedTuple):
    """One candidate."""

    name: str  # "no. 3"
    picture: str  # data URI; empty where it was not made
    role: str  # "chosen", "rejected" or ""
    scores: Sequence[tuple[str, str, bool]]  # reward, score, whether it is the best of the hole


def shown_in(pairs: Ledger) -> str:
    """The folder of all that is shown of pairs, in the order in which they were drawn."""
    return f"pairs-{pairs.fingerprint}-drawn"  # without -drawn: of an earlier order


class _Small(NamedTuple):
    image: str  # data URIs
    hole: str  # the photograph with its hole tinted; empty for candidates
    side: int
    pixelated: bool


def write_candidate_pages(
    candidates: Candidates,
    pairs: Ledger,
    facts: Sequence[Mapping[str, Any]],
    *,
    how: str,
    report: str,
) -> str:
    """Write the pages that are not there yet; returns their address with `{page}` and `{pair}`.

    Empty where the candidates are no longer stored and no page was written before.

    Args:
        candidates: of the run.
        pairs: the complete pairs.
        facts: of the shown pairs, in order: `rank` (from 0), `key`, `prompt`, `candidate_chosen`,
            `candidate_rejected`, `rule`.
        how: which images the two sides are, in a sentence.
        report: the folder of the page, local or URI.
    """
    folder = f"files/{shown_in(pairs)}"
    address = f"{folder}/candidates-{{page}}.html#pair-{{pair}}"
    pages = [facts[i : i + PAGE_OF_PAIRS] for i in range(0, len(facts), PAGE_OF_PAIRS)]
    before = set(list_files(join(report, folder)))
    missing = [n for n in range(1, len(pages) + 1) if f"candidates-{n}.html" not in before]
    if not missing:
        return address if pages else ""
    if not candidates.numbers:
        return ""
    asked = [row["key"] for n in missing for row in pages[n - 1]]
    known = dict(iter(candidates.scores_of(asked).groupby("key")))
    numbers = [*([PHOTOGRAPH] if candidates.have_photographs else []), *candidates.numbers]
    progress = Progress("report", total=len(asked), unit="pairs", every=PROGRESS_SECONDS)
    with ThreadPoolExecutor(THREADS) as pool:
        readers = {number: _Reader(candidates, number, asked, pool) for number in numbers}
        for page in missing:
            rows = pages[page - 1]
            keys = [row["key"] for row in rows]
            small = {number: own.take(keys) for number, own in readers.items()}
            views = [_view(row, small, candidates, known) for row in rows]
            text = _page(views, page=page, last=len(pages), how=how)
            write_bytes(join(report, folder, f"candidates-{page}.html"), text.encode())
            progress.add(len(rows), note="candidates")
    return address


class _Reader:
    """Small pictures of the candidates of one number, in whatever order they are asked for."""

    def __init__(
        self, candidates: Candidates, number: int, keys: Sequence[str], pool: ThreadPoolExecutor
    ) -> None:
        found = candidates.find(number, keys)
        self._there = {key for own in found.values() for key in own}
        self._rows = candidates.rows(number, found)
        self._pool = pool
        self._met: dict[str, _Small] = {}

    def take(self, keys: Sequence[str]) -> dict[str, _Small]:
        """Those of some holes; a candidate that was not made is missing."""
        wanted = [key for key in keys if key in self._there]
        while not all(key in self._met for key in wanted):
            some = next(self._rows)
            self._met.update(self._pool.map(_small, some))
        return {key: self._met.pop(key) for key in wanted}


def _small(row: Mapping[str, Any]) -> tuple[str, _Small]:
    if "mask" not in row:
        return row["key"], _Small(*_encoded(row["image"]))
    data, hole = row["image"]["bytes"], ""
    image, _, side, hard = _encoded(data)
    if row["mask"] is not None:
        hole = _encoded(overlay(data, row["mask"]["bytes"]))[0]
    return row["key"], _Small(image, hole, side, hard)


def _encoded(data: bytes) -> tuple[str, str, int, bool]:
    image = open_image(data).convert("RGB")
    hard = max(image.size) <= PIXELATED
    if not hard:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=2)
    return data_uri(buffer.getvalue(), "image/webp"), "", max(image.size), hard


def _view(
    row: Mapping[str, Any],
    small: Mapping[int, Mapping[str, _Small]],
    candidates: Candidates,
    known: Mapping[Any, pd.DataFrame],
) -> dict[str, Any]:
    key = row["key"]
    photograph = small.get(PHOTOGRAPH, {}).get(key)
    roles = {row["candidate_rejected"]: "rejected", row["candidate_chosen"]: "chosen"}
    tiles = list(_tiles(row, small, candidates, known.get(key), roles))
    if PHOTOGRAPH in roles and photograph:
        tiles.insert(0, Tile("photograph", photograph.image, roles[PHOTOGRAPH], ()))
    some = next((own[key] for own in small.values() if key in own), None)
    return {
        "rank": row["rank"] + 1,
        "prompt": row["prompt"],
        "rule": row["rule"],
        "hole": photograph.hole if photograph else "",
        "tiles": tiles,
        "side": some.side if some else SIDE,
        "pixelated": some is not None and some.pixelated,
    }


def _tiles(
    row: Mapping[str, Any],
    small: Mapping[int, Mapping[str, _Small]],
    candidates: Candidates,
    known: pd.DataFrame | None,
    roles: Mapping[int, str],
) -> Iterator[Tile]:
    """All candidates, by number."""
    own = pd.DataFrame() if known is None else known.set_index("candidate")
    best = {
        name: own[name].min() if lower_is_better(name) else own[name].max()
        for name in candidates.rewards
        if len(own)
    }
    for number in candidates.numbers:
        picture = small[number].get(row["key"])
        values = own.loc[number] if number in own.index else {}
        scores = [
            (
                reward_text(name, row["rule"]),
                number_text(float(values[name]), _decimals(name)),
                bool(values[name] == best[name]),
            )
            for name in candidates.rewards
            if len(values)
        ]
        yield Tile(f"no. {number}", picture.image if picture else "", roles.get(number, ""), scores)


def _decimals(reward: str) -> int:
    return 2 if reward == RULE else digits(reward)


def _page(views: Sequence[Mapping[str, Any]], *, page: int, last: int, how: str) -> str:
    return fill(
        "candidates.html",
        filters={},
        scripts=("lightbox.js",),
        pairs=views,
        page=page,
        last=last,
        how=how,
    )
