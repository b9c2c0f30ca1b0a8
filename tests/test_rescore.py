"""Pairs selected from quick scores, against those that scoring every photograph exactly selects.

`benchmarks/rescoring.py` does the same with more sets, and with photographs.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import rescoring
import small
import torch
from PIL import Image
from rescoring import CONFIG, FIRST, PRECISIONS, Case, reference, select, simulated

from raypref.curate import rescore
from raypref.curate.select import SelectConfig
from raypref.demo import photograph, world
from raypref.rewards.pickscore import PickScoreConfig

SETS = 8
PICKSCORE = {"model": str(small.path("pickscore")), "processor": str(small.path("pickscore"))}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rounding_is_that_of_the_precision(precision: str) -> None:
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    low = PRECISIONS[precision](values)
    if precision != "tf32":
        kind = getattr(torch, precision)
        np.testing.assert_array_equal(low, torch.from_numpy(values).to(kind).float().numpy())
    assert 0 < np.abs(low / values - 1).max() <= 2.0 ** -(8 if precision == "bfloat16" else 11)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_pairs_of_2000_photographs_are_those_of_exact_scores(precision, monkeypatch) -> None:
    monkeypatch.setattr(rescore, "SAMPLE", rescoring.SAMPLE)
    shares, differing = [], 0
    for seed in range(SETS):
        case = simulated(seed, rescoring.PHOTOGRAPHS, precision)
        wanted, made = reference(case, CONFIG), select(case, CONFIG, size=FIRST)
        assert made.pairs == wanted, f"seed {seed}"
        assert len(made.pairs) == CONFIG.top_k
        shares.append(made.rescored / rescoring.PHOTOGRAPHS)
        differing += reference(case._replace(exact=case.quick), CONFIG) != wanted
    assert max(shares) < 0.5, "far more were scored again than it takes"
    assert differing, "these scores do not show the difference"


@pytest.fixture(scope="module")
def photographs() -> tuple[list[Image.Image], list[str]]:
    """200 of the embedded world, with their captions."""
    scenes = world.sample_scenes(200, seed=5)
    images = [Image.fromarray(photograph.render_scene(s, seed=i)) for i, s in enumerate(scenes)]
    return images, [world.caption(scene) for scene in scenes]


@pytest.mark.parametrize("quick", ["tf32", "bfloat16", "float16"])
def test_the_pairs_of_200_photographs_of_the_embedded_world(
    quick, photographs, monkeypatch
) -> None:
    config, selecting = PickScoreConfig(**PICKSCORE, quick=quick), SelectConfig(top_k=20)
    case = rescoring.photographed(config, *photographs)
    monkeypatch.setattr(rescore, "SAMPLE", 40)
    assert select(case, selecting, size=30).pairs == reference(case, selecting)
    if quick != "tf32":  # a CPU has none
        by_quick = reference(case._replace(exact=case.quick), selecting)
        assert by_quick != reference(case, selecting)


def hand_made(**scores: tuple[float, float]) -> tuple[Case, SelectConfig]:
    """Quick and exact scores of a few photographs; every twin scores 0, all pairs are taken."""
    quick, exact = np.array(list(scores.values()), np.float32).T
    return Case(quick, exact, np.zeros_like(exact)), SelectConfig(top_k=len(scores), min_gap=0)


def test_selection_begins_again_where_a_photograph_belonged_to_an_earlier_wave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rescore.Rescoring, "_sample", lambda self: None)  # nothing known at first
    case, config = hand_made(a=(9, 9), b=(8, 8), c=(7, 5), d=(6, 8.5), e=(1, 1))
    made = select(case, config, size=2)
    assert made.pairs == reference(case, config)
    assert [id_ for id_, _ in made.pairs] == ["00000", "00003", "00001", "00002", "00004"]
    assert made.begun == 2, "the third shows that first scores may be off by 2"


def test_ties_and_scores_that_are_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescore, "SAMPLE", 2)
    nan = math.nan
    case, _ = hand_made(
        a=(5, 5), b=(5, 5), c=(nan, 5), d=(math.inf, 4), e=(6, nan), f=(3, 3), g=(-math.inf, 9)
    )
    for top_k in range(1, 7):
        for size in range(1, 5):
            config = SelectConfig(top_k=top_k, min_gap=0)
            kept = [p for p in reference(case, SelectConfig(min_gap=0)) if p[0] != "00004"]
            assert select(case, config, size=size).pairs == kept[:top_k]
