"""Open-ended sweeps on Ray Tune: settings are drawn, weak ones are stopped early.

Settings come from Optuna, by its TPE or at random; with rungs, ASHA decides by the evaluation at
each of them.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState
from pyarrow import fs as pafs
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from raypref.ablate.plan import AblateConfig, PlannedRow, check_search, plan_row
from raypref.ablate.sweep import (
    last_line,
    news_of_rows,
    rows_at_once,
    run_trials,
    share_of,
    wait_for,
)
from raypref.ablate.table import Range, Row, Search, Table
from raypref.align import checkpoints
from raypref.core.fingerprints import fingerprint
from raypref.core.ledger import absolute, filesystem, join, read_bytes, write_bytes
from raypref.evaluate.labels import lower_is_better
from raypref.run.pipeline import Run

log = logging.getLogger(__name__)

# Times that a setting known already is drawn again: by the sampler, then evenly over the space.
REDRAWS = {"sampler": 100, "random": 1000}


def search_rows(
    name: str, table: Table, config: AblateConfig, *, parent: str | None
) -> tuple[list[PlannedRow], dict[tuple[str, str], str]]:
    """Draw settings, run them rung by rung, stop the weak ones early.

    Settings that an earlier attempt drew come first; what they finished is not done again.

    Returns:
        A row for each setting, with the budget that it reached, and why others failed.
    """
    search = table.search
    assert search is not None
    budgets = search.budgets(check_search(search, config))
    folder = absolute(join(config.storage, config.run, name, "points"))
    rows: dict[str, PlannedRow] = {}
    failed: dict[tuple[str, str], str] = {}
    with news_of_rows() as news:
        at_once = rows_at_once(config, [])
        cores = share_of(at_once)

        def trial(point: dict[str, Any]) -> None:
            text = json.dumps(point, sort_keys=True)
            write_bytes(join(folder, f"{fingerprint(point)}.json"), text.encode())
            before: PlannedRow | None = None
            for rung, budget in enumerate(budgets):
                row = plan_point(name, point, search, budget, config)
                told: dict[str, float] | str = row.problem
                if row.config is not None:
                    if before is not None:
                        go_on(before.run, row.run, search.budget.split(".")[1])
                    label = f"{name} {row.label}"
                    told = wait_for(row.config, row.model, label, news, parent, cores)
                if isinstance(told, str):
                    # Wrong settings or data. Not raised: Tune would try the same again.
                    tune.report({search.metric: math.nan, "budget": budget, "reason": told})
                    return
                reached = {"budget": budget, "share": search.factor**rung}
                tune.report({**told, search.metric: told[search.metric], **reached})
                before = row

        how = settle(search, folder, config)
        how.max_concurrent_trials = at_once
        for result in run_trials(trial, {}, config, how):
            metrics = result.metrics or {}
            budget = metrics.get("budget", budgets[0])
            row = plan_point(name, result.config or {}, search, budget, config)
            rows[row.name] = row
            reason = metrics.get("reason")
            if result.error is not None:
                reason = last_line(result.error)
            if reason:
                failed[name, row.name] = reason
    return list(rows.values()), failed


def plan_point(
    name: str, point: Mapping[str, Any], search: Search, budget: int, config: AblateConfig
) -> PlannedRow:
    """The row of drawn settings at a rung."""
    told = ", ".join(f"{key}={value}" for key, value in point.items())
    label = f"{told}, {search.budget}={budget}"
    row = Row.model_validate({"name": label, "set": {**point, search.budget: budget}})
    return plan_row(name, row, config, seed=config.seed + config.training_seed)


def go_on(before: Run, after: Run, name: str) -> None:
    """Let a longer training continue a shorter one of the same settings: from its last checkpoint.

    At a constant learning rate nothing in a training depends on its length, so the result is the
    same as from the start.
    """
    if name not in after.trained or after.trained[name].state() != "absent":
        return
    if after.alignment.trainings[name].schedule != "constant":
        return
    source = join(before.trained[name].path, "checkpoints")
    found = checkpoints.newest(source)
    if found is not None:
        data = read_bytes(join(source, found))
        assert data is not None
        write_bytes(join(after.trained[name].path, "checkpoints", found), data)


def space_of(search: Search) -> dict[str, BaseDistribution]:
    """What Optuna draws from."""
    return {key: _distribution(values) for key, values in search.space.items()}


def _distribution(values: Sequence[Any] | Range) -> BaseDistribution:
    if not isinstance(values, Range):
        return CategoricalDistribution(values)
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def _holds(values: Sequence[Any] | Range, value: Any) -> bool:
    """Whether a value can be drawn."""
    if isinstance(values, Range):
        return isinstance(value, int | float) and values.low <= value <= values.high
    return value in values


class Distinct(Searcher):
    """What Optuna draws, each setting once; the draws end where a space of choices has no more.

    Args:
        search: the space, and how it is drawn from.
        drawn: settings that come first: those that an earlier attempt drew.
        seed: of the draws.
    """

    def __init__(self, search: Search, drawn: Sequence[Mapping[str, Any]], *, seed: int) -> None:
        mode = mode_of(search)
        super().__init__(metric=search.metric, mode=mode)
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it tells every trial
        self.search = search
        self.space = space_of(search)
        self.even = RandomSampler(seed=seed)
        self.sampler = TPESampler(seed=seed) if search.by == "optuna" else self.even
        direction = StudyDirection.MINIMIZE if mode == "min" else StudyDirection.MAXIMIZE
        self.study = optuna.create_study(direction=direction, sampler=self.sampler)
        for point in drawn:
            self.study.enqueue_trial(dict(point))
        self.asked: dict[str, optuna.Trial] = {}
        self.seen: set[str] = set()

    def suggest(self, trial_id: str) -> Any:
        """Settings that were not drawn yet."""
        samplers = {"sampler": self.sampler, "random": self.even}
        for kind, times in REDRAWS.items():
            self.study.sampler = samplers[kind]
            for _ in range(times):
                asked = self.study.ask(self.space)
                point = {key: self._rounded(key, asked.params[key]) for key in self.search.space}
                identity = fingerprint(point)
                if identity not in self.seen:
                    self.seen.add(identity)
                    self.asked[trial_id] = asked
                    return point
                self.study.tell(asked, state=TrialState.FAIL)
        return Searcher.FINISHED

    def _rounded(self, key: str, value: Any) -> Any:
        """Drawn numbers with as many digits as a person would try."""
        values = self.search.space[key]
        if not isinstance(values, Range) or values.whole:
            return value
        return min(max(float(f"{value:.4g}"), values.low), values.high)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the last result is what counts."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna how good the settings were."""
        if trial_id not in self.asked:  # told before
            return
        value = (result or {}).get(self.search.metric, math.nan)
        if error or math.isnan(value):
            self.study.tell(self.asked.pop(trial_id), state=TrialState.FAIL)
        else:
            self.study.tell(self.asked.pop(trial_id), value)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what was drawn lies beside the table."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see `save`."""


