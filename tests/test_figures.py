"""Figures that compare models: which are drawn from which tables, and where their marks lie."""

import math
import re

import numpy as np
import pandas as pd
import pytest

from raypref.evaluate import statistics, tables
from raypref.report import figures
from raypref.report.compared import compared


def summary(means: dict[tuple[str, str], float]) -> pd.DataFrame:
    nothing = [math.nan] * 3
    rows = [(m, k, v, v - 1, v + 1, *nothing, 9, 9, 0) for (m, k), v in means.items()]
    return pd.DataFrame(rows, columns=list(statistics.SUMMARY))


def by_category(groups: list[str]) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    parts = [
        summary({("base", "pickscore"): rng.normal(20), ("both", "pickscore"): rng.normal(21)})
        for _ in groups
    ]
    for group, part in zip(groups, parts, strict=True):
        part.insert(0, "group", group)
        part.insert(0, "grouping", "category")
    return pd.concat(parts)


FIGURE_2A = {
    ("base", "texture_detail"): 1832.0,
    ("base", "realism"): -0.041,
    ("both", "texture_detail"): 2354.0,
    ("both", "realism"): -0.009,
}


def test_figure_2a_with_the_papers_points() -> None:
    table = summary(FIGURE_2A)
    first, *others = compared(table, None, tables.published("figure2a"), {})
    assert first.title == "Texture detail against Realism"
    assert "Realism against Texture detail: base -0.041, 1832" in first.drawing  # x, then y
    of_paper = ("base", "Diffusion-DPO", "Diffusion-KTO", "InPO", "Diffusion-DPO + ours")
    for method in of_paper:
        assert f"{method}, paper -0." in first.drawing
    assert [figure.title for figure in others] == ["Texture detail", "Realism"]


def test_figure_2b_needs_someone_to_score_stylization() -> None:
    means = {("base", "human_preference"): 0.0, ("both", "human_preference"): 1.0}
    titles = [figure.title for figure in compared(summary(means), None, {}, {})]
    assert titles == ["Human preference"]
    styles = {("base", "stylization"): 0.357, ("both", "stylization"): 0.305}
    first, *_ = compared(summary(means | styles), None, {}, {})
    assert first.title == "Stylization against Human preference"


@pytest.mark.parametrize(("count", "drawn"), [(2, 0), (3, 1), (12, 1), (40, 0)])
def test_a_radar_where_spokes_can_be_told_apart(count: int, drawn: int) -> None:
    table = summary({("base", "pickscore"): 20.0, ("both", "pickscore"): 21.0})
    groups = [f"group {i}" for i in range(count)]
    titles = [figure.title for figure in compared(table, by_category(groups), {}, {})]
    assert titles.count("PickScore by category") == drawn


def test_a_distance_that_could_not_be_had_is_not_drawn() -> None:
    nothing = {("base", "cmmd"): math.nan, ("both", "cmmd"): math.nan}
    assert list(compared(summary(nothing), None, {}, {})) == []
    means = {("base", "deqa"): 3.0, ("both", "deqa"): 4.0}
    assert [f.title for f in compared(summary(means | nothing), None, {}, {})] == ["DeQA"]


def test_one_model_compares_with_nothing() -> None:
    assert list(compared(summary({("base", "pickscore"): 20.0}), None, {}, {})) == []


def test_drawings_take_the_pages_colours_and_say_their_numbers() -> None:
    bars = [figures.Bar("base", 20.0, math.nan, math.nan), figures.Bar("a $b", 21.0, 20.5, 21.5)]
    lines = [figures.Line("base", [1.0, 2.0, 3.0]), figures.Line("both", [2.0, 1.0, math.nan])]
    drawings = [
        figures.bars("PickScore", bars, digits=2),
        figures.radar("PickScore", ["<x>", "y", "z"], lines),
        figures.scatter("x", "y", [figures.Point("base", 1, 2), figures.Point("b", 1, 2, True)]),
    ]
    for drawing in drawings:
        assert drawing.startswith("<svg viewBox=") and 'role="img"' in drawing
        assert not re.search(r"#0[1-7]0", drawing) and "var(--" in drawing
    assert "PickScore: base 20.00; a $b 21.00" in drawings[0] and "a $b" in drawings[0]
    assert "&lt;x&gt;" in drawings[1] and "<x>" not in drawings[1]
