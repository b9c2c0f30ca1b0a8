"""From labels to pairs, before any image is read: which decide, which side is chosen, which gap."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from raypref.core.config import InputError
from raypref.core.ledger import Ledger, part_name
from raypref.core.rows import Row, seed_of
from raypref.pairs.arena import Arena, fit, gap, walk_order
from raypref.pairs.config import PairingConfig, PairsConfig

# Why an entry goes no further, besides being dropped.
UNLABELLED, TIE, LOW_CONFIDENCE, BEYOND = "unlabelled", "tie", "low_confidence", "beyond_limit"
DROPPED, TAKEN = "dropped", ""
ROWS_A_PART = 64  # as many pairs of images lie in one part of the pairs
DECIDED = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("chosen_at", pa.string()),  # a `Ref` as a JSON list
        ("rejected_at", pa.string()),  # null for a single image
        ("chosen_model", pa.string()),
        ("rejected_model", pa.string()),
        ("confidence", pa.float64()),
        ("vote_share", pa.float64()),  # of votes for the chosen image
        ("gap", pa.float64()),  # its mean over these rows is 1
        ("gap_std", pa.float64()),
        ("flipped", pa.bool_()),
        ("score", pa.float64()),  # of a single image
    ]
)
ARENA = pa.schema(
    [
        ("id", pa.string()),
        ("generator", pa.string()),
        ("mean", pa.float64()),
        ("std", pa.float64()),
        ("games", pa.int64()),
    ]
)
READS = ["id", "first_model", "second_model", "label", "confidence", "gap", "problem"]


def outcomes(rows: Iterable[Row], config: PairsConfig) -> Iterator[tuple[Row, str]]:
    """What becomes of each entry as far as its label says: `TAKEN`, or the reason it is not.

    Args:
        rows: of `listing.LISTED`, from the first on: a limit counts those taken.
        config: what is left out.
    """
    taken = 0
    for row in rows:
        reason = _reason(row, config)
        if reason == TAKEN:
            taken += 1
            if config.limit and taken > config.limit:
                reason = BEYOND
        yield row, reason


def _reason(row: Row, config: PairsConfig) -> str:
    if row["problem"] is not None:
        return DROPPED
    if row["label"] is None:
        return UNLABELLED
    if row["confidence"] is not None and row["confidence"] < config.min_confidence:
        return LOW_CONFIDENCE
    return TIE if config.kind == "labelled" and row["label"] == 0.5 else TAKEN


def decide(index: Ledger, config: PairingConfig, *, decided: Ledger, arena: Ledger | None) -> None:
    """Fill the ledger of the labels that decide, in the order of the index, and the arena's.

    What a killed run left is made again: no image is read. In memory are a few numbers per label.

    Args:
        index: the labels, `listing.LISTED`.
        config: what is left out, turned round, and where gaps come from.
        decided: gets `DECIDED`.
        arena: gets `ARENA`, a row per generator; None where no gap is fitted.

    Raises:
        InputError: the gaps that were asked for are not there.
    """
    gaps = np.empty((0, 2))
    if config.pairs.kind == "labelled":
        labels = _labels(index, config)
        fitted = None if arena is None else _fitted(labels, index, config, arena)
        gaps = _gaps(labels, fitted, config)
    decided.clear()
    decided.begin()
    taken = (
        row for row, reason in outcomes(index.rows(batch_size=1024), config.pairs) if not reason
    )
    number = total = 0
    for number in itertools.count():
        rows = [
            _decided(row, config, gaps[total + place] if len(gaps) else None)
            for place, row in enumerate(itertools.islice(taken, ROWS_A_PART))
        ]
        if rows or not number:  # an empty part tells readers the columns
            table = pa.Table.from_pylist(rows, schema=DECIDED)
            decided.write_part(table, part_name(f"{number:08d}"))
        total += len(rows)
        if len(rows) < ROWS_A_PART:
            break
    decided.commit(expected=total, counts={"decided": total})


def is_flipped(id_: str, config: PairingConfig) -> bool:
    """Whether a label is turned round: drawn by seed and id, for studies of noise."""
    share = config.pairs.flip_labels
    return share > 0 and seed_of(config.seed, "flip", id_) < share * 2**63


class _Labels(NamedTuple):
    """A few numbers per label that decides, or is a tie, in the order of the index, each [labels].

    Turned round where `is_flipped` says so: the arena learns from the noise, too.
    """

    names: list[str]  # of the generators, sorted
    chosen: np.ndarray  # number of the generator, -1 where it has none
    rejected: np.ndarray
    given: np.ndarray  # the source's gap, NaN where it has none
    ties: np.ndarray
    taken: np.ndarray  # whether it goes on


def _labels(index: Ledger, config: PairingConfig) -> _Labels:
    numbers: dict[str | None, int] = {None: -1}
    chosen, rejected, given, what = array("q"), array("q"), array("d"), array("b")
    for row, reason in outcomes(index.rows(READS, batch_size=4096), config.pairs):
        if reason not in (TAKEN, BEYOND, TIE):
            continue
        sides = [row["first_model"], row["second_model"]]
        both = [numbers.setdefault(name, len(numbers) - 1) for name in sides]
        if not _first_is_chosen(row, config):
            both.reverse()
        chosen.append(both[0])
        rejected.append(both[1])
        given.append(np.nan if row["gap"] is None else row["gap"])
        what.append((TAKEN, BEYOND, TIE).index(reason))
    names = sorted(name for name in numbers if name is not None)
    # By name, and not by which comes first in the source.
    place = np.array([*(names.index(n) for n in numbers if n is not None), -1], np.int64)
    kinds = np.array(what, np.int8)
    return _Labels(
        names,
        place[np.array(chosen, np.int64)],
        place[np.array(rejected, np.int64)],
        np.array(given),
        kinds == 2,
        kinds == 0,
    )


def _fitted(labels: _Labels, index: Ledger, config: PairingConfig, ledger: Ledger) -> Arena:
    """Fit the arena to all labels that decide, beyond the limit too, and write it down."""
    named = (labels.chosen >= 0) & (labels.rejected >= 0)
    ids = (
        row["id"]
        for row, reason in outcomes(index.rows(READS, batch_size=4096), config.pairs)
        if reason in (TAKEN, BEYOND, TIE)
    )
    order = walk_order(ids, config.seed)
    order = order[named[order]]
    arena = fit(
        labels.chosen[order],
        labels.rejected[order],
        labels.ties[order],
        generators=len(labels.names),
        config=config.pairs.arena,
    )
    ledger.clear()
    ledger.begin()
    columns = [labels.names, labels.names, arena.mean, arena.std, arena.games]
    table = pa.table(dict(zip(ARENA.names, columns, strict=True)), schema=ARENA)
    ledger.write_part(table, part_name("000000"))
    ledger.commit(expected=len(labels.names), counts={"generators": len(labels.names)})
    return arena


def _gaps(labels: _Labels, arena: Arena | None, config: PairingConfig) -> np.ndarray:
    """Gap and its deviation of each label that is taken, [taken, 2]; NaN where there is none.

    Divided by the mean gap: an objective's margin then means the same for every source.
    """
    taken = labels.taken
    found = np.full((int(taken.sum()), 2), np.nan)
    if config.pairs.gap == "given":
        found[:, 0] = labels.given[taken]
        if not np.isfinite(found[:, 0]).any():
            raise InputError(
                f"pairs.gap=given: no label of '{config.source.path}' that decides has a gap; add "
                "a column gap of numbers, or leave pairs.gap out"
            )
    elif arena is not None:
        chosen, rejected = labels.chosen[taken], labels.rejected[taken]
        named = (chosen >= 0) & (rejected >= 0)
        found[named] = np.stack(
            gap(arena, chosen[named], rejected[named], config.pairs.arena), axis=1
        )
    there = np.flatnonzero(np.isfinite(found[:, 0]))
    if not len(there):
        return found
    mean = found[there, 0].mean()
    if not mean > 0:
        raise InputError(
            f"pairs.gap=given: the mean gap in '{config.source.path}' is {mean:g}; gaps are "
            "divided by their mean, which must be above 0"
        )
    found /= mean
    if config.pairs.shuffle_gaps:
        random = np.random.default_rng(seed_of(config.seed, "shuffle gaps"))
        found[there] = found[random.permutation(there)]
    return found


def _first_is_chosen(row: Row, config: PairingConfig) -> bool:
    return bool(row["label"] == 1) != is_flipped(row["id"], config)


def _decided(row: Row, config: PairingConfig, gaps: np.ndarray | None) -> Row:
    flipped = is_flipped(row["id"], config)
    made = {"id": row["id"], "prompt": row["prompt"], "flipped": flipped}
    if config.pairs.kind == "images":
        return made | {
            "chosen_at": row["first"],
            "chosen_model": row["first_model"],
            "score": _score(row, flipped=flipped),
        }
    sides = ["first", "second"] if _first_is_chosen(row, config) else ["second", "first"]
    share = row["vote_share"]
    if share is not None and sides[0] == "second":
        share = 1 - share
    assert gaps is not None
    own = [None if np.isnan(value) else float(value) for value in gaps]
    return made | {
        "chosen_at": row[sides[0]],
        "rejected_at": row[sides[1]],
        "chosen_model": row[f"{sides[0]}_model"],
        "rejected_model": row[f"{sides[1]}_model"],
        "confidence": row["confidence"],
        "vote_share": share,
        "gap": own[0],
        "gap_std": own[1],
    }


def _score(row: Row, *, flipped: bool) -> float:
    score = float(row["label"])
    if not flipped:
        return score
    if not 0 <= score <= 1:
        raise InputError(
            f"pairs.flip_labels turns scores from 0 to 1 round; '{row['id']}' has the score "
            f"{score:g}"
        )
    return 1 - score
