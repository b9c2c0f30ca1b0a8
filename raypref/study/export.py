"""What comes of votes: a table with the models' names, and preference pairs for a training."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from raypref.core.config import InputError
from raypref.core.ledger import write_bytes, write_table
from raypref.study.folder import DAMAGED, IMAGES, Study
from raypref.study.votes import Refused, Vote, VoteStore, checked

VOTES = pa.schema(
    [
        ("study", pa.string()),
        ("item", pa.string()),  # two images of a prompt; a repeat has that of the first time
        ("prompt_id", pa.string()),
        ("category", pa.string()),
        ("rater", pa.string()),
        ("left", pa.string()),  # the model whose image was left; `damaged` in an attention check
        ("right", pa.string()),
        ("choice", pa.string()),  # left, right or tie
        ("seconds", pa.float64()),
        ("time", pa.timestamp("us", "UTC")),
        ("attention", pa.bool_()),  # an attention check
        ("repeat", pa.bool_()),  # the second time that the rater saw the item
        ("prompt", pa.string()),
        ("left_image", pa.string()),  # files, below the study's folder
        ("right_image", pa.string()),
    ]
)
PAIRS = (
    *("prompt", "chosen", "rejected", "chosen_model", "rejected_model"),
    *("confidence", "vote_share", "votes"),
)
BIGGEST = 64 * 2**20  # bytes of a file of votes


class Exported(NamedTuple):
    """What came of votes."""

    table: pa.Table  # of the columns `VOTES`
    pairs: int
    ties: int  # items whose votes are evenly split


def votes_table(study: Study, votes: Sequence[Vote]) -> pa.Table:
    """The votes with what they are about; rows by rater and time."""
    rows = []
    for vote in votes:
        task = study.tasks[vote.task]
        item, models = study.items[task.item], study.sides(vote.task)
        rows.append(
            {
                "study": study.id,
                "item": item.id,
                "prompt_id": item.prompt_id,
                "category": item.category,
                "rater": vote.rater,
                "left": models[vote.left],
                "right": models[vote.right],
                "choice": vote.choice,
                "seconds": vote.seconds,
                "time": datetime.fromisoformat(vote.time),
                "attention": task.kind == "check",
                "repeat": task.kind == "repeat",
                "prompt": item.prompt,
                "left_image": _file(vote.left),
                "right_image": _file(vote.right),
            }
        )
    return pa.Table.from_pylist(rows, schema=VOTES)


def preference_pairs(study: Study, votes: Iterable[Vote]) -> tuple[list[dict[str, Any]], int]:
    """A pair per item, by the majority of its votes; and how many items are evenly split.

    A tie counts half for either image. Attention checks and repeats are left out. `vote_share` is
    the share of the chosen image, `confidence` is 2 vote_share - 1.
    """
    said: dict[str, Counter[str]] = {}
    for vote in votes:
        task = study.tasks[vote.task]
        if task.kind == "item":
            image = {"left": vote.left, "right": vote.right}.get(vote.choice, "")
            said.setdefault(task.item, Counter())[image] += 1
    pairs, ties = [], 0
    for item_id in sorted(said, key=lambda own: (study.items[own].prompt_id, own)):
        item, counts = study.items[item_id], said[item_id]
        chosen, rejected = sorted(item.sides, key=lambda side: -counts[side.image])
        if counts[chosen.image] == counts[rejected.image]:
            ties += 1
            continue
        total = counts.total()
        share = (counts[chosen.image] + counts[""] / 2) / total
        values = (
            *(item.prompt, _file(chosen.image), _file(rejected.image)),
            *(chosen.model, rejected.model, 2 * share - 1, share, total),
        )
        pairs.append(dict(zip(PAIRS, values, strict=True)))
    return pairs, ties


def export_votes(study: Study, store: VoteStore) -> Exported:
    """Write `votes.parquet`, `votes.csv` and `pairs.csv` into the study's folder."""
    votes = store.all()
    table = votes_table(study, votes)
    pairs, ties = preference_pairs(study, votes)
    write_table(str(study.folder / "votes.parquet"), table)
    rows = [
        {**row, "time": row["time"].isoformat()} | {n: str(row[n]).lower() for n in FLAGS}
        for row in table.to_pylist()
    ]
    write_bytes(str(study.folder / "votes.csv"), _csv(VOTES.names, rows))
    write_bytes(str(study.folder / "pairs.csv"), _csv(PAIRS, pairs))
    return Exported(table, len(pairs), ties)


FLAGS = ("attention", "repeat")


def told_of(exported: Exported) -> str:
    """How many votes there are, in a sentence."""
    table = exported.table
    checks = [row for row in table.to_pylist() if row["attention"]]
    failed = sum(row["choice"] == "tie" or row[row["choice"]] == DAMAGED for row in checks)
    repeats = sum(table["repeat"].to_pylist())
    ties = table["choice"].to_pylist().count("tie")
    raters = len(set(table["rater"].to_pylist()))
    return (
        f"{table.num_rows:,} votes of {raters:,} raters: {ties:,} ties, {repeats:,} repeats, "
        f"{len(checks):,} attention checks, of which {failed:,} failed"
    )


def read_in(study: Study, store: VoteStore, files: Sequence[str]) -> int:
    """Take over the votes that pages without a server saved; returns how many more there are.

    Where a rater saved twice and changed a vote in between, the later one stands. A file that is
    read again changes nothing.

    Args:
        study: whose votes they must be.
        store: where they go.
        files: JSON or CSV, as the page saves them.

    Raises:
        InputError: a file is none of these; names it and the row, and nothing is taken over. Or a
            vote cannot be stored, as where its id is another rater's.
    """
    votes: list[Vote] = []
    for file in files:
        for row, told in enumerate(_rows(file), start=1):
            if told.get("study") != study.id:
                raise InputError(f"{file}, vote {row}: it is of another study than {study.folder}")
            try:
                votes.append(checked(told, study))
            except Refused as refused:
                raise InputError(f"{file}, vote {row}: {refused}") from None
    before = len(store.all())
    for vote in sorted(votes, key=lambda vote: (vote.time, vote.id)):
        standing = store.of_rater(vote.rater).get(vote.task)
        later = standing and standing.id != vote.id and standing.time < vote.time
        try:
            if standing and later:
                store.undo(vote.rater, standing.id)
            store.cast(vote)
        except Refused as refused:
            if standing and later:
                store.restore(vote.rater, standing.id)
            raise InputError(
                f"a vote of rater {vote.rater} is refused: {refused}; those before it, by time, "
                "are taken over"
            ) from None
    return len(store.all()) - before


def _rows(file: str) -> list[dict[str, Any]]:
    """The votes of a file, each with its study and rater."""
    path = Path(file).expanduser()
    try:
        if path.stat().st_size > BIGGEST:
            raise InputError(f"{file} has more than {BIGGEST:,} bytes: it is no file of votes")
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            return [dict(row) for row in csv.DictReader(io.StringIO(text, newline=""))]
        told = json.loads(text)
        about = {"study": told["study"], "rater": told["rater"]}
        return [{**vote, **about} for vote in told["votes"]]
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, csv.Error, RecursionError) as error:
        said = f"{type(error).__name__}: {error}"
        raise InputError(f"{file} is no file of votes that a page saved ({said})") from None


def _file(image: str) -> str:
    return f"{IMAGES}/{image}.webp"


def _csv(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
