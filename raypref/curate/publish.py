"""What curation leaves for people: tables of photos, rejects and pairs, each with its card."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from raypref.core.config import InputError
from raypref.core.ledger import Ledger, part_name
from raypref.core.rows import IMAGE, REJECT, Row
from raypref.curate.captions import SOURCE
from raypref.curate.cards import Provenance, write_cards
from raypref.curate.rescore import QUICK
from raypref.curate.select import SOUND, Ranking

PHOTOS = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.string()),
        ("uri", pa.string()),
        ("caption", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("colorfulness", pa.float64()),
        ("pickscore", pa.float32()),
        ("status", pa.string()),  # pair, not_selected or rejected
        ("reason", pa.string()),  # null for a pair
    ]
)
REJECTS = pa.schema([(name, pa.string()) for name in ("id", "uri", "stage", "reason", "message")])
PAIRS = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.string()),
        ("prompt", pa.string()),
        ("chosen", IMAGE),  # the photograph
        ("rejected", IMAGE),  # its degraded twin
        ("mask", IMAGE),  # where it was repainted, for people
        ("pickscore_chosen", pa.float32()),
        ("pickscore_rejected", pa.float32()),
        ("colorfulness", pa.float64()),
        ("rank", pa.int32()),
    ]
)
PAIRS_A_PART = 64
ROWS_A_PART = 100_000  # without images


class CuratedLedgers(NamedTuple):
    """The complete ledgers of a curation."""

    measured: Ledger
    scored: Ledger
    twins: Ledger
    rescored: Ledger | None = None  # exact scores of some of those scored

    def exact_scores(self, tried: Collection[str]) -> dict[str, float]:
        """The exact PickScores, by id, of photographs whose first ones are not.

        Of those tried, and those whose first score is no number. How many more were scored again
        depends on where a run was killed: these keep their first one.
        """
        rows = self.rescored.rows(["id", QUICK, "pickscore"], where=SOUND) if self.rescored else ()
        return {
            row["id"]: row["pickscore"]
            for row in rows
            if row["id"] in tried or not math.isfinite(row[QUICK])
        }


def publish(
    made: CuratedLedgers,
    ranking: Ranking,
    repeated: Mapping[str, str],
    *,
    photos: Ledger,
    rejects: Ledger,
    pairs: Ledger,
    origin: Provenance,
) -> Counter[str]:
    """Write the tables and commit their ledgers.

    Args:
        made: what was measured, scored and made.
        ranking: what became of the pairs that were made.
        repeated: ids of repeated content and the reason it gives.
        photos: every input with its facts and what became of it.
        rejects: inputs that were dropped, with the reason.
        pairs: the selected pairs, by rank.
        origin: for the dataset cards.

    Returns:
        How many inputs ended for each reason; "pair" for those selected.

    Raises:
        InputError: not one pair was left; says where the photographs were lost.
    """
    photos.begin()
    rejects.begin()
    counts: Counter[str] = Counter()
    all_parts = LargeParts(photos, _with_source(PHOTOS, made.measured))
    rejected_parts = LargeParts(rejects, REJECTS)
    exact = made.exact_scores(ranking.tried)
    for part in made.measured.parts():
        outcomes = list(_outcomes(made, part, ranking, repeated, exact))
        counts.update(row["reason"] or row["status"] for row in outcomes)
        all_parts.add(outcomes)
        rejected_parts.add([row for row in outcomes if row["status"] == "rejected"])
    total, unusable = all_parts.close(), rejected_parts.close()
    if not ranking.ranks:
        raise InputError(
            "no pair was left: " + ", ".join(f"{n} {reason}" for reason, n in counts.items())
        )
    pairs.begin()
    write_cards(origin, counts, photos=photos, rejects=rejects, pairs=pairs)
    photos.commit(expected=total, counts=counts)
    rejects.commit(expected=unusable, counts=counts)
    for number, table in enumerate(_pair_tables(made.twins, ranking.ranks)):
        pairs.write_part(table, part_name(f"{number:06d}"))
    pairs.commit(expected=len(ranking.ranks), counts=counts)
    return counts


def _with_source(schema: pa.Schema, of: Ledger) -> pa.Schema:
    """The columns of a table, and who wrote the captions where a model wrote some."""
    return schema.append(pa.field(SOURCE, pa.string())) if SOURCE in of.schema().names else schema


class LargeParts:
    """Rows of small parts on their way into larger ones, which people open."""

    def __init__(self, ledger: Ledger, schema: pa.Schema) -> None:
        self.ledger = ledger
        self.waiting = schema.empty_table()
        self.written = self.rows = 0

    def add(self, rows: list[Row]) -> None:
        """Write a part once there are enough."""
        more = pa.Table.from_pylist(rows, schema=self.waiting.schema)
        self.waiting = pa.concat_tables([self.waiting, more])
        if self.waiting.num_rows >= ROWS_A_PART:
            self._write()

    def close(self) -> int:
        """Write what is left and count all rows; an empty part tells readers the columns."""
        if self.waiting.num_rows or not self.written:
            self._write()
        return self.rows

    def _write(self) -> None:
        self.ledger.write_part(self.waiting, part_name(f"{self.written:06d}"))
        self.written += 1
        self.rows += self.waiting.num_rows
        self.waiting = self.waiting.schema.empty_table()


def _outcomes(
    made: CuratedLedgers,
    part: str,
    ranking: Ranking,
    repeated: Mapping[str, str],
    exact: Mapping[str, float],
) -> Iterator[Row]:
    """What became of each input of a part: its facts, `status` and `reason`."""
    columns = ["id", "pickscore", *REJECT.names]
    scored = {row["id"]: row for row in made.scored.part(part, columns).to_pylist()}
    for fact in made.measured.part(part).to_pylist():
        id_ = fact["id"]
        score = scored.get(id_, {"pickscore": None})
        row = {**fact, "pickscore": exact.get(id_, score["pickscore"])}
        # A file can change between two passes: any of them may reject it.
        failed = next(
            (r for r in (fact, score, ranking.rejected.get(id_, {})) if r.get("reject_reason")),
            None,
        )
        if failed is not None:
            stage, reason, message = (failed[name] for name in REJECT.names)
            row |= {"status": "rejected", "reason": reason, "stage": stage, "message": message}
        elif id_ in ranking.ranks:
            row |= {"status": "pair", "reason": None}
        else:
            row |= {"status": "not_selected", "reason": _reason(id_, ranking, scored, repeated)}
        yield row


def _reason(
    id_: str, ranking: Ranking, scored: Mapping[str, Row], repeated: Mapping[str, str]
) -> str:
    if id_ in repeated:
        return repeated[id_]
    if id_ not in scored:
        return "low_colorfulness"
    if id_ in ranking.failed:
        return ranking.failed[id_]
    if id_ in ranking.beyond:
        return "beyond_top_k"
    return "not_needed" if ranking.complete else "outside_pool"


def _pair_tables(twins: Ledger, ranks: Mapping[str, int]) -> Iterator[pa.Table]:
    """The pairs in rank order, a part at a time."""
    where = {
        id_: part for part in twins.parts() for id_ in twins.part(part, ["id"])["id"].to_pylist()
    }
    schema = with_features(_with_source(PAIRS, twins))
    best_first = sorted(ranks, key=ranks.__getitem__)
    for start in range(0, len(best_first), PAIRS_A_PART):
        ids = best_first[start : start + PAIRS_A_PART]
        rows: dict[str, Row] = {}
        # Rank order is nearly the order in which pairs were made: these lie in few parts.
        for part in {where[id_] for id_ in ids}:
            chosen = pc.field("id").isin(pa.array(ids, pa.string()))
            rows |= {row["id"]: row for row in twins.part(part, where=chosen).to_pylist()}
        yield pa.Table.from_pylist([_pair(rows[id_], ranks[id_]) for id_ in ids], schema=schema)


def _pair(row: Row, rank: int) -> Row:
    images = {
        name: {"bytes": row[name], "path": f"{row['key'][:16]}_{name}.png"}
        for name in ("chosen", "rejected", "mask")
    }
    scores = {"pickscore_chosen": row["pickscore"], "prompt": row["caption"], "rank": rank}
    return {**row, **images, **scores}


def with_features(schema: pa.Schema) -> pa.Schema:
    """The schema with what tells `datasets` which columns are images."""
    kinds = {
        pa.string(): "string",
        pa.float32(): "float32",
        pa.float64(): "float64",
        pa.bool_(): "bool",
    }
    features: dict[str, object] = {}
    for field in schema:
        if field.type == IMAGE:
            features[field.name] = {"_type": "Image"}
        else:
            features[field.name] = {"dtype": kinds.get(field.type, "int32"), "_type": "Value"}
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
