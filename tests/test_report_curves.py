"""What the page says of a training's curves: by what its rejected side is."""

import html
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_runs import gather, make, scene

from raypref.core.config import load
from raypref.core.ledger import Ledger
from raypref.report import headline
from raypref.report.page import render
from raypref.report.views import ReportData, TrainingView
from raypref.run.config import RunConfig
from raypref.run.page import on_own_samples
from raypref.run.pipeline import Run

COLUMNS = ("loss", "chosen_gap", "rejected_gap", "ref_rejected", "diff", "implicit_accuracy")


def page_of(*, own_samples: bool) -> str:
    metrics = pd.DataFrame({"step": np.arange(1, 6), **{n: np.linspace(0, 1, 5) for n in COLUMNS}})
    view = TrainingView(name="stage 1", metrics=metrics, own_samples=own_samples)
    text = render(ReportData(title="t", subtitle="s", config_toml="", training=[view]))
    section = text.split('<section id="training">')[1].split("</section>")[0]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", section)).split())


def test_pairs_have_rejected_images() -> None:
    said = page_of(own_samples=False)
    assert "rejected images should rise" in said
    assert "error of the reference on the rejected ones" in said
    assert "own samples" not in said


def test_a_policy_s_own_samples_are_no_rejected_images() -> None:
    said = page_of(own_samples=True)
    assert "chosen images should fall below the policy's own samples" in said
    assert "error of the reference on the policy's own samples" in said
    assert "rejected images" not in said and "rejected ones" not in said


def test_further_curves_are_counted_not_listed() -> None:
    assert "3 more curves" in page_of(own_samples=False)


@pytest.mark.parametrize(("objective", "own"), [("dro", True), ("spin", True), ("dpo", False)])
def test_which_trainings_draw_their_rejected_side(objective: str, own: bool) -> None:
    words = ["trainings=mine", f"train.mine.objective={objective}"]
    assert on_own_samples(Run(load(RunConfig, "tiny", words))) == (["mine"] if own else [])


def test_trainings_of_earlier_pairs_are_named_not_shown(tmp_path: Path) -> None:
    data = make(tmp_path, [(scene(i, 64), f"prompt {i}") for i in range(3)], pairs=4)
    assert [view.name for view in data.training] == ["stage 1", "stage 1 + stage 2"]
    assert data.earlier == [] and headline.progress(data) == ""
    Ledger(str(tmp_path / "stage1"), {"pairs": "earlier"}).begin()
    again = gather(tmp_path, Ledger(str(tmp_path / "pairs"), {"pairs": 4}))
    assert [view.name for view in again.training] == ["stage 1 + stage 2"]
    assert not any("stage1/" in link.text for link in again.links)
    assert headline.progress(again) == "Not shown, of earlier pairs or settings: stage 1."
