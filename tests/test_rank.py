"""What a rank tells the driver when a training cannot go on; slow/test_workers.py has real ones."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from ray import cloudpickle
from training import BASE, LORA, pairs, photographs, training

from raypref.align import rank
from raypref.align.job import TrainingJob
from raypref.align.pair_data import PairData
from raypref.align.watch import DivergedError
from raypref.core.config import InputError, Resources
from raypref.core.exhausted import NoRoomError
from raypref.core.ledger import Ledger
from raypref.rewards.pickscore import PickScoreConfig

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory")
ADVICE = (
    "mine: memory ran out with train.mine.micro_batch=2; try train.mine.micro_batch=1 or "
    "train.mine.gradient_checkpointing=true or train.mine.rollout_batch=16, which move results by "
    "rounding only; the same command resumes from the last checkpoint"
)


class Desk:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.tell = SimpleNamespace(
            remote=lambda kind, value: self.told.append((kind, cloudpickle.loads(value)))
        )


def test_an_online_training_scores_with_the_rewards_of_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a real reward: its scores, held out and trained on, reach the table of metrics."""
    asked: dict[str, Any] = {}

    def read(*about: Any, **more: Any) -> PairData:
        asked.update(more)
        return replace(pairs(), texts=tuple(text for text, _ in photographs(10)))

    monkeypatch.setattr(rank, "read_pairs", read)
    monkeypatch.setattr(rank.ray, "get", lambda value: value)
    tiny = PickScoreConfig(model="tiny:pickscore", processor="tiny:pickscore")
    own = training(
        "online_rwr",
        steps=2,
        batch=4,
        group=2,
        rollout_steps=2,
        held_out=("again",),
        held_out_every=1,
    )
    job = TrainingJob(
        name="mine",
        draws="mine",
        base=BASE,
        lora=LORA,
        training=own,
        cache=Ledger(str(tmp_path / "cache"), {}),
        pairs=None,
        folder=str(tmp_path),
        start=None,
        seed=0,
        shared="mine.safetensors",
        # What the job of a run has; its resources are the workers', not those of the training.
        rewards={"pickscore": tiny.on(1), "again": tiny.on(1)},
    )
    desk = Desk()
    assert rank._train(job, desk, rank._TorchGroup(0, 1), torch.device("cpu")), desk.told
    assert asked["texts"] and (tmp_path / "mine.safetensors").exists()
    rows = pq.read_table(tmp_path / "metrics.parquet").to_pylist()
    for row in rows:
        assert row["reward"] == pytest.approx(row["reward/pickscore"])
        assert row["held_out/again"] == pytest.approx(row["reward/pickscore"])
        assert row["unscored"] == 0 and 0 < row["diversity"] < 1 and row["reward_std"] > 0


@pytest.mark.parametrize(
    ("error", "number", "world", "refused", "raises"),
    [
        (InputError("misfit"), 1, 2, (InputError, "misfit"), True),  # others may wait for it
        (InputError("misfit"), 0, 1, (InputError, "misfit"), False),
        (OUT_OF_MEMORY, 1, 2, (NoRoomError, ADVICE), True),
        (OUT_OF_MEMORY, 0, 1, (NoRoomError, ADVICE), False),
        (NoRoomError("disk"), 1, 2, (NoRoomError, "disk"), True),
        (NoRoomError("disk"), 0, 1, (NoRoomError, "disk"), False),
        (DivergedError("loss is nan"), 0, 2, (DivergedError, "loss is nan"), False),
        (DivergedError("loss is nan"), 1, 2, None, False),  # rank 0 tells, every rank finds it
        (RuntimeError("a bug"), 1, 2, None, True),  # Ray Train tries again
    ],
)
def test_a_refusal_reaches_the_driver_from_any_rank(
    error: Exception,
    number: int,
    world: int,
    refused: tuple[type[Exception], str] | None,
    raises: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*about: Any, **more: Any) -> None:
        raise error

    monkeypatch.setattr(rank, "train", fail)
    monkeypatch.setattr(rank, "load_denoiser", lambda *about, **more: None)
    monkeypatch.setattr(rank, "read_pairs", lambda *about, **more: None)
    monkeypatch.setattr(rank.ray, "get", lambda value: value)
    job = TrainingJob(
        name="mine",
        draws="stage2",
        base=BASE,
        lora=LORA,
        training=training("dro", micro_batch=2, rollout_batch=32),
        cache=Ledger(str(tmp_path), {}),
        pairs=None,
        folder=str(tmp_path),
        start=None,
        seed=0,
        shared="mine.safetensors",
    )
    desk, group = Desk(), rank._TorchGroup(number, world)
    if raises:
        with pytest.raises(type(error)):
            rank._train(job, desk, group, torch.device("cpu"))
    else:
        assert rank._train(job, desk, group, torch.device("cpu")) is False
    told = [(type(value), str(value)) for kind, value in desk.told if kind == "refused"]
    assert told == ([refused] if refused else [])


@pytest.mark.parametrize(("lora", "told"), [(0, True), (4, False)])
def test_without_memory_weights_can_be_shared(lora: int, told: bool, tmp_path: Path) -> None:
    job = TrainingJob(
        name="mine",
        draws="mine",
        base=BASE,
        lora=LORA.model_copy(update={"rank": lora}),
        training=training("dpo", micro_batch=1, batch=4, resources=Resources(workers=2)),
        cache=Ledger(str(tmp_path), {}),
        pairs=None,
        folder=str(tmp_path),
        start=None,
        seed=0,
        shared="mine.safetensors",
    )
    assert ("train.mine.sharded=true" in rank._advice(job)) is told
    sharded = job.training.model_copy(update={"sharded": True})
    assert "sharded" not in rank._advice(replace(job, training=sharded))
