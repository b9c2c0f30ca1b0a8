"""Promise 3: the losses depend on the global batch, not on how many workers share it."""

from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pytest
import ray
import torch
from safetensors.torch import load_file
from training import BASE, LORA, pairs

from raypref.align.cache import UNCONDITIONAL

from raypref.align.stage import StageConfig
from raypref.align.train import StageJob, train_stage
from raypref.align.watch import StepMetrics
from raypref.config import InputError, Resources, load
from raypref.ledger import Ledger
from raypref.pipeline import Run, RunConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TIMES = {"seconds", "images_per_second"}
STAGES = {
    "dro": StageConfig(
        objective="dro", steps=4, micro_batch=4, lr=2e-4, rollout_steps=5, policy_lag=2
    ),
    "dpo": StageConfig(objective="dpo", steps=4, micro_batch=4, lr=2e-4),
}


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    ray.init(num_cpus=4, log_to_driver=False, include_dashboard=False)
    yield
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
            "embedding": embedding.float().numpy().tobytes(),
            "embedding_shape": list(embedding.shape),
        }
        for number, (moments, embedding) in enumerate(
            zip(data.moments, data.embeddings, strict=True)
        )
    ]
    empty = data.unconditional.float()
    rows.append(
        {
            "id": UNCONDITIONAL,
            "embedding": empty.numpy().tobytes(),
            "embedding_shape": list(empty.shape),
        }
    )
    ledger = Ledger(str(tmp_path_factory.mktemp("cache")), {"made": "by a test"})
    ledger.begin()
    ledger.write_part(pa.Table.from_pylist(rows))
    ledger.commit(expected=len(rows), counts={})
    return ledger


def train(
    cache: Ledger, objective: str, folder: Path, *, batch: int, workers: int
) -> list[StepMetrics]:
    """Train a stage; the metrics that reached the driver."""
    stage = STAGES[objective].model_copy(
        update={"batch": batch, "resources": Resources(workers=workers)}
    )
    seen: list[StepMetrics] = []
    job = StageJob(
        name="stage",
        draws="stage",
        base=BASE.model_copy(update={"dtype": "float32"}),
        lora=LORA,
        stage=stage,
        cache=cache,
        folder=str(folder),
        start=None,
        seed=0,
    )
    train_stage(job, on_step=seen.append)
    return seen


# 8 samples share out evenly over two workers, 7 do not.
@pytest.mark.parametrize("batch", [8, 7])
@pytest.mark.parametrize("objective", STAGES)
def test_two_workers_do_what_one_does(
    cache: Ledger, objective: str, batch: int, tmp_path: Path
) -> None:
    one, two = (
        train(cache, objective, tmp_path / str(workers), batch=batch, workers=workers)
        for workers in (1, 2)
    )
    assert [m["step"] for m in one] == [m["step"] for m in two] == [1, 2, 3, 4]
    for ours, theirs in zip(one, two, strict=True):
        for key in ours.keys() - TIMES:
            assert theirs[key] == pytest.approx(ours[key], rel=1e-4, abs=1e-6), key
    assert one[-1]["loss"] != one[0]["loss"], "nothing was learned, so nothing was compared"
    name = "pytorch_lora_weights.safetensors"
    lone, shared = (load_file(tmp_path / folder / name) for folder in ("1", "2"))
    for key in lone:
        torch.testing.assert_close(shared[key], lone[key], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 3])
def test_workers_without_a_share_are_refused(workers: int) -> None:
    config = load(RunConfig, "tiny", ["stage2.batch=2", f"stage2.resources.workers={workers}"])
    needs = {step.name: step.needs for step in Run(config).steps}
    for name in ("stage1", "stage2", "stage2_alone"):
        refused = pytest.raises(InputError, match=rf"^stage2\.resources\.workers={workers}: ")
        with nullcontext() if name == "stage1" else refused:
            for need in needs[name]:
                need()
