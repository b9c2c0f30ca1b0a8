"""A curriculum by gap: which rows are open when, and that nothing else changes."""

from collections import Counter

import pytest
import torch
from training import pairs, run, training

from raypref.align import curriculum
from raypref.align.loop import _draw_of
from raypref.align.pair_data import PairData
from raypref.core.config import results_of

STAGE = training(
    "dpo", curriculum="easy_first", curriculum_start=0.2, curriculum_end=0.5, steps=100, batch=5
)


def test_the_share_that_is_open_grows_linearly_to_all() -> None:
    counts = [curriculum.opened(STAGE, step, 1000) for step in range(100)]
    assert counts[0] == 200
    assert counts[25] == 600
    assert counts == sorted(counts)
    assert counts[49] < 1000
    assert counts[50:] == [1000] * 50
    assert curriculum.opened(STAGE, 0, 3) == 1, "one row at least"


def test_the_easiest_are_those_of_the_largest_gap_and_then_the_first() -> None:
    gaps = torch.tensor([1.0, 3.0, 2.0, 3.0], dtype=torch.float64)
    data = PairData(torch.zeros(4, 2, 2, 2, 4, 8, 8), pairs().embeddings, pairs().unconditional)
    data.facts["gap"] = gaps  # type: ignore[index]
    assert curriculum.easiest_first(data).tolist() == [1, 3, 2, 0]


@pytest.mark.parametrize("rows, share", [(100, 0.2), (97, 0.31), (10, 0.25)])
def test_an_epoch_visits_the_open_rows_equally_often(rows: int, share: float) -> None:
    update = {"curriculum_start": share, "curriculum_end": 1.0, "steps": 10**9, "batch": rows}
    stage = STAGE.model_copy(update=update)
    easiest_N = torch.randperm(rows, generator=torch.Generator().manual_seed(1))
    epoch = [_draw_of(i, 0, stage, rows, name="x", seed=0) for i in range(rows)]
    made = curriculum.reordered(epoch, easiest_N, stage, step=0)
    visits = Counter(draw.pair for draw in made)
    count = curriculum.opened(stage, 0, rows)
    assert set(visits) == set(easiest_N[:count].tolist())
    assert max(visits.values()) - min(visits.values()) <= 1
    assert [draw.generator for draw in made] == [draw.generator for draw in epoch]


def test_once_all_are_open_the_order_is_the_usual_one() -> None:
    usual = [_draw_of(i, 60, STAGE, 10, name="x", seed=0) for i in range(5)]
    assert curriculum.reordered(usual, torch.arange(10).flip(0), STAGE, step=60) == usual


def test_with_all_open_from_the_start_it_is_the_training_without(tmp_path) -> None:
    stage = STAGE.model_copy(update={"steps": 3, "batch": 2, "curriculum_start": 1.0, "lr": 1e-3})
    plain = stage.model_copy(update={"curriculum": "off"})
    ours, theirs = run(stage, str(tmp_path / "on")), run(plain, str(tmp_path / "off"))
    assert [row["loss"] for row in ours] == [row["loss"] for row in theirs]


def test_off_it_leaves_fingerprints_and_columns_as_they_were() -> None:
    off = training("dpo")
    new = {"curriculum", "curriculum_start", "curriculum_end", "reference_decay"}
    assert not {f"t.{key}" for key in new} & set(results_of({"t": off}))
    assert off.columns == ()
    assert STAGE.columns == ("gap",)
