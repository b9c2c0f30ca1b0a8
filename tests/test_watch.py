"""Metrics read a step late change nothing; a training that has failed stops unsaved."""

import math
import statistics
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook
from training import denoiser, run, training

from raypref.align import checkpoints, watch
from raypref.align.residuals import LEARNER
from raypref.align.watch import DivergedError, StepMetrics, Watch
from raypref.models import adapters

DPO = training(objective="dpo", steps=7, batch=4, micro_batch=4, lr=5e-4, checkpoint_every=3)
TIMES = {"seconds", "images_per_second"}


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: a step is read when the next one is on its way."""
    monkeypatch.setitem(watch.LAG, "cpu", 1)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "pytorch_lora_weights.safetensors")


def test_reading_late_changes_nothing(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    at_once = run(DPO, str(tmp_path / "at-once"))
    request.getfixturevalue("late")
    network, first = denoiser(), []
    told: list[tuple[float, bool]] = []

    def tell(metrics: StepMetrics) -> None:
        now = [p.detach().clone() for p in adapters.matrices(network.module, LEARNER)]
        moved = bool(first) and not all(map(torch.equal, now, first[-1]))
        first.append(now)
        told.append((metrics["step"], moved))

    later = run(DPO, str(tmp_path / "late"), network=network, on_step=tell)
    # Steps 2 and 4 are told when 3 and 5 are done; a checkpoint (3, 6, 7) waits for its own.
    assert told == [(1, False), (2, True), (3, False), (4, True), (5, True), (6, False), (7, True)]
    for ours, theirs in zip(later, at_once, strict=True):
        assert {k: ours[k] for k in ours.keys() - TIMES} == {
            k: theirs[k] for k in theirs.keys() - TIMES
        }
    one, other = weights(tmp_path / "at-once"), weights(tmp_path / "late")
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("bad", [2, 3, 5, 7])
def test_a_bad_step_read_late_is_never_saved(bad: int, tmp_path: Path) -> None:
    """Poisoned just before step `bad`; checkpoints are due at 3, 6 and 7."""
    network = denoiser()
    predict, calls = network.predict, []

    def poison(*args: torch.Tensor) -> torch.Tensor:
        calls.append(1)  # reference and learner: two a step
        if len(calls) == 2 * bad - 1:
            adapters.matrices(network.module, LEARNER)[1].data.fill_(math.nan)
        return predict(*args)

    network.predict = poison  # type: ignore[method-assign]
    with pytest.raises(
        DivergedError, match=rf"loss is nan at step {bad}; .* Lower train\.stage\.lr"
    ):
        run(DPO, str(tmp_path), network=network)
    found = checkpoints.latest(str(tmp_path / "checkpoints"))
    assert (found[0] if found else 0) == {2: 0, 3: 0, 5: 3, 7: 6}[bad]
    assert found is None or all(value.isfinite().all() for value in found[1].values())
    assert not (tmp_path / "pytorch_lora_weights.safetensors").exists()


def test_an_update_that_overflows_is_not_saved(tmp_path: Path) -> None:
    """The loss of that step is still finite: it was measured before the update."""
    network = denoiser()

    def overflow(optimizer: torch.optim.Optimizer, *_: object) -> None:
        optimizer.param_groups[0]["params"][0].data.fill_(math.inf)

    hook = register_optimizer_step_post_hook(overflow)
    try:
        with pytest.raises(DivergedError, match="lora_norm is"):
            run(DPO.model_copy(update={"checkpoint_every": 1}), str(tmp_path), network=network)
    finally:
        hook.remove()
    assert checkpoints.latest(str(tmp_path / "checkpoints")) is None


def row(*, reference: float, gap: float, loss: float = -0.001) -> dict[str, torch.Tensor | float]:
    values = {"loss": loss, "ref_chosen": reference, "chosen_gap": gap, "grad_norm": 3.0}
    return {key: torch.tensor(value) for key, value in values.items()} | {
        "lora_norm": torch.tensor(1.0),
        "lr": 1e-4,
    }


@pytest.mark.parametrize(
    ("gaps", "stops_at"),
    [
        ([0.05] * 6, None),  # worse by half: DPO may do that
        ([-0.05, 0.0, 0.11, 0.11, 0.11, 0.11], 6),  # mean of four: 0.11 over a reference of 0.1
        ([5.0, -0.2, -0.2, -0.2, 0.0, 0.0], 4),  # not judged before there are 256 samples
        ([0.0, 0.3, 0.0, 0.0, 0.0, 0.0], None),  # one noisy step
    ],
)
def test_an_error_far_above_the_reference_stops(gaps: list[float], stops_at: int | None) -> None:
    stage = training(batch=64)
    history: list[StepMetrics] = []
    watching = Watch(stage, history=history, name="stage1", tell=lambda metrics: None)

    def go_on() -> None:
        for step, gap in enumerate(gaps, start=1):
            watching.add(step, row(reference=0.1, gap=gap), began=0.0)

    if stops_at is None:
        go_on()
        return
    says = (
        rf"^stage1: at step {stops_at}, the error on the chosen .*, more than train\.stage1\.max_e"
    )
    with pytest.raises(DivergedError, match=says):
        go_on()
    assert len(history) == stops_at


def test_a_learning_rate_too_high_is_stopped_in_a_real_training(tmp_path: Path) -> None:
    stage = DPO.model_copy(update={"lr": 30.0, "batch": 8, "checkpoint_every": 1})
    seen: list[StepMetrics] = []
    with pytest.raises(DivergedError, match=r"train\.stage\.max_grad_ratio=1000 times the"):
        run(stage, str(tmp_path), on_step=seen.append)
    step, _ = checkpoints.latest(str(tmp_path / "checkpoints"))  # type: ignore[misc]
    assert step == len(seen) < stage.steps
    norms = [row["grad_norm"] for row in seen]
    usual = [statistics.median(norms[:n]) for n in range(1, len(norms))]
    assert all(now <= 1000 * before for now, before in zip(norms[1:], usual, strict=True))


def test_the_norm_of_the_update_is_that_of_the_product(tmp_path: Path) -> None:
    network = denoiser()
    history = run(DPO, str(tmp_path), network=network)
    pairs = [p.detach() for p in adapters.matrices(network.module, LEARNER)]
    products = [b @ a for a, b in zip(pairs[::2], pairs[1::2], strict=True)]
    expected = torch.cat([product.flatten() for product in products]).norm()  # alpha = rank
    assert history[-1]["lora_norm"] == pytest.approx(float(expected), rel=1e-9)
    assert history[0]["lora_norm"] > 0
    speeds = [m["images_per_second"] * m["seconds"] for m in history]
    assert speeds == pytest.approx([DPO.batch] * len(history))


@pytest.mark.slow
def test_a_compiled_network_switches_its_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs are kept per adapter and per number of rollouts still running. Traced and run without
    code generation here, which takes minutes and is not ours."""
    compiled = partialmethod(torch.nn.Module.compile, backend="eager")
    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    stage = DPO.model_copy(
        update={"objective": "dro", "steps": 3, "rollout_steps": 3, "policy_lag": 2}
    )
    plain = run(stage, str(tmp_path / "plain"))
    graphs = run(stage.model_copy(update={"compile": True}), str(tmp_path / "compiled"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for ours, theirs in zip(graphs, plain, strict=True):
        for key in ours.keys() - TIMES:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-9, abs=1e-12), key
