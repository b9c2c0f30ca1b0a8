"""The job that compares rewards with people's choices: its settings, and what it makes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pydantic import model_validator

from raypref.core.config import Section, setting
from raypref.core.job_lock import only_job_in
from raypref.core.ledger import absolute, join, write_bytes
from raypref.core.messages import without_secrets
from raypref.core.progress import counted
from raypref.engine.cluster import start_ray
from raypref.engine.kept import released_after
from raypref.engine.stream import StreamConfig
from raypref.evaluate.graph import TableConfig
from raypref.evaluate.tables import plain_csv
from raypref.judge.pairs import JudgeConfig, Judging
from raypref.models import hub
from raypref.rewards.pickscore import PickScoreConfig
from raypref.rewards.rewards import Rewards, require_rewards, reward

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


class JudgingConfig(Section):
    """The settings of a run that this job reads: it needs no photographs and no base model."""

    run: str = setting("run", "name of the run; its folder is <storage>/<run>", min_length=1)
    storage: str = setting("runs", "folder of all runs, local or URI", min_length=1)
    judge: JudgeConfig = JudgeConfig()
    pickscore: PickScoreConfig = PickScoreConfig()
    rewards: Rewards = setting({}, "settings of rewards by name", validate_default=True)
    table: TableConfig = TableConfig()
    stream: StreamConfig = StreamConfig()

    @model_validator(mode="after")
    def _known_rewards(self) -> JudgingConfig:
        require_rewards("judge.rewards", self.judge.rewards, self.rewards)
        return self


def judge_rewards(config: JudgingConfig) -> tuple[str, dict[str, pd.DataFrame]]:
    """Score the labelled pairs where that is not done yet, and write tables and page.

    Returns:
        The folder, `<storage>/<run>/judge`, and the tables `accuracy`, `agreement` and `bias`.

    Raises:
        InputError: wrong settings or pairs, missing models, or another job in the folder.
    """
    rewards = {n: reward(n, config.pickscore, config.rewards) for n in config.judge.rewards}
    for settings in rewards.values():
        settings.check()
    # Imported here: a wrong setting is refused before these libraries are loaded.
    from raypref.judge import statistics as judge
    from raypref.report.judged import render

    folder = absolute(join(config.storage, config.run, "judge"))
    judging = Judging(config.judge, rewards, folder=folder)
    amount, where = counted(len(judging.pairs), "pair"), without_secrets(config.judge.pairs)
    log.info("judging %s by %s of %s", ", ".join(rewards), amount, where)
    with only_job_in(folder):
        hub.tell_workers()
        start_ray()
        with released_after():
            pairs = judging.run(config.stream)
        tables = {
            "accuracy": judge.accuracy(pairs, list(rewards), resamples=config.table.resamples),
            "agreement": judge.agreement(pairs, list(rewards)),
            "bias": judge.bias(pairs, list(rewards), resamples=config.table.resamples),
        }
        for name, table in tables.items():
            write_bytes(join(folder, f"{name}.csv"), plain_csv(table).encode())
        write_bytes(join(folder, "index.html"), render(**tables).encode())
    return folder, tables
