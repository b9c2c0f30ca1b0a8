"""A training's workers and the actors of its rewards are asked for, kept and ended together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, cast

import pytest
from training import BASE, LORA

from raypref.align import train
from raypref.align.job import TrainingJob
from raypref.align.online_config import OnlineConfig
from raypref.core.config import Resources
from raypref.core.ledger import Ledger
from raypref.engine.kept import release
from raypref.rewards.pickscore import PickScoreConfig

GPU = Resources(batch=4, num_gpus=0.5)


class Group:
    """In place of `WorkerGroup`."""

    made: ClassVar[list[Group]] = []

    def __init__(self, workers: Any, need: Resources, *, folder: str, rewards: Any) -> None:
        self.alive, self.started, self.rewards = True, False, rewards
        self.trained: list[str] = []
        Group.made.append(self)

    def train(self, job: TrainingJob, on_step: object) -> None:
        self.trained.append(job.name)

    def close(self) -> None:
        self.alive = False


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, float, float]]]:
    """Cores and GPUs that the cluster is asked for, by training."""
    found: list[tuple[str, float, float]] = []

    def require(name: str, need: Resources, *, workers: int) -> None:
        found.append((name, workers * need.num_cpus, workers * need.num_gpus))

    monkeypatch.setattr(Group, "made", [])
    monkeypatch.setattr(train, "WorkerGroup", Group)
    monkeypatch.setattr(train, "require_nodes", require)
    monkeypatch.setattr(train, "free_cores", lambda: 0.0)
    yield found
    release()


def job(name: str, *, actors: int, resources: Resources = GPU) -> TrainingJob:
    training = OnlineConfig(
        objective="online", reward_actors=actors, resources=Resources(workers=2, num_cpus=1.5)
    )
    return TrainingJob(
        name=name,
        draws=name,
        base=BASE,
        lora=LORA,
        training=training,
        cache=cast(Ledger, None),
        pairs=None,
        folder="",
        start=None,
        seed=0,
        shared="",
        rewards={"pickscore": PickScoreConfig(resources=resources)},
    )


def test_trainings_with_the_same_workers_and_rewards_share_both(
    asked: list[tuple[str, float, float]],
) -> None:
    jobs = [
        job("none", actors=0),
        job("first", actors=3),
        job("second", actors=3),
        job("fewer", actors=2),
        job("smaller", actors=2, resources=Resources(batch=4)),
    ]
    for each in jobs:
        train.train_on_workers(each, on_step=lambda metrics: None)
    assert [group.trained for group in Group.made] == [
        ["none"],
        ["first", "second"],
        ["fewer"],
        ["smaller"],
    ]
    assert [group.alive for group in Group.made] == [False, False, False, True]
    assert [sum(each.need.workers for each in group.rewards) for group in Group.made] == [
        0,
        3,
        2,
        2,
    ]
    assert [need[1:] for need in asked] == [(3, 0), (6, 1.5), (6, 1.5), (5, 1), (5, 0)]
