"""Promise 3: the result depends on the global batch, not on how many workers share it or die."""

import os
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
import torch
from safetensors.torch import load_file
from training import BASE, LORA, pairs, training

from jobs import MARK, processes
from raypref.align import loop
from raypref.align import train as align_train
from raypref.align.config import TrainingConfig
from raypref.align.job import TrainingJob
from raypref.align.latents import UNCONDITIONAL
from raypref.align.pair_data import read_pairs
from raypref.align.train import train_on_workers
from raypref.align.watch import StepMetrics
from raypref.core.config import InputError, Resources
from raypref.core.ledger import Ledger
from raypref.engine.kept import release
from raypref.models.backbone import load_denoiser
from raypref.models.families.conditioning import to_row
from raypref.models.lora_config import LoraConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TIMES = {"seconds", "images_per_second"}
STEPS, EVERY = 16, 4
SHARED = {"steps": STEPS, "batch": 7, "micro_batch": 2, "lr": 2e-4, "checkpoint_every": EVERY}
# 7 samples do not share out evenly over two workers.
DRO = training(objective="dro", rollout_steps=5, policy_lag=2, ema_decay=0.9, **SHARED)
ALL = LoraConfig(rank=0)
SHARDED = training("dpo", steps=2, batch=4, micro_batch=1, lr=1e-4, sharded=True)


@pytest.fixture(scope="module", autouse=True)
def ours() -> Iterator[str]:
    """A Ray whose processes bear a mark."""
    mark = uuid.uuid4().hex
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, mark)
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # as in a Ray that raypref starts
        # With a dashboard: without one Ray Train asks whatever Ray has port 8265 whether its
        # controller lives, and one that never heard of it ends the workers.
        ray.init(num_cpus=4, log_to_driver=False)
        yield mark
        ray.shutdown()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """A few encoded pairs where a worker finds them."""
    data = pairs()
    rows = [
        {
            "id": f"{number:03d}",
            "moments": moments.float().numpy().tobytes(),
            "moments_shape": list(moments.shape),
            **to_row(data.embeddings[number]),
        }
        for number, moments in enumerate(data.moments)
    ]
    rows.append({"id": UNCONDITIONAL, **to_row(data.unconditional)})
    ledger = Ledger(str(tmp_path_factory.mktemp("cache")), {"made": "by a test"})
    ledger.begin()
    ledger.write_part(pa.Table.from_pylist(rows))
    ledger.commit(expected=len(rows), counts={})
    return ledger


def job_of(
    stage: TrainingConfig, cache: Ledger, folder: Path, *, lora: LoraConfig = LORA
) -> TrainingJob:
    """A training by two workers."""
    return TrainingJob(
        name="mine",
        draws="mine",
        base=BASE,
        lora=lora,
        training=stage.model_copy(update={"resources": Resources(workers=2)}),
        cache=cache,
        pairs=None,
        folder=str(folder),
        start=None,
        seed=0,
        shared="mine.safetensors",
    )


def straight(job: TrainingJob, folder: Path) -> list[StepMetrics]:
    """The metrics of a job done in this process, without Ray."""
    return loop.train(
        load_denoiser(BASE, device=torch.device("cpu")),
        *(read_pairs(job.cache, BASE), job.training, job.lora),
        name=job.name,
        draws=job.draws,
        seed=job.seed,
        folder=str(folder),
        start=None,
        group=loop.Alone(),
        on_step=lambda metrics: None,
    )


def assert_same_metrics(seen: list[StepMetrics], expected: list[StepMetrics]) -> None:
    """Compare the metrics of all steps; of a step that was seen twice the last counts."""
    last = {int(metrics["step"]): metrics for metrics in seen}
    assert len(last) == len(expected)
    for metrics in expected:
        theirs = last[int(metrics["step"])]
        assert theirs.keys() == metrics.keys()
        for key in metrics.keys() - TIMES:
            assert theirs[key] == pytest.approx(metrics[key], rel=1e-6, abs=1e-9), key


def assert_same_file(name: str, folder: Path, other: Path) -> None:
    ours, theirs = load_file(folder / name), load_file(other / name)
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-8)


@pytest.mark.chaos
def test_two_workers_do_what_one_process_does(
    ours: str, cache: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All weights, sharded; then by the same two a LoRA, one killed after a few steps."""
    whole = job_of(SHARDED, cache, tmp_path / "sharded", lora=ALL)
    seen: list[StepMetrics] = []
    with caplog.at_level("INFO"):
        train_on_workers(whole, on_step=seen.append)
    assert "mine: sharding all weights over 2 workers" in caplog.messages
    began = sorted(processes(ours, "RayTrainWorker"))
    assert_same_metrics(seen, straight(whole, tmp_path / "whole"))
    network = "unet/diffusion_pytorch_model.safetensors"
    assert_same_file(network, tmp_path / "sharded", tmp_path / "whole")

    seen.clear()

    def on_step(metrics: StepMetrics) -> None:
        seen.append(metrics)
        if len(seen) == EVERY + 2:
            pids = sorted(processes(ours, "RayTrainWorker"))
            assert pids == began and len(pids) == 2
            os.kill(pids[-1], signal.SIGKILL)

    job = job_of(DRO, cache, tmp_path / "shared")
    train_on_workers(job, on_step=on_step)
    release()

    expected = straight(job, tmp_path / "lone")
    steps = [int(metrics["step"]) for metrics in seen]
    assert sorted(set(steps)) == list(range(1, STEPS + 1))
    again = len(steps) - STEPS
    print(f"{again} steps done twice")
    assert 0 < again < STEPS - EVERY
    assert_same_metrics(seen, expected)
    assert expected[-1]["loss"] != expected[0]["loss"], "nothing was learned, nothing compared"
    assert_same_file("pytorch_lora_weights.safetensors", tmp_path / "shared", tmp_path / "lone")


def misfit(*about: Any, group: loop.Ranks, folder: str, **more: Any) -> list[StepMetrics]:
    """In place of training: rank 1 alone finds that its weights do not fit; rank 0 waits for it."""
    (Path(folder) / f"called-{group.rank}-{uuid.uuid4().hex}").touch()
    if group.rank == 1:
        raise InputError("the LoRA on this host is of another model")
    group.sum(torch.zeros(1))
    return []


def test_what_would_happen_again_is_not_tried_again(
    cache: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other refusals: tests/test_rank.py."""

    def work(desk: Any, need: Resources) -> None:
        from raypref.align import rank

        rank.train = misfit  # type: ignore[assignment]
        rank.work(desk, need)

    monkeypatch.setattr(align_train, "_work", work)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it
    job = job_of(DRO, cache, tmp_path)
    try:
        with pytest.raises(InputError, match=r"^the LoRA on this host is of another model$"):
            train_on_workers(job, on_step=lambda metrics: None)
    finally:
        release()
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    # At most once a rank: one may have refused before the other began.
    ranks = [path.name.split("-")[1] for path in tmp_path.glob("called-*")]
    assert ranks
    assert len(ranks) == len(set(ranks))
    assert not (tmp_path / "ray").exists()
