"""From scores of candidates to what people open: scores, pairs, and what became of every input."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

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
from raypref.pairs.numbered import number_name


class Ends(NamedTuple):
    """What became of the photographs that were reached."""

    taken: pa.Table  # `id`, `key` and `prompt`, in order
    dropped: dict[str, Row]  # by id, with the reject columns


class Decided(NamedTuple):
    """What is known of the candidates of H photographs, N each, by R rewards."""

    taken: pa.Table
    rewards: tuple[str, ...]
    scores_HNR: np.ndarray  # float64, NaN where there is none
    rules_HN: np.ndarray
    ends: list[ChosenPair | str]  # the pair, or why there is none


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
    for place, (name, group) in enumerate(zip(rewards, scored, strict=True)):
        for number in range(count):
            table = group.ledgers[number_name(number)].table(["id", name])
            rows = pc.index_in(ids, value_set=table["id"].combine_chunks())
            values = table[name].take(rows).to_numpy()  # null becomes NaN
            scores_HNR[:, number, place] = values
    rules, ends = [], []
    for own_NR, key in zip(scores_HNR, taken["key"].to_pylist(), strict=True):
        seeded = {"seed": config.seed, "key": key}
        rules.append(rule_scores(own_NR, rewards, config.choice, **seeded))
        ends.append(choose(rules[-1], config.choice, **seeded))
    rules_HN = np.array(rules).reshape(len(ids), count)
    return Decided(taken, rewards, scores_HNR, rules_HN, ends)


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
    outcome = dict(zip(decided.taken["id"].to_pylist(), decided.ends, strict=True))
    for part in measured.parts():
        rows = list(_outcomes(retained, part, outcome, ended.dropped, repeated, config))
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
    about = decided.taken.select(["id", "key"]).to_pylist()
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


def _outcomes(
    retained: Selection,
    part: str,
    outcome: Mapping[str, ChosenPair | str],
    dropped: Mapping[str, Row],
    repeated: Mapping[str, str],
    config: PairingConfig,
) -> Iterator[Row]:
    """What became of each input of a part: its facts, `status` and `reason`."""
    measured = retained.ledger
    kept = {*measured.part(part, ["id"], where=retained.where)["id"].to_pylist()}
    for fact in measured.part(part).to_pylist():
        id_ = fact["id"]
        failed = next((r for r in (fact, dropped.get(id_, {})) if r.get("reject_reason")), None)
        end = outcome.get(id_)
        row = {**fact, "status": "not_selected"}
        if failed is not None:
            stage, reason, message = (failed[name] for name in REJECT.names)
            yield row | {
                "status": "rejected",
                "reason": reason,
                "stage": stage,
                "message": message,
            }
        elif isinstance(end, ChosenPair):
            yield row | {"status": "pair", "reason": None}
        elif end == TOO_FEW:
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
            other = "beyond_limit" if id_ in kept else "low_colorfulness"
            yield row | {"reason": repeated.get(id_, DRAW if end == DRAW else other)}


def _pair_tables(
    decided: Decided, tables: CandidateTables, config: PairingConfig, *, hole: bool
) -> Iterator[pa.Table]:
    """The pairs in order, a part at a time."""
    schema = with_features(candidate_pairs(decided.rewards))
    places = [i for i, end in enumerate(decided.ends) if isinstance(end, ChosenPair)]
    facts = _facts(decided, places, config.choice.by)
    ids = decided.taken["id"].combine_chunks()
    holes = _ById(tables.holes, ids, ["image", *(["mask"] if hole else [])])
    images = {n: _ById(own, ids, ["image"]) for n, own in enumerate(tables.images.ledgers.values())}
    for start in range(0, len(places), PAIRS_A_PART):
        some = facts[start : start + PAIRS_A_PART]
        at = places[start : start + PAIRS_A_PART]
        around = holes.rows(at)
        found: dict[tuple[int, int], bytes] = {}
        for number in images:
            own = [
                place
                for place, fact in zip(at, some, strict=True)
                if number in (fact["candidate_chosen"], fact["candidate_rejected"])
            ]
            rows = images[number].rows(own)
            found |= {(place, number): row["image"] for place, row in rows.items()}
        for place, fact in zip(at, some, strict=True):
            photograph = around[place]["image"]
            for side in ("chosen", "rejected"):
                number = fact[f"candidate_{side}"]
                png = photograph["bytes"] if number == PHOTOGRAPH else found[place, number]
                fact[side] = {"bytes": png, "path": f"{fact['key'][:16]}_{side}.png"}
            fact["source"] = photograph if hole else None
            fact["mask"] = around[place]["mask"] if hole else None
        yield pa.Table.from_pylist(some, schema=schema)


def _facts(decided: Decided, places: Sequence[int], rule: str) -> list[Row]:
    """All of the pairs but their images."""
    facts: list[Row] = []
    about = decided.taken.to_pylist()
    for place in places:
        end = decided.ends[place]
        assert isinstance(end, ChosenPair)
        row: Row = {**about[place], "rule": rule}
        for side, number in (("chosen", end.chosen), ("rejected", end.rejected)):
            scored = number != PHOTOGRAPH
            row[f"candidate_{side}"] = number
            row[f"score_{side}"] = _known(decided.rules_HN[place, number]) if scored else None
            for name, score in zip(decided.rewards, decided.scores_HNR[place, number], strict=True):
                row[f"score_{name}_{side}"] = _known(score) if scored else None
        facts.append(row)
    gaps = [
        row["score_chosen"] - row["score_rejected"]
        for row in facts
        if row["score_chosen"] is not None
    ]
    mean = math.fsum(gaps) / max(1, len(gaps))
    for row, gap in zip(facts, gaps, strict=False):  # all have one, or none
        row["gap"] = gap / mean if mean > 0 else None
    return facts


class _ById:
    """Rows of a ledger by place among ids; the ids of its parts are read once.

    Args:
        ledger: the ledger.
        ids: ids by place; all are in the ledger.
        columns: those read.
    """

    def __init__(self, ledger: Ledger, ids: pa.Array, columns: Sequence[str]) -> None:
        self.ledger, self.ids, self.columns = ledger, ids, columns
        self.parts = ledger.parts()
        self.part_of = np.full(len(ids), -1, np.int32)
        for number, part in enumerate(self.parts):
            found = pc.index_in(ledger.part(part, ["id"])["id"].combine_chunks(), value_set=ids)
            self.part_of[found.drop_null().to_numpy()] = number

    def rows(self, places: Sequence[int]) -> dict[int, Row]:
        """The rows at some places."""
        by_id = {self.ids[place].as_py(): place for place in places}
        where = pc.field("id").isin(pa.array(list(by_id), pa.string()))
        found: dict[int, Row] = {}
        for number in np.unique(self.part_of[list(places)]):
            table = self.ledger.part(self.parts[number], ["id", *self.columns], where=where)
            found |= {by_id[row["id"]]: row for row in table.to_pylist()}
        return found


def _known(score: float) -> float | None:
    return float(score) if math.isfinite(score) else None
