"""Several ledgers filled in one pass: one per model, so that adding a model touches no other's.

Workers load a diffusion model or a reward once and serve all models with it, while what each model
has is begun, resumed and complete by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raypref.core.fingerprints import fingerprint
from raypref.core.ledger import Ledger, State, Where


@dataclass(frozen=True)
class LedgerGroup(Ledger):
    """Ledgers that are written and read as one; a row goes to the one that its `model` names.

    A part is called `<model>/<its name in the model's ledger>`.

    Args:
        path: the folder that holds the ledgers.
        settings: of no ledger; leave it out.
        ledgers: by model. Model names hold no slash.
    """

    settings: Mapping[str, object] = field(default_factory=dict)
    ledgers: Mapping[str, Ledger] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the group's ledgers."""
        return fingerprint({name: ledger.fingerprint for name, ledger in self.ledgers.items()})

    def committed(self) -> bool:
        """Whether all were declared complete, under whatever settings."""
        return all(ledger.committed() for ledger in self.ledgers.values())

    def begun(self) -> dict[str, Any]:
        """By model, what `Ledger.begun` says."""
        return {name: ledger.begun() for name, ledger in self.ledgers.items()}

    def complete(self) -> bool:
        """Whether every ledger is."""
        return self.state() == "complete"

    def state(self) -> State:
        """That of all ledgers where they agree; stale where one is, else half done."""
        states = {ledger.state() for ledger in self.ledgers.values()}
        if len(states) == 1:
            return states.pop()
        return "stale" if "stale" in states else "partial"

    def of(self, models: Iterable[str]) -> LedgerGroup:
        """The ledgers of some models."""
        return LedgerGroup(self.path, ledgers={model: self.ledgers[model] for model in models})

    def unfinished(self) -> LedgerGroup | None:
        """Those that are not complete; None where all are."""
        left = [model for model, own in self.ledgers.items() if own.state() != "complete"]
        return self.of(left) if left else None

    def changes(self) -> list[str]:
        """For a stale one: which settings differ, of every stale ledger."""
        stale = [ledger for ledger in self.ledgers.values() if ledger.state() == "stale"]
        return [change for ledger in stale for change in ledger.changes()]

    def clear(self) -> None:
        """Remove everything in every ledger."""
        for ledger in self.ledgers.values():
            ledger.clear()

    def manifest(self) -> dict[str, Any]:
        """Of each model what its ledger's `commit` wrote."""
        return {model: ledger.manifest() for model, ledger in self.ledgers.items()}

    def begin(self) -> None:
        """Begin every ledger."""
        for ledger in self.ledgers.values():
            ledger.begin()

    def write_part(self, table: pa.Table, name: str | None = None) -> str:
        """Add finished rows, each to its model's ledger.

        Args:
            table: columns `id` and `model` are required.
            name: of a part of another group with the same models, whose rows these are.
        """
        if name is not None:
            model, _, own = name.partition("/")
            return f"{model}/{self.ledgers[model].write_part(table, own)}"
        written = ""
        for model, ledger in self.ledgers.items():
            rows = table.filter(pc.equal(table["model"], model))
            if rows.num_rows or not table.num_rows:
                written = f"{model}/{ledger.write_part(rows)}"
        return written

    def parts(self) -> list[str]:
        """Names of the parts of all."""
        return [f"{model}/{part}" for model, own in self.ledgers.items() for part in own.parts()]

    def has_part(self, name: str) -> bool:
        """Whether a part is there."""
        model, _, own = name.partition("/")
        return self.ledgers[model].has_part(own)

    def part(
        self, name: str, columns: Sequence[str] | None = None, *, where: Where = None
    ) -> pa.Table:
        """Rows of one part."""
        model, _, own = name.partition("/")
        return self.ledgers[model].part(own, columns, where=where)

    def count(self, where: Where = None) -> int:
        """How many rows are finished."""
        return sum(ledger.count(where) for ledger in self.ledgers.values())

    def reasons(self) -> Counter[str]:
        """Finished rows by the reason of their reject; "ok" for the others."""
        return sum((ledger.reasons() for ledger in self.ledgers.values()), Counter())

    def schema(self) -> pa.Schema:
        """Columns of the rows."""
        return next(iter(self.ledgers.values())).schema()

    def table(self, columns: Sequence[str] | None = None, *, where: Where = None) -> pa.Table:
        """All rows, model by model."""
        return pa.concat_tables(own.table(columns, where=where) for own in self.ledgers.values())

    def batches(self, columns: Sequence[str], *, where: Where = None) -> Iterator[pa.RecordBatch]:
        """Rows in the order of the parts, model by model, many at a time."""
        for ledger in self.ledgers.values():
            yield from ledger.batches(columns, where=where)

    def rows(
        self, columns: Sequence[str] | None = None, *, where: Where = None, batch_size: int = 64
    ) -> Iterator[dict[str, Any]]:
        """Rows in the order of the parts, model by model, a few in memory at a time."""
        for ledger in self.ledgers.values():
            if ledger.parts():
                yield from ledger.rows(columns, where=where, batch_size=batch_size)

    def done_ids(self) -> set[str]:
        """Ids of the rows that are finished."""
        return set().union(*(ledger.done_ids() for ledger in self.ledgers.values()))

    def commit(self, *, expected: int, counts: Mapping[str, int]) -> None:
        """Declare every ledger complete.

        Args:
            expected: how many rows there must be in all.
            counts: what became of all; each ledger keeps its own.
        """
        total = self.count()
        assert total == expected, f"{self.path}: {total} rows finished, {expected} expected"
        for ledger in self.ledgers.values():
            if ledger.state() != "complete":
                ledger.commit(expected=ledger.count(), counts=ledger.reasons())

    def drop_repeated_rows(self) -> None:
        """Keep one of rows that two parts have."""
        for ledger in self.ledgers.values():
            ledger.drop_repeated_rows()
