"""The ledger: nothing half-written is seen, nothing finished is lost, nothing counts twice."""

import json
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from raypref.core.ledger import Ledger, join, read_bytes, write_bytes

SETTINGS = {"train.stage1.lr": 1e-4, "seeds": (1, 2), "name": "ü"}


def rows(*ids: str, value: int = 0) -> pa.Table:
    """Finished rows."""
    return pa.table({"id": pa.array(ids, pa.string()), "value": [value] * len(ids)})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "new" / "work"), SETTINGS)


def test_the_four_states(ledger):
    assert ledger.state() == "absent"
    ledger.begin()
    assert ledger.state() == "partial"
    ledger.write_part(rows("a"))
    assert ledger.state() == "partial"
    ledger.commit(expected=1, counts={"ok": 1})
    assert ledger.state() == "complete"
    other = Ledger(ledger.path, SETTINGS | {"train.stage1.lr": 2e-4})
    assert other.state() == "stale"
    ledger.clear()
    assert ledger.state() == other.state() == "absent"
    ledger.clear()  # there is nothing left, and that is well


def test_a_ledger_read_by_settings_that_went_through_json_is_the_same(ledger):
    ledger.begin()
    again = Ledger(ledger.path, json.loads(json.dumps(SETTINGS)))
    assert again.state() == "partial"


def test_stale_work_tells_each_changed_setting_and_is_never_begun_again(ledger):
    ledger.begin()
    other = Ledger(ledger.path, {"train.stage1.lr": 2e-4, "seeds": (1, 2), "new": True})
    assert other.changes() == [
        "name: 'ü' -> '(absent)'",
        "new: '(absent)' -> True",
        "train.stage1.lr: 0.0001 -> 0.0002",
    ]
    assert ledger.changes() == []
    with pytest.raises(AssertionError, match="other work"):
        other.begin()


def test_begin_twice_keeps_what_was_done(ledger):
    ledger.begin()
    ledger.write_part(rows("a"))
    before = (Path(ledger.path) / ".started.json").stat().st_mtime_ns
    ledger.begin()
    assert ledger.done_ids() == {"a"}
    assert (Path(ledger.path) / ".started.json").stat().st_mtime_ns == before


def test_done_ids_grow_part_by_part_and_the_table_is_sorted_by_id(ledger):
    ledger.begin()
    assert ledger.done_ids() == set()
    ledger.write_part(rows("c", "a", value=1))
    ledger.write_part(rows("d", "b", value=2))
    assert ledger.done_ids() == {"a", "b", "c", "d"}
    expected = {"id": ["a", "b", "c", "d"], "value": [1, 2, 1, 2]}
    assert ledger.table().to_pydict() == expected
    assert ledger.table(["value"]).to_pydict() == expected
    assert ledger.table(["id"]).to_pydict() == {"id": expected["id"]}
    assert sorted(ledger.rows(), key=lambda row: row["id"]) == ledger.table().to_pylist()
    assert ledger.schema().names == ["id", "value"]


def test_parts_open_elsewhere(ledger):
    ledger.begin()
    name = ledger.write_part(rows("a", "b"))
    assert ledger.parts() == [name]
    assert pq.read_table(Path(ledger.path) / name).equals(rows("a", "b"))
    assert ledger.part(name).equals(rows("a", "b"))
    where = pc.field("id") > "a"
    assert ledger.part(name, ["value", "id"], where=where).to_pydict() == {
        "value": [0],
        "id": ["b"],
    }
    assert ledger.count() == 2 and ledger.count(where) == 1
    assert [row["id"] for row in ledger.rows(["id"], where=where)] == ["b"]


def test_a_part_has_the_name_it_is_given(ledger):
    ledger.begin()
    name = ledger.write_part(rows("a"), "part-000007.parquet")
    assert ledger.write_part(rows("b"), name) == name, "the same rows, made again"
    assert ledger.parts() == [name]
    assert ledger.table()["id"].to_pylist() == ["b"]


def test_rejects_are_counted_by_reason(ledger):
    ledger.begin()
    for ids, reasons in ((["a", "b"], [None, "empty"]), (["c", "d", "e"], ["empty", None, None])):
        ledger.write_part(pa.table({"id": ids, "reject_reason": pa.array(reasons, pa.string())}))
    assert ledger.reasons() == {"ok": 3, "empty": 2}


def test_the_same_part_twice_changes_nothing(ledger):
    ledger.begin()
    assert ledger.write_part(rows("a", "b")) == ledger.write_part(rows("a", "b"))
    assert len(ledger.parts()) == 1
    ledger.commit(expected=2, counts={})
    assert ledger.table()["id"].to_pylist() == ["a", "b"]


def test_parts_of_different_ids_never_share_a_name(ledger):
    names = {ledger.write_part(rows(*ids)) for ids in (("a", "b"), ("ab",), ("a",), ("b",), ())}
    assert len(names) == len(ledger.parts()) == 5


