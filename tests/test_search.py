"""Searches: what is drawn, once each, and what a resumed one goes on with."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from raypref.ablate import search, table
from raypref.ablate.plan import load_config

CHOICES = {"a": [1, 2, 3], "b": ["x", "y"]}
NUMBERS = {"a": {"low": 0.00012345, "high": 0.5, "log": True}, "b": {"low": 1, "high": 4}}


def described(space: dict[str, Any], *, by: str = "optuna", samples: int = 8) -> table.Search:
    return table.Search.model_validate({"space": space, "by": by, "samples": samples})


def drawn(searcher: search.Distinct, most: int) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = []
    for number in range(most):
        point = searcher.suggest(str(number))
        if point == Searcher.FINISHED:
            break
        points.append(point)
        searcher.on_trial_complete(str(number), {"pickscore": float(point["a"])})
    return points


def test_rungs_end_in_the_whole_budget():
    own = table.Search.model_validate({"space": {"a": [1]}, "rungs": 3, "factor": 2})
    assert own.budgets(80) == [20, 40, 80]
    assert own.budgets(2) == [1, 1, 2]


@pytest.mark.parametrize("by", ["optuna", "random"])
def test_a_resumed_search_goes_on_with_settings_it_did_not_draw(by, tmp_path):
    config = load_config("tiny", [])
    folder = tmp_path / "points"
    own = described(NUMBERS, by=by)
    first = drawn(search.settle(own, str(folder), config).search_alg, 3)
    remember(folder, first)
    (folder / ".half.json").write_text("{")
    again = drawn(search.settle(own, str(folder), config).search_alg, 8)
    assert again[:3] == first
    assert len({json.dumps(point) for point in again}) == 8


@pytest.mark.parametrize("by", ["optuna", "random"])
def test_each_of_few_settings_is_drawn_once_and_then_no_more(by):
    points = drawn(search.Distinct(described(CHOICES, by=by), [{"a": 3, "b": "y"}], seed=1), 8)
    assert points[0] == {"a": 3, "b": "y"}
    assert len(points) == len({json.dumps(point) for point in points}) == 6


def test_settings_outside_of_the_space_are_not_gone_on_with(tmp_path):
    remember(tmp_path, [{"a": 3, "b": "z"}, {"a": 3}, {"a": 2, "b": "y"}])
    searcher = search.settle(described(CHOICES), str(tmp_path), load_config("tiny", [])).search_alg
    assert drawn(searcher, 1) == [{"a": 2, "b": "y"}]


@pytest.mark.parametrize(("metric", "best"), [("pickscore", max), ("fid", min)])
def test_weak_settings_are_stopped_at_the_rungs(metric, best, tmp_path):
    own = table.Search.model_validate(
        {"space": {"a": [1]}, "samples": 8, "rungs": 3, "factor": 2, "metric": metric}
    )
    scheduler = search.settle(own, str(tmp_path), load_config("tiny", [])).scheduler
    reached = {}
    for value in (3, 6, 1, 8, 2, 7, 4, 5):
        trial = SimpleNamespace(trial_id=str(value), stopped=False)
        scheduler.on_trial_add(None, trial)
        for rung in range(3):
            reached[value] = share = own.factor**rung
            told = {metric: float(value), "share": share}
            if scheduler.on_trial_result(None, trial, told) != TrialScheduler.CONTINUE:
                break
    assert reached[best(reached)] == 4
    assert min(reached.values()) == 1


def test_settings_that_failed_have_no_value():
    searcher = search.Distinct(described(CHOICES), [], seed=0)
    searcher.suggest("failed")
    searcher.on_trial_complete("failed", {"pickscore": float("nan")})
    searcher.suggest("broke")
    searcher.on_trial_complete("broke", error=True)
    assert [trial.state.name for trial in searcher.study.trials] == ["FAIL", "FAIL"]


def remember(folder: Path, points: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    for number, point in enumerate(points):
        (folder / f"{number}.json").write_text(json.dumps(point))
