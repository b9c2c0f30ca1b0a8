"""From labels to pairs, before any image is read: which decide, which side is chosen, which gap."""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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
COUNT = (TAKEN, BEYOND, TIE)  # of these the arena learns
ROWS_A_PART = 4096  # without images
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

    One that is `DROPPED` has a `problem`.

    Args:
        rows: of `listing.LISTED`, from the first on: a limit counts those taken.
        config: what is left out.
    """
    taken = 0
    for row in rows:
        reason = _reason(row, config)
        if reason == TAKEN and config.gap == "given" and (row["gap"] or 0) < 0:
            said = f"bad_gap: the gap of {row['id']} is {row['gap']:g}; it must be 0 or more"
            row, reason = {**row, "problem": said}, DROPPED
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
    # Unset it leaves out nothing: a source may count confidence from below 0.
    confidence = row["confidence"] if config.min_confidence else None
    if confidence is not None and confidence < config.min_confidence:
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
        labels = number_labels(index.rows(READS, batch_size=4096), config, also=("gap",))
        fitted = None if arena is None else _fitted(labels, config, arena)
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


class Labels(NamedTuple):
    """A few numbers per label that decides, or is a tie, in the order of the rows, each [labels].

    Turned round where `is_flipped` says so: the arena learns from the noise, too.
    """

    names: list[str]  # of the generators, sorted
    chosen: np.ndarray  # number of the generator, -1 where it has none
    rejected: np.ndarray
    ties: np.ndarray  # bool; which of a tie's generators is `chosen` means nothing
    taken: np.ndarray  # bool, whether it goes on
    walk: np.ndarray  # the order in which the arena walks those whose generators are both named
    also: dict[str, np.ndarray]  # further columns, NaN where a label has no such number
    left_out: Counter[str]  # the labels that do not count, by reason

    @property
    def named(self) -> np.ndarray:
        """Whether both generators are named, bool, [labels]."""
        named: np.ndarray = (self.chosen >= 0) & (self.rejected >= 0)
        return named


def number_labels(rows: Iterable[Row], config: PairingConfig, *, also: Sequence[str]) -> Labels:
    """Labels as numbers for the arena, in one pass.

    In memory are 17 bytes per label that counts, and 8 per further column.

    Args:
        rows: of `listing.LISTED`, from the first on, with the columns `READS` and `also`.
        config: what is left out, turned round, and the seed of the walk.
        also: columns of numbers that are kept; `vote_share` becomes that of the chosen image.
    """
    numbers: dict[str | None, int] = {None: -1}
    chosen, rejected, what = array("i"), array("i"), array("b")
    more = {name: array("d") for name in also}
    left_out: Counter[str] = Counter()

    def ids() -> Iterator[str]:
        """The ids of the labels that count, whose numbers are kept."""
        for row, reason in outcomes(rows, config.pairs):
            if reason not in COUNT:
                left_out[reason] += 1
                continue
            sides = [row["first_model"], row["second_model"]]
            both = [numbers.setdefault(name, len(numbers) - 1) for name in sides]
            straight = _first_is_chosen(row, config)
            chosen.append(both[not straight])
            rejected.append(both[straight])
            what.append(COUNT.index(reason))
            for name, values in more.items():
                value = np.nan if row[name] is None else row[name]
                values.append(value if straight or name != "vote_share" else 1 - value)
            yield row["id"]

    walk = walk_order(ids(), config.seed)
    names = sorted(name for name in numbers if name is not None)
    # By name, and not by which comes first in the source.
    rank = {name: place for place, name in enumerate(names)}
    place = np.array([*(rank[name] for name in numbers if name is not None), -1], np.int64)
    kinds = np.array(what, np.int8)
    labels = Labels(
        names,
        place[np.array(chosen, np.int64)],
        place[np.array(rejected, np.int64)],
        kinds == COUNT.index(TIE),
        kinds == COUNT.index(TAKEN),
        walk,
        {name: np.array(values) for name, values in more.items()},
        left_out,
    )
    return labels._replace(walk=walk[labels.named[walk]])


def _fitted(labels: Labels, config: PairingConfig, ledger: Ledger) -> Arena:
    """Fit the arena to all labels that decide, beyond the limit too, and write it down."""
    arena = fit(
        labels.chosen[labels.walk],
        labels.rejected[labels.walk],
        labels.ties[labels.walk],
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


def _gaps(labels: Labels, arena: Arena | None, config: PairingConfig) -> np.ndarray:
    """Gap and its deviation of each label that is taken, [taken, 2]; NaN where there is none.

    Divided by the mean gap: an objective's margin then means the same for every source.
    """
    taken = labels.taken
    found = np.full((int(taken.sum()), 2), np.nan)
    if config.pairs.gap == "given":
        found[:, 0] = labels.also["gap"][taken]
        if not np.isfinite(found[:, 0]).any():
            raise InputError(
                f"pairs.gap=given: no label of '{config.source.path}' that decides has a gap; add "
                "a column gap of numbers, or leave pairs.gap out"
            )
    elif arena is not None:
        chosen, rejected = labels.chosen[taken], labels.rejected[taken]
        named = labels.named[taken]
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
