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

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TIMES = {"seconds", "images_per_second"}
STEPS, EVERY = 16, 4
SHARED = {"steps": STEPS, "batch": 7, "micro_batch": 2, "lr": 2e-4, "checkpoint_every": EVERY}
STAGES = {  # 7 samples do not share out evenly over two workers
    "dro": training(objective="dro", rollout_steps=5, policy_lag=2, ema_decay=0.9, **SHARED),
}


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


@pytest.fixture(scope="module")
def straight(
    cache: Ledger, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, list[StepMetrics]]]:
    """Each stage in this process, without Ray: where its LoRA is, and its metrics."""
    made = {}
    for name, stage in STAGES.items():
        folder = tmp_path_factory.mktemp(name)
        network = load_denoiser(BASE, device=torch.device("cpu"))
        history = loop.train(
            *(network, read_pairs(cache, BASE), stage, LORA),
            name="stage",
            draws="stage",
            seed=0,
            folder=str(folder),
            start=None,
            group=loop.Alone(),
            on_step=lambda metrics: None,
        )
        made[name] = folder, history
    return made


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("objective", "workers", "killed"),
    [("dro", 2, -1)],
)
def test_workers_do_what_one_process_does(
    ours: str,
    cache: Ledger,
    straight: dict[str, tuple[Path, list[StepMetrics]]],
    objective: str,
    workers: int,
    killed: int,
    tmp_path: Path,
) -> None:
    """With several workers, of which one is killed after a few steps: the same LoRA."""
    stage = STAGES[objective].model_copy(update={"resources": Resources(workers=workers)})
    seen: list[StepMetrics] = []

    def on_step(metrics: StepMetrics) -> None:
        seen.append(metrics)
        if len(seen) == EVERY + 2:
            pids = sorted(processes(ours, "RayTrainWorker"))
            assert len(pids) == workers
            os.kill(pids[killed], signal.SIGKILL)

    job = TrainingJob(
        name="stage",
        draws="stage",
        base=BASE,
        lora=LORA,
        training=stage,
        cache=cache,
        pairs=None,
        folder=str(tmp_path),
        start=None,
        seed=0,
        shared="mine.safetensors",
    )
    train_on_workers(job, on_step=on_step)
    release()

    folder, expected = straight[objective]
    steps = [int(metrics["step"]) for metrics in seen]
    assert sorted(set(steps)) == list(range(1, STEPS + 1))
    again = len(steps) - STEPS
    print(f"{objective}, {workers} workers, killed {killed}: {again} steps done twice")
    assert 0 < again < STEPS - EVERY
    last = {int(metrics["step"]): metrics for metrics in seen}
    for metrics in expected:
        theirs = last[int(metrics["step"])]
        assert theirs.keys() == metrics.keys()
        for key in metrics.keys() - TIMES:
            assert theirs[key] == pytest.approx(metrics[key], rel=1e-6, abs=1e-9), key
    assert expected[-1]["loss"] != expected[0]["loss"], "nothing was learned, nothing compared"
    name = "pytorch_lora_weights.safetensors"
    lone, shared = load_file(folder / name), load_file(tmp_path / name)
    assert lone.keys() == shared.keys()
    for key in lone:
        torch.testing.assert_close(shared[key], lone[key], rtol=0, atol=1e-8)


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
    stage = STAGES["dro"].model_copy(update={"resources": Resources(workers=2)})
    job = TrainingJob(
        name="mine",
        draws="mine",
        base=BASE,
        lora=LORA,
        training=stage,
        cache=cache,
        pairs=None,
        folder=str(tmp_path),
        start=None,
        seed=0,
        shared="mine.safetensors",
    )
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
