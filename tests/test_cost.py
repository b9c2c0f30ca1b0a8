"""The model of curation's cost in `benchmarks/cost.py`, against figures worked out by hand."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

COST = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "cost.py"))


def test_a_million_photographs_to_the_papers_512_pairs() -> None:
    found = COST["cost"](1e6, 512.0, score=1 / 300, pair=0.6)
    made = 512 * 10475 / 4041 + 128  # 1,455
    assert found.made == pytest.approx(made)
    assert found.read == pytest.approx((1_500_000 + made) * 100e3)
    assert found.cpu == pytest.approx(1_000_000 / 120 + (500_000 + made) * 0.0085 + made * 0.106)
    assert found.gpu == pytest.approx(500_000 / 300 + made * 0.6)


def test_the_slowest_resource_of_a_pass_decides_its_time() -> None:
    hardware = COST["Hardware"](
        "ours", 100, 4, 1, "GPU", look=0.01, crop=0.02, score=0.01, pair=1.0, read=1e9, hour=8.0
    )
    hardware = hardware._replace(pair_cpu=0.5)
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
    held = hardware._replace(score_lock=0.03, pair_lock=0.25, readers=8)
    _, _, score, pairs, _ = COST["passes"](1e6, 1e4, held)
    # What the CPU does while the device is held comes on top of the device's own time.
    assert (score.seconds, score.bound) == (pytest.approx(60 + 500_000 * 0.04 / 4 / share), "GPU")
    assert pairs.seconds == pytest.approx(60 + made * 1.25 / 4 / share)


def test_quick_scores_cost_those_that_are_scored_again() -> None:
    exact = COST["Hardware"](
        "ours", 100, 4, 100, "GPU", look=0.01, crop=0.01, score=0.01, pair=1, read=1e12, hour=8
    )
    quick = exact._replace(score=0.001, again=0.01)
    times = [COST["passes"](1e6, 500, on)[2].seconds - 60 for on in (exact, quick)]
    again = 8 * 500 + 1024
    assert times[1] / times[0] == pytest.approx((500_000 * 0.001 + again * 0.01) / 5_000)
    few = COST["passes"](2000, 500, quick)[2].seconds - 60  # all of a thousand are scored again
    assert few == pytest.approx(1000 * 0.011 / 4 / COST["EFFICIENCY"])


def test_figures_of_a_card_replace_predictions(tmp_path: Path) -> None:
    def figure(section: str, name: str, variant: str, value: object) -> str:
        line = {"section": section, "name": name, "variant": variant, "value": value}
        return json.dumps(line | {"size": "full", "card": "a card", "time": "2027-01-02T03:04:05Z"})

    results = tmp_path / "results.jsonl"
    lines = [
        figure("score", "PickScores", "float32, batch 32", 100),
        figure("score", "PickScores", "float32, batch 128", 125),
        figure("score", "PickScores", "TF32, batch 32", 500),
        figure("inpaint", "device time per twin", "batch 8", 0.5),
        figure("inpaint", "device time per twin", "batch 64", "failed"),
        figure("inpaint", "device time per twin", "compiled UNet", 0.1),
    ]
    results.write_text("\n".join(lines))
    card = COST["measured"](results)
    assert card == (1 / 125, 1 / 500, 0.5, "a card, measured 2027-01-02")
    results.write_text(lines[0])
    with pytest.raises(SystemExit, match=r"no figure 'PickScores' \[TF32...\]; run gpu.py build"):
        COST["measured"](results)


def test_the_tables_of_the_page_are_those_of_the_script() -> None:
    page = (Path(__file__).parents[1] / "docs" / "cost.md").read_text(encoding="utf-8")
    card = COST["CARDS"]["H100"]
    assert "\n".join([*COST["hours_and_bytes"](card.score, card.pair)][1:]) in page
    assert "\n".join(COST["time_and_money"](COST["of_cards"](COST["CARDS"]))) in page
