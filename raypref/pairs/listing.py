"""Labels as a source lists them: one row per entry, and where the bytes of its images are."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from raypref.core.config import InputError
from raypref.core.ledger import Ledger, part_name
from raypref.core.progress import waiting
from raypref.core.rows import Row
from raypref.pairs.config import PairingConfig
from raypref.sources.base import LabelledImage, Pair, Ref
from raypref.sources.pairs import images_beside, labelled_images, labelled_pairs
from raypref.sources.store import LocalStore, SourceError, Store

ROWS_A_PART = 4096  # without images
# Of a single labelled image `first` is the image, `second` is null, `label` its score.
LISTED = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("first", pa.string()),  # a `Ref` as a JSON list
        ("second", pa.string()),
        ("first_model", pa.string()),
        ("second_model", pa.string()),
        ("label", pa.float64()),  # 1 the first is preferred, 0 the second, 0.5 a tie, null none
        ("confidence", pa.float64()),
        ("vote_share", pa.float64()),  # of votes for the first
        ("gap", pa.float64()),  # that the source gives
        ("problem", pa.string()),  # `reason: message`, else null
    ]
)


def stores(config: PairingConfig) -> tuple[Store, Store]:
    """Where the labels are read from, and images that are files of their own.

    Raises:
        InputError: there is nothing at `source.path` or `pairs.images`.
    """
    labels = config.source.store()
    return labels, images_beside(labels, config.pairs.images, config.source.roots)


def list_labels(config: PairingConfig) -> Iterator[Row]:
    """The entries of the source (schema `LISTED`); a bad one has a `problem`.

    Raises:
        InputError: nothing there, or it is not what `source.layout` says.
    """
    source, store = config.source, config.source.store()
    listing = labelled_images if config.pairs.kind == "images" else labelled_pairs
    listed: Iterator[Pair | LabelledImage] = listing(store, source.layout)
    for entry in itertools.islice(listed, source.limit or None):
        yield _row(entry, source.max_caption)


def file_of(at: str | None) -> str | None:
    """Where an image is, for people: the file, and the cell of a table."""
    if at is None:
        return None
    ref = Ref(*json.loads(at))
    if ref.column:
        return f"{ref.file}#{ref.row}/{ref.column}"
    return ref.file if ref.size is None else f"{ref.file}#{ref.row}"


def problem_of(entry: Pair | LabelledImage, longest: int) -> str:
    """Why an entry cannot be used as `reason: message`, or "".

    Args:
        entry: as the source lists it.
        longest: prompt that is taken, in characters.
    """
    if problem := entry.problem or prompt_problem(entry.prompt, longest, of="label"):
        return problem
    if isinstance(entry, Pair) and entry.label not in (None, 0, 0.5, 1):
        return f"bad_label: the label is {entry.label}, not 0, 0.5 or 1"
    return ""


def _row(entry: Pair | LabelledImage, longest: int) -> Row:
    problem = problem_of(entry, longest)
    row: Row = {"id": entry.id, "prompt": (entry.prompt or "")[:longest]}
    if isinstance(entry, LabelledImage):
        facts = {"first": json.dumps(entry.image), "first_model": entry.model, "label": entry.score}
    else:
        facts = {
            "first": json.dumps(entry.first),
            "second": json.dumps(entry.second),
            **{name: getattr(entry, name) for name in LISTED.names[4:-1]},
        }
    return {**dict.fromkeys(LISTED.names), **row, **facts, "problem": problem or None}


def prompt_problem(prompt: str | None, longest: int, *, of: str) -> str:
    """Why a prompt cannot be used as `reason: message`, or "".

    Args:
        prompt: as it is written.
        longest: that is taken, in characters.
        of: what has it, for the message.
    """
    if prompt is None or not prompt.strip():
        return f"no_caption: the {of} has no prompt"
    if "\0" in prompt:
        return "bad_caption: the prompt contains a NUL character"
    if len(prompt) > longest:
        return f"caption_too_long: {len(prompt)} characters; source.max_caption is {longest}"
    return ""


class Listed(NamedTuple):
    """What a source lists."""

    digest: str  # 16 hex digits that change when an entry, or the size of an image, does
    # "entries", and of them "ties", "unlabelled", "unusable", "named" (with a generator's name)
    counts: Counter[str]


def survey(config: PairingConfig) -> Listed:
    """Read all labels once: what they are, and a digest that tells them from others.

    Images within tables count by the sizes of those; images that are files of this machine by
    their own. An object store is not asked for the size of each.

    Raises:
        InputError: nothing there, or not one label.
    """
    total, counts = hashlib.sha256(), Counter[str]()
    labels, images = stores(config)
    tables: set[str] = set()
    with waiting(lambda: f"source: reading the labels, {counts['entries']:,} so far"):
        for row in list_labels(config):
            sizes = []
            for side in ("first", "second"):
                if row[side] is None:
                    continue
                ref = Ref(*json.loads(row[side]))
                if ref.column or ref.size is not None:
                    tables.add(ref.file)
                else:
                    sizes.append(_size(images, ref.file))
            total.update(("\x1f".join(map(str, (*row.values(), *sizes))) + "\n").encode(
                "utf-8", "surrogatepass"
            ))  # fmt: skip
            counts["entries"] += 1
            counts["unusable"] += row["problem"] is not None
            if row["problem"] is None:
                counts["unlabelled"] += row["label"] is None
                counts["ties"] += config.pairs.kind == "labelled" and row["label"] == 0.5
            counts["named"] += row["first_model"] is not None
        for file in sorted(tables):
            size = None
            with suppress(SourceError):
                size = labels.size(file)
            total.update(f"{file} {size}".encode("utf-8", "surrogatepass"))
    if not counts["entries"]:
        raise InputError(f"source.path: there is no label in '{config.source.path}'")
    return Listed(total.hexdigest()[:16], counts)


def _size(store: Store, file: str) -> int | None:
    """Bytes of an image of this machine; a name that escapes is refused where it is read."""
    if not isinstance(store, LocalStore):
        return None
    try:
        return Path(store.base, file).stat().st_size
    except (OSError, ValueError):
        return None


def write_labels(config: PairingConfig, ledger: Ledger) -> None:
    """Fill a ledger with the entries, a part at a time; what a killed run left is made again."""
    ledger.clear()
    ledger.begin()
    listed, total = list_labels(config), 0
    for number in itertools.count():
        rows = list(itertools.islice(listed, ROWS_A_PART))
        if not rows:
            break
        ledger.write_part(pa.Table.from_pylist(rows, schema=LISTED), part_name(f"{number:08d}"))
        total += len(rows)
    ledger.commit(expected=total, counts={"listed": total})