def mode_of(search: Search) -> str:
    """Whether less or more of the metric is better, in the words of Tune."""
    return "min" if lower_is_better(search.metric) else "max"


def settle(search: Search, folder: str, config: AblateConfig) -> tune.TuneConfig:
    """Searcher and scheduler."""
    drawn = [
        point
        for point in _drawn(folder)
        if point.keys() == search.space.keys()
        and all(_holds(values, point[key]) for key, values in search.space.items())
    ]
    drawn = drawn[: search.samples]
    log.info("search: %d of %d settings were drawn before", len(drawn), search.samples)
    scheduler = None
    if search.rungs > 1:
        scheduler = ASHAScheduler(
            time_attr="share",
            metric=search.metric,
            mode=mode_of(search),
            grace_period=1,
            max_t=search.factor ** (search.rungs - 1),
            reduction_factor=search.factor,
        )
    # Another seed than the earlier attempt's, which would draw the same again.
    searcher = Distinct(search, drawn, seed=config.seed + len(drawn))
    return tune.TuneConfig(num_samples=search.samples, search_alg=searcher, scheduler=scheduler)


def _drawn(folder: str) -> list[dict[str, Any]]:
    """Settings that were drawn before, the first of them first."""
    fs, root = filesystem(folder)
    files = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    whole = [f for f in files if not f.base_name.startswith(".")]  # others are still being written
    texts = [read_bytes(join(folder, f.base_name)) for f in sorted(whole, key=lambda f: f.mtime)]
    return [json.loads(text) for text in texts if text is not None]
