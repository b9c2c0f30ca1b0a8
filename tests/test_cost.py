"""The model of curation's cost in `benchmarks/cost.py`, against figures worked out by hand."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

COST = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "cost.py"))


def test_a_million_photographs_to_the_papers_512_pairs() -> None:
    found = COST["cost"](1e6, 512.0, score=1 / 300, pair=0.6)
    made = 512 * 10475 / 4041 + 128  # 1,455
    assert found.made == pytest.approx(made)
    assert found.read == pytest.approx((1_500_000 + made) * 100e3)
    assert found.cpu == pytest.approx(1_000_000 / 120 + (500_000 + made) / 60)
    assert found.gpu == pytest.approx(500_000 / 300 + made * 0.6)


def test_the_slowest_resource_of_a_pass_decides_its_time() -> None:
    hardware = COST["Hardware"](
        "ours", 100, 4, 1, "GPU", look=0.01, crop=0.02, score=0.01, pair=1.0, read=1e9, hour=8.0
    )
    share = COST["EFFICIENCY"]
    listed, look, score, pairs, tables = COST["passes"](1e6, 1e4, hardware)
    # 1e6 x 100 kB at 1 GB/s are 100 s; 1e6 looks on 100 cores of 10 ms as well, less than reading.
    assert (listed.seconds, listed.bound) == (pytest.approx(100), "read")
    assert look.seconds == pytest.approx(100)
    # Half a million: 20 ms on one core of each of four workers outweigh 10 ms on their GPUs.
    assert (score.seconds, score.bound) == (pytest.approx(60 + 2500 / share), "decode")
    made = 1e4 * 10475 / 4041 + 4 * 128
    assert (pairs.seconds, pairs.bound) == (pytest.approx(60 + made / 4 / share), "GPU")
    assert (tables.seconds, tables.bound) == (pytest.approx(18 + 50), "driver")
