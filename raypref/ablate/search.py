"""Open-ended sweeps on Ray Tune: settings are drawn, weak ones are stopped early.

Settings come from Optuna or at random; with rungs, ASHA decides by the evaluation at each of them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from pyarrow import fs as pafs
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from raypref.ablate.plan import AblateConfig, PlannedRow, plan_row
from raypref.ablate.sweep import fit, last_line, news_of_rows, wait_for
from raypref.ablate.table import Range, Row, Search, Table
from raypref.align import checkpoints
from raypref.config import InputError, fingerprint, flatten
from raypref.evaluate.labels import LOWER_IS_BETTER
from raypref.ledger import absolute, filesystem, join, read_bytes, write_bytes
from raypref.pipeline import Run

log = logging.getLogger(__name__)


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
    whole = flatten(config).get(search.budget)
    if not isinstance(whole, int):
        raise InputError(
            f"search.budget='{search.budget}' is not a whole number among the settings"
        )
    budgets = search.budgets(whole)
    folder = absolute(join(config.storage, config.run, name, "points"))
    rows: list[PlannedRow] = []
    failed: dict[tuple[str, str], str] = {}
    with news_of_rows() as news:

        def trial(drawn: dict[str, Any]) -> None:
            point = {key: _rounded(value) for key, value in drawn.items()}
            text = json.dumps(point, sort_keys=True)
            write_bytes(join(folder, f"{fingerprint(point)}.json"), text.encode())
            before: PlannedRow | None = None
            for rung, budget in enumerate(budgets):
                row = plan_point(name, point, search, budget, config)
                if row.config is None:
                    raise RuntimeError(row.problem)
                if before is not None:
                    go_on(before.run, row.run, search.budget.split(".")[0])
                told = wait_for(row.config, row.row.model, f"{name} {row.label}", news, parent)
                if isinstance(told, str):
                    raise RuntimeError(told)
                reached = {"budget": budget, "share": search.factor**rung}
                tune.report({**told, search.metric: told[search.metric], **reached})
                before = row

        for result in fit(trial, space_of(search), config, rows, settle(search, folder, config)):
            point = {key: _rounded(value) for key, value in (result.config or {}).items()}
            row = plan_point(name, point, search, (result.metrics or {}).get("budget", 0), config)
            rows.append(row)
            if result.error is not None:
                failed[name, row.name] = last_line(result.error)
    return rows, failed


def plan_point(
    name: str, point: Mapping[str, Any], search: Search, budget: int, config: AblateConfig
) -> PlannedRow:
    """The row of drawn settings at a rung."""
    told = ", ".join(f"{key}={value}" for key, value in point.items())
    label = f"{told}, {search.budget}={budget}"
    row = Row.model_validate({"name": label, "set": {**point, search.budget: budget}})
    return plan_row(name, row, config, seed=config.seed)


def go_on(before: Run, after: Run, stage: str) -> None:
    """Let a longer training continue a shorter one of the same settings: from its last checkpoint.

    At a constant learning rate nothing in a training depends on its length, so the result is the
    same as from the start.
    """
    if stage not in after.trained or after.trained[stage].state() != "absent":
        return
    if after.alignment.stages[stage].schedule != "constant":
        return
    source = join(before.trained[stage].path, "checkpoints")
    found = checkpoints.newest(source)
    if found is not None:
        data = read_bytes(join(source, found))
        assert data is not None
        write_bytes(join(after.trained[stage].path, "checkpoints", found), data)


def _rounded(value: Any) -> Any:
    """Drawn numbers with as many digits as a person would try."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def space_of(search: Search) -> dict[str, Any]:
    """What Tune draws from."""
    space: dict[str, Any] = {}
    for key, values in search.space.items():
        if isinstance(values, Range) and values.whole:
            draw = tune.lograndint if values.log else tune.randint
            space[key] = draw(int(values.low), int(values.high) + 1)
        elif isinstance(values, Range):
            space[key] = (tune.loguniform if values.log else tune.uniform)(values.low, values.high)
        else:
            space[key] = tune.choice(list(values))
    return space


def settle(search: Search, folder: str, config: AblateConfig) -> tune.TuneConfig:
    """Searcher and scheduler."""
    mode = "min" if search.metric in LOWER_IS_BETTER else "max"
    drawn = [point for point in _drawn(folder) if point.keys() == search.space.keys()]
    drawn = drawn[: search.samples]
    log.info("search: %d of %d settings were drawn before", len(drawn), search.samples)
    searcher: Any
    if search.by == "optuna":
        # Quiet: it tells every trial.
        logging.getLogger("optuna").setLevel(logging.WARNING)
        searcher = OptunaSearch(
            metric=search.metric, mode=mode, seed=config.seed, points_to_evaluate=drawn
        )
    else:
        searcher = BasicVariantGenerator(points_to_evaluate=drawn, random_state=config.seed)
    scheduler = None
    if search.rungs > 1:
        scheduler = ASHAScheduler(
            time_attr="share",
            metric=search.metric,
            mode=mode,
            grace_period=1,
            max_t=search.factor ** (search.rungs - 1),
            reduction_factor=search.factor,
        )
    return tune.TuneConfig(num_samples=search.samples, search_alg=searcher, scheduler=scheduler)


def _drawn(folder: str) -> list[dict[str, Any]]:
    fs, root = filesystem(folder)
    files = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    texts = [read_bytes(join(folder, f.base_name)) for f in sorted(files, key=lambda f: f.mtime)]
    return [json.loads(text) for text in texts if text is not None]
