"""Passes of the engine in this process, without Ray: for tests of what is streamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from raypref.engine.stream import Selection, Streamed
from raypref.engine.worker import Branch, Worker, needs_of, shared_worker


def stream_here(
    rows: pa.Table | Selection, *, stages: Any, ledger: Any, keep: Any, config: Any
) -> Streamed:
    """As `stream`."""
    branch = Branch([], ledger, keep)
    return stream_branches_here(rows, label="", stages=stages, branches=[branch], config=config)


def stream_branches_here(
    rows: pa.Table | Selection,
    *,
    label: str,
    stages: Any,
    branches: Sequence[Branch],
    config: Any,
    runtime_env: Any = None,
) -> Streamed:
    """As `stream_branches`: what is there already is not made again."""
    for branch in branches:
        branch.ledger.begin()
    if isinstance(rows, pa.Table):
        done = set.intersection(*(branch.ledger.done_ids() for branch in branches))
        todo = rows.filter(
            pa.array([id_ not in done for id_ in rows["id"].to_pylist()], pa.bool_())
        )
        size = config.block_rows
        blocks = [(todo.slice(start, size), None) for start in range(0, todo.num_rows, size)]
        schema = rows.schema
    else:
        there = set.intersection(*({*branch.ledger.parts()} for branch in branches))
        blocks = [(rows.part(name), name) for name in rows.parts() if name not in there]
        schema = rows.schema()
    need = shared_worker(needs_of([*stages, *(s for b in branches for s in b.stages)]))
    given = iter(blocks)
    worker = Worker(lambda block: next(given), stages, branches, schema, need)
    for _ in blocks:
        [answer] = worker(pa.table({"part": [""]})).to_pylist()
        assert not answer["no_room"] and not answer["refused"]
    expected = rows.num_rows if isinstance(rows, pa.Table) else rows.count()
    for branch, empty in zip(branches, worker.empty(), strict=True):
        if not branch.ledger.parts():
            branch.ledger.write_part(empty)
        branch.ledger.commit(expected=expected, counts=branch.ledger.reasons())
    return Streamed(branches[0].ledger.reasons(), 0.0)
