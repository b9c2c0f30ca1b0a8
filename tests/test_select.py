"""Selection against a slow reference, on random scores with many ties."""

import math
import random

import pytest

from raypref.curate.select import SelectConfig, drop_duplicates, mean_colorfulness, rank_pairs
from raypref.rows import Row


def candidates(rng: random.Random, count: int) -> list[Row]:
    """Scores on a coarse grid, so that equal scores and gaps on the limit are common."""
    return [
        {
            "id": f"{number:03d}",
            "pickscore_chosen": rng.randrange(8) / 4,
            "pickscore_rejected": rng.randrange(8) / 4,
        }
        for number in range(count)
    ]


def reference(rows: list[Row], *, min_gap: float, top_k: int) -> dict[str, int | str]:
    """The rule read aloud: a photograph's rank is how many that passed stand before it."""

    def passes(row: Row) -> bool:
        return row["pickscore_chosen"] - row["pickscore_rejected"] > min_gap

    def before(a: Row, b: Row) -> bool:
        better = a["pickscore_chosen"] - b["pickscore_chosen"]
        return better > 0 or (better == 0 and a["id"] < b["id"])

    outcome: dict[str, int | str] = {}
    for row in rows:
        rank = sum(passes(other) and before(other, row) for other in rows)
        chosen = rank if rank < top_k else "beyond_top_k"
        outcome[row["id"]] = chosen if passes(row) else "negligible_degradation"
    return outcome


@pytest.mark.parametrize("seed", range(30))
def test_ranks_are_those_of_the_reference_in_any_order(seed):
    rng = random.Random(seed)
    rows = candidates(rng, count=rng.randrange(40))
    min_gap, top_k = rng.randrange(-2, 3) / 4, rng.randrange(1, 20)
    expected = reference(rows, min_gap=min_gap, top_k=top_k)
    config = SelectConfig(min_gap=min_gap, top_k=top_k)
    for _ in range(3):
        rng.shuffle(rows)
        assert rank_pairs(rows, config) == expected


def test_a_gap_of_exactly_the_limit_is_negligible():
    rows = [
        {"id": "on", "pickscore_chosen": 1.5, "pickscore_rejected": 1.25},
        {"id": "above", "pickscore_chosen": 1.5, "pickscore_rejected": math.nextafter(1.25, 0)},
        {"id": "worse", "pickscore_chosen": 1.0, "pickscore_rejected": 2.0},
    ]
    ranks = rank_pairs(rows, SelectConfig(min_gap=0.25))
    assert ranks == {"on": "negligible_degradation", "above": 0, "worse": "negligible_degradation"}


def test_duplicates_are_the_same_bytes_with_the_same_caption():
    rows = [{"id": id_, "key": key} for id_, key in zip("dbeac", "xyxyz", strict=True)]
    for seed in range(10):
        random.Random(seed).shuffle(rows)
        assert drop_duplicates(rows) == {"e": "d", "b": "a"}


@pytest.mark.parametrize("seed", range(5))
def test_the_mean_does_not_depend_on_order_to_the_bit(seed):
    rng = random.Random(seed)
    rows = [{"colorfulness": rng.uniform(0, 100) * 10 ** rng.randrange(-9, 9)} for _ in range(500)]
    mean = mean_colorfulness(rows)
    assert mean == pytest.approx(sum(row["colorfulness"] for row in rows) / 500)
    orders = [rng.sample(rows, len(rows)) for _ in range(20)]
    assert {mean_colorfulness(order) for order in orders} == {mean}
    naive = {sum(row["colorfulness"] for row in order) for order in orders}
    assert len(naive) > 1, "the numbers do not show the difference"


def test_the_mean_of_nothing_is_no_error():
    assert mean_colorfulness([]) == 0
