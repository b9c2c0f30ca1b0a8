"""Ledgers that are filled together and stand alone: what is there is not made again."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from raypref.core.ledger import Ledger
from raypref.core.ledger_group import LedgerGroup
from raypref.core.rows import REJECT


def rows(*ids: str) -> pa.Table:
    facts = [{"id": i, "model": i.partition("/")[0]} | dict.fromkeys(REJECT.names) for i in ids]
    schema = pa.schema([("id", pa.string()), ("model", pa.string()), *REJECT])
    return pa.Table.from_pylist(facts, schema=schema)


def group(folder: Path, *models: str) -> LedgerGroup:
    own = {model: Ledger(str(folder / model), {"of": model}) for model in models}
    return LedgerGroup(str(folder), ledgers=own)


def test_a_mixed_block_goes_to_both(tmp_path: Path) -> None:
    both = group(tmp_path, "a", "b")
    both.begin()
    both.write_part(rows("a/1", "b/1", "a/2"))
    assert both.ledgers["a"].done_ids() == {"a/1", "a/2"}
    assert both.ledgers["b"].done_ids() == {"b/1"}
    assert both.done_ids() == {"a/1", "a/2", "b/1"} and both.count() == 3
    assert both.reasons() == Counter(ok=3)
    assert not both.complete()
    both.commit(expected=3, counts={})
    assert both.complete() and both.ledgers["a"].manifest()["rows"] == 2
    with pytest.raises(AssertionError, match="3 rows finished, 4 expected"):
        both.commit(expected=4, counts={})


def test_a_part_made_from_a_part_of_another_shelf_keeps_its_name(tmp_path: Path) -> None:
    images, scores = group(tmp_path / "images", "a", "b"), group(tmp_path / "scores", "a", "b")
    images.begin()
    images.write_part(rows("a/1", "b/1"))
    scores.begin()
    for name in images.parts():
        scores.write_part(images.part(name), name)
    assert scores.parts() == images.parts() and len(scores.parts()) == 2
    assert scores.ledgers["b"].done_ids() == {"b/1"}


def test_repeated_rows_go_and_the_table_is_model_by_model(tmp_path: Path) -> None:
    both = group(tmp_path, "b", "a")
    both.begin()
    both.write_part(rows("a/1", "b/1"))
    both.write_part(rows("a/1", "a/2"))
    assert both.count() == 4
    both.drop_repeated_rows()
    assert both.table(["model"])["id"].to_pylist() == ["b/1", "a/1", "a/2"]


def test_what_is_complete_beside_it_is_left_alone(tmp_path: Path) -> None:
    first = group(tmp_path, "a")
    first.begin()
    first.write_part(rows("a/1"))
    first.commit(expected=1, counts={})
    before = (tmp_path / "a" / ".manifest.json").stat().st_mtime_ns
    more = group(tmp_path, "a", "b")
    more.begin()
    more.write_part(rows("b/1"))
    more.commit(expected=2, counts={})
    assert more.complete()
    assert (tmp_path / "a" / ".manifest.json").stat().st_mtime_ns == before
    assert more.fingerprint != first.fingerprint


def test_it_keeps_what_a_ledger_promises(tmp_path: Path) -> None:
    """State, rows and clear speak of the ledgers, not of their folder."""
    both = group(tmp_path, "a", "b")
    assert both.state() == "absent"
    both.ledgers["a"].begin()
    assert both.state() == "partial"
    both.begin()
    both.write_part(rows("a/1", "b/1", "a/2"))
    assert [row["id"] for row in both.rows(["id"])] == ["a/1", "a/2", "b/1"]
    assert sum(batch.num_rows for batch in both.batches(["id"])) == both.count() == 3
    both.commit(expected=3, counts={})
    assert both.state() == "complete" and both.complete()
    assert {model: own["rows"] for model, own in both.manifest().items()} == {"a": 2, "b": 1}
    other = {"a": both.ledgers["a"], "b": Ledger(str(tmp_path / "b"), {"of": "another"})}
    stale = LedgerGroup(str(tmp_path), ledgers=other)
    assert stale.state() == "stale" and not stale.complete()
    assert stale.changes() == ["of: 'b' -> 'another'"]
    both.clear()
    assert (both.state(), both.parts(), both.count()) == ("absent", [], 0)


def test_every_public_method_of_a_ledger_is_its_own() -> None:
    """What is inherited would read files of a folder that has none."""
    public = {name for name in vars(Ledger) if not name.startswith("_")}
    inherited = public - {"settings", "path"} - set(vars(LedgerGroup))
    assert not inherited
