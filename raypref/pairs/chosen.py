"""From scores of candidates to what people open: scores, pairs, and what became of every input."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypref.core.config import InputError
from raypref.core.ledger import Ledger, part_name
from raypref.core.ledger_group import LedgerGroup
from raypref.core.rows import REJECT, Row
from raypref.curate.captions import SOURCE
from raypref.curate.publish import PAIRS_A_PART, PHOTOS, REJECTS, LargeParts, with_features
from raypref.engine.stream import Selection
from raypref.pairs.cards import write_candidate_cards
from raypref.pairs.choice import DRAW, PHOTOGRAPH, TOO_FEW, ChosenPair, choose, rule_scores
from raypref.pairs.columns import candidate_pairs, candidate_scores
from raypref.pairs.config import PairingConfig
from raypref.pairs.numbered import IDS_AT_ONCE, number_name

PAIR = "pair"
ENDS = (PAIR, TOO_FEW, DRAW)
SIDES = ("chosen", "rejected")
VALUES = 4096  # of a column as Python objects at a time


class Ends(NamedTuple):
    """What became of the photographs that were reached."""

    taken: pa.Table  # `id`, `key` and `prompt`, in order
    dropped: pa.Table  # `id` and the reject columns


class Decided(NamedTuple):
    """What is known of the candidates of H photographs, N each, by R rewards.

    8 bytes per score: a million photographs with 16 candidates take 128 MB per reward.
    """

    taken: pa.Table
    rewards: tuple[str, ...]
    scores_HNR: np.ndarray  # float64, NaN where there is none
    rules_HN: np.ndarray
    ends_H: np.ndarray  # PAIR, or why there is none: a position in ENDS
    sides_H2: np.ndarray  # numbers of the chosen and the rejected image; PHOTOGRAPH stands for it


class CandidateTables(NamedTuple):
    """The ledgers that are read and written here."""

    holes: Ledger
    images: LedgerGroup
    scores: Ledger
    photos: Ledger
    rejects: Ledger
    pairs: Ledger


def choose_pairs(
    taken: pa.Table, scored: Sequence[LedgerGroup], rewards: tuple[str, ...], config: PairingConfig
) -> Decided:
    """Choose the pairs.

    Args:
        taken: `id` and `key` of the photographs, in order.
        scored: what each reward says, a ledger per number.
        rewards: their names.
        config: rule, candidates per photograph, and seed.
    """
    ids, count = taken["id"].combine_chunks(), config.candidates.count
    scores_HNR = np.full((len(ids), count, len(rewards)), math.nan)
    for column, (name, group) in enumerate(zip(rewards, scored, strict=True)):
        for number in range(count):
            table = group.ledgers[number_name(number)].table(["id", name])
            rows = pc.index_in(ids, value_set=table["id"].combine_chunks())
            values = table[name].take(rows).to_numpy()  # null becomes NaN
            scores_HNR[:, number, column] = values
    rules_HN = np.empty((len(ids), count))
    ends_H, sides_H2 = np.empty(len(ids), np.int8), np.zeros((len(ids), 2), np.int8)
    for row, key in enumerate(_values(taken["key"])):
        seeded = {"seed": config.seed, "key": key}
        rules_HN[row] = rule_scores(scores_HNR[row], rewards, config.choice, **seeded)
        end = choose(rules_HN[row], config.choice, **seeded)
        if isinstance(end, ChosenPair):
            sides_H2[row] = end.chosen, end.rejected
        ends_H[row] = ENDS.index(PAIR if isinstance(end, ChosenPair) else end)
    return Decided(taken, rewards, scores_HNR, rules_HN, ends_H, sides_H2)


def publish_candidates(
    decided: Decided,
    ended: Ends,
    repeated: Mapping[str, str],
    retained: Selection,
    tables: CandidateTables,
    config: PairingConfig,
    *,
    hole: bool,
) -> Counter[str]:
    """Write scores, pairs and tables, and commit their ledgers.

    Args:
        decided: the scores and what was chosen.
        ended: what became of the photographs that were reached.
        repeated: ids of repeated content and the reason it gives.
        retained: the photographs that could be taken.
        tables: the ledgers.
        config: for columns and cards.
        hole: whether candidates fill a hole.

    Returns:
        How many inputs ended for each reason; "pair" for the pairs.

    Raises:
        InputError: not one pair was left; says where the photographs were lost.
    """
    for ledger in (tables.scores, tables.photos, tables.rejects):
        ledger.begin()
    count = _write_scores(decided, tables.scores)
    tables.scores.commit(expected=count, counts={"candidates": count})
    counts: Counter[str] = Counter()
    schema, measured = PHOTOS, retained.ledger
    if SOURCE in measured.schema().names:
        schema = PHOTOS.append(pa.field(SOURCE, pa.string()))
    photos, rejects = LargeParts(tables.photos, schema), LargeParts(tables.rejects, REJECTS)
    for found in _with_ends(retained, decided, ended.dropped):
        rows = list(_outcomes(found, repeated, config))
        counts.update(row["reason"] or row["status"] for row in rows)
        photos.add(rows)
        rejects.add([row for row in rows if row["status"] == "rejected"])
    total, unusable = photos.close(), rejects.close()
    if not counts["pair"]:
        raise InputError(
            "no pair was left: " + ", ".join(f"{n} {reason}" for reason, n in counts.items())
        )
    tables.pairs.begin()
    write_candidate_cards(config, counts, tables._asdict(), hole=hole)
    tables.photos.commit(expected=total, counts=counts)
    tables.rejects.commit(expected=unusable, counts=counts)
    for number, table in enumerate(_pair_tables(decided, tables, config, hole=hole)):
        tables.pairs.write_part(table, part_name(f"{number:06d}"))
    tables.pairs.commit(expected=counts["pair"], counts=counts)
    return counts


def _write_scores(decided: Decided, ledger: Ledger) -> int:
    """One row per photograph and candidate; how many there are."""
    parts = LargeParts(ledger, candidate_scores(decided.rewards))
    columns = (decided.taken[name] for name in ("id", "key"))
    about = ({"id": id_, "key": key} for id_, key in zip(*map(_values, columns), strict=True))
    for row, own_NR, rule_N in zip(about, decided.scores_HNR, decided.rules_HN, strict=True):
        parts.add(
            [
                {
                    **row,
                    "candidate": number,
                    **dict(zip(decided.rewards, map(_known, scores), strict=True)),
                    "rule": _known(rule),
                }
                for number, (scores, rule) in enumerate(zip(own_NR, rule_N, strict=True))
            ]
        )
    return parts.close()


def _with_ends(
    retained: Selection, decided: Decided, dropped: pa.Table
) -> Iterator[list[tuple[Row, Row]]]:
    """Facts of the inputs, a part at a time; of each what became of its candidates.

    That is `kept` (whether it could be taken), `end` (of ENDS, None where it was not taken) and the
    reject columns where it was dropped for its hole.
    """
    measured = retained.ledger
    taken, lost = (own["id"].combine_chunks() for own in (decided.taken, dropped))
    for parts in _grouped(measured):
        facts = [measured.part(part) for part in parts]
        ids = pa.chunked_array([own["id"].combine_chunks() for own in facts], pa.string())
        kept = [measured.part(part, ["id"], where=retained.where)["id"] for part in parts]
        among = pa.concat_arrays([chunk for own in kept for chunk in own.chunks])
        # A search prepares all that it looks through: once for many parts.
        keeps = _values(pc.is_in(ids, value_set=among))
        ends = _values(pc.index_in(ids, value_set=taken))
        losses = _values(pc.index_in(ids, value_set=lost))
        for own in facts:
            yield [
                (
                    fact,
                    {
                        "kept": keep,
                        "end": None if end is None else ENDS[decided.ends_H[end]],
                        **({} if loss is None else dropped.slice(loss, 1).to_pylist()[0]),
                    },
                )
                for fact, keep, end, loss in zip(own.to_pylist(), keeps, ends, losses, strict=False)
            ]


def _grouped(ledger: Ledger) -> Iterator[list[str]]:
    """The parts of a ledger, some at a time: as many as have IDS_AT_ONCE rows."""
    waiting: list[str] = []
    count = 0
    for part in ledger.parts():
        waiting.append(part)
        count += ledger.part(part, ["id"]).num_rows
        if count >= IDS_AT_ONCE:
            yield waiting
            waiting, count = [], 0
    if waiting:
        yield waiting


def _outcomes(
    found: list[tuple[Row, Row]], repeated: Mapping[str, str], config: PairingConfig
) -> Iterator[Row]:
    """What became of each input of a part: its facts, `status` and `reason`."""
    for fact, own in found:
        failed = next((each for each in (fact, own) if each.get("reject_reason")), None)
        row = {**fact, "status": "not_selected"}
        if failed is not None:
            stage, reason, message = (failed[name] for name in REJECT.names)
            yield row | {
                "status": "rejected",
                "reason": reason,
                "stage": stage,
                "message": message,
            }
        elif own["end"] == PAIR:
            yield row | {"status": "pair", "reason": None}
        elif own["end"] == TOO_FEW:
            message = (
                f"of {config.candidates.count} candidates, too few have a score of every reward "
                "that choice.by uses"
            )
            yield row | {
                "status": "rejected",
                "reason": TOO_FEW,
                "stage": "choice",
                "message": message,
            }
        else:
            other = "beyond_limit" if own["kept"] else "low_colorfulness"
            yield row | {"reason": repeated.get(fact["id"], own["end"] or other)}


def _pair_tables(
    decided: Decided, tables: CandidateTables, config: PairingConfig, *, hole: bool
) -> Iterator[pa.Table]:
    """The pairs in order, a part at a time."""
    schema = with_features(candidate_pairs(decided.rewards))
    (positions,) = np.nonzero(decided.ends_H == ENDS.index(PAIR))
    mean_gap = _mean_gap(decided, positions)
    ids = decided.taken["id"].combine_chunks()
    holes = _ById(tables.holes, ids, ["image", *(["mask"] if hole else [])])
    images = {n: _ById(own, ids, ["image"]) for n, own in enumerate(tables.images.ledgers.values())}
    for start in range(0, len(positions), PAIRS_A_PART):
        at = positions[start : start + PAIRS_A_PART]
        some = _facts(decided, at, config.choice.by, mean_gap)
        around = holes.rows(at)
        found: dict[tuple[int, int], bytes] = {}
        for number in images:
            rows = images[number].rows(at[(decided.sides_H2[at] == number).any(axis=1)])
            found |= {(position, number): row["image"] for position, row in rows.items()}
        for position, fact in zip(at.tolist(), some, strict=True):
            photograph = around[position]["image"]
            for side in SIDES:
                number = fact[f"candidate_{side}"]
                png = photograph["bytes"] if number == PHOTOGRAPH else found[position, number]
                fact[side] = {"bytes": png, "path": f"{fact['key'][:16]}_{side}.png"}
            fact["source"] = photograph if hole else None
            fact["mask"] = around[position]["mask"] if hole else None
        yield pa.Table.from_pylist(some, schema=schema)


def _mean_gap(decided: Decided, positions: np.ndarray) -> float:
    """The mean over the pairs of what the rule puts between both sides; 0 for photographs."""
    chosen, rejected = decided.sides_H2[positions].T
    scored = chosen != PHOTOGRAPH
    own, chosen, rejected = positions[scored], chosen[scored], rejected[scored]
    gaps = decided.rules_HN[own, chosen] - decided.rules_HN[own, rejected]
    return math.fsum(gaps) / max(1, len(gaps))


def _facts(decided: Decided, positions: np.ndarray, rule: str, mean_gap: float) -> list[Row]:
    """All of some pairs but their images."""
    facts: list[Row] = []
    about = decided.taken.take(pa.array(positions)).to_pylist()
    for position, row in zip(positions.tolist(), about, strict=True):
        row["rule"] = rule
        for side, number in zip(SIDES, decided.sides_H2[position].tolist(), strict=True):
            scored = number != PHOTOGRAPH
            row[f"candidate_{side}"] = number
            row[f"score_{side}"] = _known(decided.rules_HN[position, number]) if scored else None
            scores = decided.scores_HNR[position, number]
            for name, score in zip(decided.rewards, scores, strict=True):
                row[f"score_{name}_{side}"] = _known(score) if scored else None
        if row["score_chosen"] is not None and mean_gap > 0:
            row["gap"] = (row["score_chosen"] - row["score_rejected"]) / mean_gap
        facts.append(row)
    return facts


class _ById:
    """Rows of a ledger by position among ids; the ids of its parts are read once.

    Args:
        ledger: the ledger.
        ids: ids by position; all are in the ledger.
        columns: those read.
    """

    def __init__(self, ledger: Ledger, ids: pa.Array, columns: Sequence[str]) -> None:
        self.ledger, self.ids, self.columns = ledger, ids, columns
        self.parts = ledger.parts()
        self.part_of = np.full(len(ids), -1, np.int32)
        for part, own in _ids_by_parts(ledger, self.parts):
            found = pc.index_in(own, value_set=ids)
            known = found.is_valid().to_numpy(zero_copy_only=False)
            self.part_of[found.drop_null().to_numpy()] = part[known]

    def rows(self, positions: np.ndarray) -> dict[int, Row]:
        """The rows at some positions."""
        by_id = {self.ids[position].as_py(): position for position in positions.tolist()}
        where = pc.field("id").isin(pa.array(list(by_id), pa.string()))
        found: dict[int, Row] = {}
        for number in np.unique(self.part_of[positions]):
            table = self.ledger.part(self.parts[number], ["id", *self.columns], where=where)
            found |= {by_id[row["id"]]: row for row in table.to_pylist()}
        return found


def _ids_by_parts(ledger: Ledger, parts: Sequence[str]) -> Iterator[tuple[np.ndarray, pa.Array]]:
    """The ids of a ledger, many at a time, and the number of the part that each is in."""
    numbers: list[np.ndarray] = []
    waiting: list[pa.Array] = []
    for number, part in enumerate(parts):
        waiting.append(ledger.part(part, ["id"])["id"].combine_chunks())
        numbers.append(np.full(len(waiting[-1]), number, np.int32))
        if sum(map(len, waiting)) >= IDS_AT_ONCE or number == len(parts) - 1:
            yield np.concatenate(numbers), pa.concat_arrays(waiting)
            numbers, waiting = [], []


def _values(column: pa.ChunkedArray) -> Iterator[Any]:
    """The values of a column, a few as Python objects at a time."""
    for start in range(0, len(column), VALUES):
        yield from column.slice(start, VALUES).to_pylist()


def _known(score: float) -> float | None:
    return float(score) if math.isfinite(score) else None
