"""What the driver holds per photograph while it chooses pairs: arrays, no Python object per row."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raypref.core.ledger import Ledger
from raypref.engine.stream import Selection
from raypref.pairs import chosen
from raypref.pairs.choice import ChoiceConfig
from raypref.pairs.numbered import CandidateImages, GrowingGroup, rows_to_make

PHOTOGRAPHS, COUNT = 20_000, 2
PER_PHOTOGRAPH = 150  # bytes at most; a dict of three texts alone takes more than 400


@pytest.fixture(scope="module")
def taken() -> pa.Table:
    ids = [f"{number:08d}.jpg" for number in range(PHOTOGRAPHS)]
    return pa.table({"id": ids, "key": [f"{n:064d}" for n in range(PHOTOGRAPHS)], "prompt": ids})


def ledgers(folder: Path, taken: pa.Table, **columns: Any) -> dict[str, Ledger]:
    found = {}
    for number in range(COUNT):
        ledger = Ledger(str(folder / f"{number:02d}"), {})
        ledger.begin()
        own = {name: values[number] for name, values in columns.items()}
        ledger.write_part(pa.table({"id": taken["id"], **own}))
        found[f"{number:02d}"] = ledger
    return found


def peak(work: Callable[[], Any]) -> tuple[Any, float]:
    """What the work returns, and the bytes per photograph that Python held at most."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1] / PHOTOGRAPHS
    finally:
        tracemalloc.stop()


def test_pairs_are_chosen_in_arrays(taken, tmp_path):
    scores = np.random.default_rng(0).normal(size=(COUNT, PHOTOGRAPHS))
    scores[:, 7] = 1.0
    group = GrowingGroup(str(tmp_path), ledgers=ledgers(tmp_path, taken, bright=scores))
    candidates = SimpleNamespace(count=COUNT)
    config: Any = SimpleNamespace(candidates=candidates, choice=ChoiceConfig(by="bright"), seed=0)

    decided, held = peak(lambda: chosen.choose_pairs(taken, [group], ("bright",), config))
    assert held < PER_PHOTOGRAPH
    best = scores.argmax(axis=0)
    pairs = np.arange(PHOTOGRAPHS) != 7
    np.testing.assert_array_equal(decided.ends_H == chosen.ENDS.index(chosen.PAIR), pairs)
    np.testing.assert_array_equal(decided.sides_H2[pairs, 0], best[pairs])
    np.testing.assert_array_equal(decided.sides_H2[pairs, 1], 1 - best[pairs])

    # What became of every input, a part at a time; one was dropped for its hole.
    measured = Ledger(str(tmp_path / "measured"), {})
    nothing = pa.nulls(PHOTOGRAPHS + 1, pa.string())
    facts = pa.table({"id": [*taken["id"].to_pylist(), "lost.jpg"], "reject_reason": nothing})
    for start in range(0, facts.num_rows, 512):
        measured.write_part(facts.slice(start, 512))
    lost = pa.table({"id": ["lost.jpg"], "reject_reason": ["no_mask"]})

    def outcomes() -> tuple[int, int, int]:
        pairs = draws = dropped = 0
        for found in chosen._with_ends(Selection(measured), decided, lost):
            pairs += sum(own["end"] == chosen.PAIR for _, own in found)
            draws += sum(own["end"] == chosen.DRAW for _, own in found)
            dropped += sum(own.get("reject_reason") == "no_mask" for _, own in found)
        return pairs, draws, dropped

    ended, held = peak(outcomes)
    assert ended == (PHOTOGRAPHS - 1, 1, 1) and held < PER_PHOTOGRAPH


def test_a_pass_holds_no_names_of_what_is_made(taken, tmp_path):
    images = CandidateImages(str(tmp_path), ledgers=ledgers(tmp_path, taken))
    ids = taken["id"].combine_chunks()
    (made, done), held = peak(lambda: (images.made(ids), images.done_ids()))
    assert made.all() and not done and held < PER_PHOTOGRAPH
    made[3, 1] = made[5, 0] = False
    rows = rows_to_make(taken, ~made, block_rows=4)
    assert rows["id"].to_pylist() == ["01/00000003.jpg", "00/00000005.jpg"]
    assert rows["candidate"].to_pylist() == [1, 0]
    assert rows_to_make(taken, np.zeros_like(made), block_rows=64).num_rows == 0