# In the last cases what is left of one part may have the very ids of another; which is looked at
# first depends on their hashes, hence eight of them.
@pytest.mark.parametrize(
    "parts",
    [
        [("a", "b"), ("b", "c")],
        [("a", "b", "c"), ("b",)],
        [("a", "b"), ("b", "a")],
        *([(f"x{i}", f"y{i}"), (f"x{i}",), (f"y{i}",)] for i in range(8)),
    ],
)
def test_repeated_rows_are_dropped_and_none_is_lost(ledger, parts):
    ledger.begin()
    for ids in parts:
        ledger.write_part(rows(*ids))
    distinct = sorted({id_ for ids in parts for id_ in ids})
    ledger.drop_repeated_rows()
    ledger.commit(expected=len(distinct), counts={})
    assert ledger.table()["id"].to_pylist() == distinct
    assert ledger.manifest()["rows"] == len(distinct)
    assert ledger.parts() == ledger.manifest()["parts"]


def test_what_a_killed_writer_left_is_gone_from_a_complete_ledger(ledger):
    ledger.begin()
    ledger.write_part(rows("a"))
    below = Path(ledger.path) / "unet"
    below.mkdir()
    left = [at / f".{name}.{uuid4().hex}" for at in (below, below.parent) for name in ("a", ".b")]
    kept = below / ".b.json"
    for file in (*left, kept):
        file.write_bytes(b"half")
    ledger.commit(expected=1, counts={})
    assert not [file for file in left if file.exists()] and kept.exists()
    assert ledger.state() == "complete" and ledger.count() == 1


@pytest.mark.parametrize("expected", [1, 3])
def test_a_wrong_number_of_rows_is_never_committed(ledger, expected):
    ledger.begin()
    ledger.write_part(rows("a", "b"))
    with pytest.raises(AssertionError, match=f"2 rows finished, {expected} expected"):
        ledger.commit(expected=expected, counts={})
    assert ledger.state() == "partial"


def test_the_manifest_says_what_is_there(ledger):
    ledger.begin()
    name = ledger.write_part(rows("a"))
    ledger.commit(expected=1, counts={"ok": 1})
    manifest = ledger.manifest()
    assert manifest["counts"] == {"ok": 1}
    assert manifest["parts"] == [name]
    assert manifest["fingerprint"] == ledger.fingerprint
    assert manifest["settings"] == json.loads(json.dumps(SETTINGS))


DIES_WHILE_WRITING = """
import pickle, resource, signal, sys
import numpy as np, pyarrow as pa
ledger = pickle.loads(bytes.fromhex(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
noise = np.random.default_rng(0).bytes(1_000_000)
ledger.write_part(pa.table({"id": ["a"], "value": [noise]}))
"""


def test_a_writer_that_dies_in_the_middle_leaves_nothing_that_is_read(ledger):
    """The kernel kills the process at byte 10,000 of a part of a megabyte."""
    ledger.begin()
    ledger.write_part(rows("b"))
    code, argument = DIES_WHILE_WRITING, pickle.dumps(ledger).hex()
    root = Path(__file__).parents[1]
    died = subprocess.run([sys.executable, "-c", code, argument], cwd=root, capture_output=True)
    assert died.returncode < 0, died.stderr.decode()
    known = {".started.json", *ledger.parts()}
    (leftover,) = [p for p in Path(ledger.path).iterdir() if p.name not in known]
    assert 0 < leftover.stat().st_size <= 10_000
    assert ledger.done_ids() == {"b"}
    ledger.write_part(rows("a"))
    ledger.commit(expected=2, counts={})
    assert ledger.table()["id"].to_pylist() == ["a", "b"]
    assert not leftover.exists()
    assert sorted(path.name for path in Path(ledger.path).glob("*.parquet")) == ledger.parts()


def test_a_file_is_replaced_whole_and_read_back(tmp_path):
    path = join(f"{tmp_path}/", "deep", "file.bin")
    assert read_bytes(path) is None
    write_bytes(path, b"first, and longer")
    write_bytes(path, b"second")
    assert read_bytes(path) == b"second"
    assert read_bytes(str(tmp_path)) is None, "a folder is no file"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["file.bin"]


def test_a_uri_is_the_same_ledger(ledger):
    uri = Ledger(Path(ledger.path).as_uri(), SETTINGS)
    uri.begin()
    uri.write_part(rows("a"))
    assert ledger.state() == "partial"
    ledger.commit(expected=1, counts={})
    assert uri.state() == "complete"
    assert uri.table().equals(ledger.table())
    assert uri.part(uri.parts()[0]).equals(rows("a"))


def test_a_relative_path_is_below_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Ledger("runs/x", {}).begin()
    assert (tmp_path / "runs" / "x" / ".started.json").is_file()


def _write_from_elsewhere(ledger: Ledger, id_: str) -> str:
    return ledger.write_part(rows(id_))


def test_other_processes_write_into_the_same_ledger(ledger):
    ledger.begin()
    ids = ["a", "b", "c"]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        names = list(pool.map(_write_from_elsewhere, [ledger] * 3, ids))
    assert ledger.parts() == sorted(names)
    ledger.commit(expected=3, counts={})
    assert ledger.table()["id"].to_pylist() == ids
