"""The training loop: resume, any split of a batch, the frozen reference, EMA."""

import threading
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from training import LORA, denoiser, pairs, run, training

from raypref.align import checkpoints
from raypref.align.loop import average, milestone
from raypref.align.residuals import LEARNER, POLICY, REFERENCE, Draw, measure
from raypref.align.watch import DivergedError
from raypref.models import adapters, lora

DRO = training(
    objective="dro", steps=6, batch=4, micro_batch=4, lr=2e-5, rollout_steps=5, policy_lag=4
)
DPO = training(objective="dpo", steps=6, batch=4, micro_batch=4, lr=5e-4, beta=2000)
STAGES = {"dro": DRO, "dpo": DPO}
# What a step takes over from earlier ones beside the learner.
FORMS = {
    "follows": DPO.model_copy(
        update={"reference": "ema", "reference_decay": 0.7, "curriculum": "easy_first"}
    ),
    "average": training(
        objective="kto", sample="image", reference_point="average", beta=2000, lr=5e-4, batch=4
    ),
    # Its average is updated after steps 2, 5 and 8: killed after 6, it resumes from 4.
    "released": DPO.model_copy(update={"ema_every": 3, "flip_per": "image"}),
}
TIMES = {"seconds", "images_per_second"}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "pytorch_lora_weights.safetensors")


@pytest.mark.parametrize("name", STAGES)
def test_first_step_is_at_the_reference(name: str, tmp_path: Path) -> None:
    first = run(STAGES[name].model_copy(update={"steps": 1}), str(tmp_path))[0]
    expected = {"dro": 0.0, "dpo": 0.6931471805599453}[name]
    assert first["loss"] == pytest.approx(expected, abs=1e-9)
    assert first["chosen_gap"] == first["rejected_gap"] == 0.0
    assert first["grad_norm"] > 0


@pytest.mark.parametrize("name", STAGES | FORMS)
def test_resume_is_equal_to_the_bit(name: str, tmp_path: Path) -> None:
    # The policy is older than the learner at the checkpoint: it comes from there, or is another.
    update = {"steps": 9, "checkpoint_every": 4, "policy_lag": 3}
    stage = (STAGES | FORMS)[name].model_copy(update=update | {"ema_decay": 0.9, "warmup_steps": 3})
    straight = run(stage, str(tmp_path / "straight"))

    class KilledError(Exception):
        pass

    def die(metrics: dict[str, float]) -> None:
        if metrics["step"] == 6:
            raise KilledError

    with pytest.raises(KilledError):
        run(stage, str(tmp_path / "killed"), on_step=die)
    assert checkpoints.latest(str(tmp_path / "killed" / "checkpoints"))[0] == 4  # type: ignore[index]
    half = tmp_path / "killed" / "checkpoints" / f".step-00000008.safetensors.{uuid4().hex}"
    half.write_bytes(b"half a checkpoint")
    again: list[float] = []
    resumed = run(stage, str(tmp_path / "killed"), on_step=lambda m: again.append(m["step"]))

    assert not half.exists(), "a killed worker's half checkpoint stays on the disk"
    assert again == [5, 6, 7, 8, 9], "steps before the checkpoint are not repeated"
    for ours, theirs in zip(resumed, straight, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - TIMES:
            assert ours[key] == theirs[key], key
    a, b = weights(tmp_path / "killed"), weights(tmp_path / "straight")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


@dataclass
class ThreadGroup:
    """Ranks as threads of this process: a real sum over ranks without a launcher."""

    rank: int
    world: int
    barrier: threading.Barrier
    slots: list[torch.Tensor | None]

    def sum(self, values: torch.Tensor) -> None:
        self.slots[self.rank] = values.clone()
        self.barrier.wait()
        total = sum(slot for slot in self.slots if slot is not None)
        self.barrier.wait()
        values.copy_(total)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", STAGES | FORMS)
@pytest.mark.parametrize("world, micro_batch", [(1, 1), (2, 2), (3, 1)])
def test_any_split_of_the_batch_gives_the_same_run(
    name: str, world: int, micro_batch: int, tmp_path: Path
) -> None:
    update = {"steps": 4, "batch": 5, "micro_batch": 5}
    stage = (STAGES | FORMS)[name].model_copy(update=update)
    reference = run(stage, str(tmp_path / "one"))
    split = stage.model_copy(update={"micro_batch": micro_batch})
    barrier, slots = threading.Barrier(world), [None] * world
    histories: dict[int, list[dict[str, float]]] = {}

    def work(rank: int) -> None:
        group = ThreadGroup(rank, world, barrier, slots)  # type: ignore[arg-type]
        folder = str(tmp_path / f"{world}-{micro_batch}")
        histories[rank] = run(split, folder, group=group, network=networks[rank])

    networks = [denoiser() for _ in range(world)]
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in range(world):
        for ours, theirs in zip(histories[rank], reference, strict=True):
            for key in theirs.keys() - TIMES:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-7, abs=1e-10), key


def test_the_reference_is_the_adapter_frozen_at_the_start(tmp_path: Path) -> None:
    run(DRO.model_copy(update={"steps": 2}), str(tmp_path / "stage1"))
    network = denoiser()
    run(DPO, str(tmp_path / "stage2"), start=str(tmp_path / "stage1"), network=network)
    data = pairs()
    x, t, prompts = torch.randn(2, 4, 8, 8).double(), torch.tensor([10, 700]), data.embeddings[:2]

    adapters.activate(network.module, REFERENCE)
    frozen = network.predict(x, t, prompts)
    adapters.activate(network.module, LEARNER)
    learned = network.predict(x, t, prompts)

    fresh = denoiser()
    adapters.attach(fresh.module, LORA, names=("stage1",), seed=9)
    lora.load_weights(
        fresh.module, LORA, folder=str(tmp_path / "stage1"), name="stage1", component="unet"
    )
    assert torch.equal(frozen, fresh.predict(x, t, prompts))
    assert not torch.equal(frozen, learned)


@pytest.mark.parametrize("start", [False, True])
def test_a_reference_that_follows_is_the_average_of_the_learners(
    start: bool, tmp_path: Path
) -> None:
    """Written out: it begins as the frozen one would, and keeps 0.7 of itself per step."""
    update = {"reference": "ema", "reference_decay": 0.7, "steps": 4, "lr": 1e-2}
    begin = str(tmp_path / "first") if start else None
    if begin:
        run(DPO.model_copy(update={"steps": 2, "lr": 1e-2}), begin)
    network, seen = denoiser(), []

    def watch(metrics: dict[str, float]) -> None:
        seen.append([adapters.vector(network.module, n).clone() for n in (LEARNER, REFERENCE)])

    frozen = denoiser()
    run(DPO.model_copy(update={"steps": 1}), str(tmp_path / "b"), start=begin, network=frozen)
    stage = DPO.model_copy(update=update)
    run(stage, str(tmp_path / "a"), start=begin, network=network, on_step=watch)
    expected = adapters.vector(frozen.module, REFERENCE).detach()
    for learner, reference in seen:
        expected = 0.7 * expected + 0.3 * learner
        torch.testing.assert_close(reference, expected, rtol=0, atol=1e-12)
    assert (seen[0][1] - seen[-1][1]).abs().max() > 1e-3


def test_from_the_base_the_reference_is_the_base_itself(tmp_path: Path) -> None:
    network = denoiser()
    run(DPO.model_copy(update={"steps": 5}), str(tmp_path), network=network)
    x, t, prompts = torch.randn(1, 4, 8, 8).double(), torch.tensor([500]), pairs().embeddings[:1]
    adapters.activate(network.module, REFERENCE)
    assert torch.equal(network.predict(x, t, prompts), denoiser().predict(x, t, prompts))


@pytest.mark.parametrize("name", STAGES)
def test_only_the_learner_is_trained(name: str, tmp_path: Path) -> None:
    network = denoiser()
    before = {key: value.clone() for key, value in network.module.state_dict().items()}
    run(STAGES[name].model_copy(update={"steps": 3}), str(tmp_path), network=network)
    for key, value in network.module.state_dict().items():
        if "lora_" not in key:
            assert torch.equal(value, before[key.replace(".base_layer", "")]), key


def test_the_moving_average_is_what_is_saved(tmp_path: Path) -> None:
    """EMA written out: decay min(d, (1 + n) / (10 + n)) as diffusers' EMAModel has it."""
    decay, shadow = 0.5, None
    network = denoiser()
    seen: list[list[torch.Tensor]] = []

    def watch(metrics: dict[str, float]) -> None:
        seen.append([p.detach().clone() for p in adapters.matrices(network.module, LEARNER)])

    stage = DPO.model_copy(update={"steps": 6, "ema_decay": decay, "lr": 1e-2})
    run(stage, str(tmp_path), network=network, on_step=watch)
    fresh = denoiser()
    adapters.attach(fresh.module, LORA, names=(LEARNER,), seed=0)
    shadow = [p.detach().clone() for p in adapters.matrices(fresh.module, LEARNER)]
    for n, values in enumerate(seen):
        d = 0.0 if n == 0 else min(decay, (1 + n) / (10 + n))
        shadow = [s * d + v * (1 - d) for s, v in zip(shadow, values, strict=True)]
    lora.load_weights(fresh.module, LORA, folder=str(tmp_path), name=LEARNER, component="unet")
    saved = adapters.matrices(fresh.module, LEARNER)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(saved, shadow, strict=True))


def test_a_flip_per_image_is_drawn_after_all_else_and_mirrors_the_rejected_image_alone() -> None:
    network, data = denoiser(), pairs()
    stages = [DPO.model_copy(update={"flip_per": per}) for per in ("pair", "image")]
    one, other = (
        stage.experience()(
            network, data, stage, [Draw(i, torch.Generator().manual_seed(i)) for i in range(10)]
        )
        for stage in stages
    )
    assert torch.equal(one.timesteps_B, other.timesteps_B)
    assert torch.equal(one.sides[0].x_BCHW, other.sides[0].x_BCHW)
    same = [
        torch.equal(a, b) for a, b in zip(one.sides[1].x_BCHW, other.sides[1].x_BCHW, strict=True)
    ]
    assert 0 < sum(same) < len(same)


@pytest.mark.parametrize(
    ("decay", "every", "steps", "lag"),
    [
        (0.9, 8, 3200, 73.0),
        (0.987, 1, 3200, 75.9),  # what the preset sd35m has in its place in stage 1
        (0.9, 8, 500, 76.9),  # stage 2 ends five steps after an update
        (0.987, 1, 500, 50.0),  # not its equal there: n / (n + 9) is less than 0.987 up to 683
    ],
)
def test_how_far_an_average_lags_behind(decay: float, every: int, steps: int, lag: float) -> None:
    """Where the weights move by 1 per step, the average is so many steps behind them."""
    learner = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    ema = EMAModel([learner], decay=decay)
    for step in range(1, steps + 1):
        learner.data.fill_(step)
        average(ema, learner, step=step, every=every)
    assert steps - ema.shadow_params[0].item() == pytest.approx(lag, abs=0.05)


def test_warm_up_is_linear_then_constant(tmp_path: Path) -> None:
    stage = DPO.model_copy(update={"steps": 6, "warmup_steps": 4})
    history = run(stage, str(tmp_path))
    assert [m["lr"] / stage.lr for m in history] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])


def test_policy_follows_the_learner_every_lag_steps(tmp_path: Path) -> None:
    network = denoiser()
    distances: list[bool] = []

    def watch(metrics: dict[str, float]) -> None:
        policy = adapters.matrices(network.module, POLICY)
        start = [p.detach().clone() for p in policy]
        distances.append(all(torch.equal(a, b) for a, b in zip(start, held[-1], strict=True)))
        held.append(start)

    lora_start = denoiser()
    adapters.attach(lora_start.module, LORA, names=(POLICY,), seed=0)
    held = [[p.detach().clone() for p in adapters.matrices(lora_start.module, POLICY)]]
    stage = DRO.model_copy(update={"steps": 8, "policy_lag": 3})
    run(stage, str(tmp_path), network=network, on_step=watch)
    # Refreshed before steps 4 and 7 (at 1 it already is the learner).
    assert distances == [True, True, True, False, True, True, False, True]


def test_on_policy_the_policy_term_only_gates(tmp_path: Path) -> None:
    """With policy = learner its error is 0, and so is the gradient."""
    network = denoiser()
    adapters.attach(network.module, LORA, names=(LEARNER, REFERENCE, POLICY), seed=0)
    draws = [Draw(i, torch.Generator().manual_seed(i)) for i in range(4)]
    _, rejected = measure(network, DRO.experience()(network, pairs(), DRO, draws))
    assert rejected.error.abs().max() < 1e-12
    learner = adapters.vector(network.module, LEARNER)
    (gradient,) = torch.autograd.grad(rejected.error.sum(), learner)
    assert gradient.abs().max() < 1e-8


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    tmp_path: Path,
) -> None:
    stage = DPO.model_copy(update={"steps": 8, "checkpoint_every": 2})
    network = denoiser()

    def poison(metrics: dict[str, float]) -> None:
        if metrics["step"] == 5:
            with torch.no_grad():
                adapters.matrices(network.module, LEARNER)[0].fill_(float("nan"))

    with pytest.raises(DivergedError, match="step 6"):
        run(stage, str(tmp_path), network=network, on_step=poison)
    step, tensors = checkpoints.latest(str(tmp_path / "checkpoints"))  # type: ignore[misc]
    assert step == 4
    assert all(value.isfinite().all() for value in tensors.values())


def test_every_pair_is_seen_once_per_epoch() -> None:
    from raypref.align.loop import _draw_of

    stage = DPO.model_copy(update={"batch": 5})
    drawn = [
        _draw_of(i, step, stage, 10, name="x", seed=0).pair for step in range(4) for i in range(5)
    ]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]


def test_loras_kept_on_the_way_change_nothing(tmp_path: Path) -> None:
    stage = DRO.model_copy(update={"steps": 6, "ema_decay": 0.9})
    quiet = run(stage, str(tmp_path / "quiet"))
    kept = run(stage.model_copy(update={"sample_every": 3}), str(tmp_path / "kept"))
    assert [m["loss"] for m in kept] == [m["loss"] for m in quiet]
    name = "pytorch_lora_weights.safetensors"
    final = load_file(tmp_path / "quiet" / name)
    halfway, last = (
        load_file(Path(milestone(str(tmp_path / "kept"), step)) / name) for step in (3, 6)
    )
    assert all(torch.equal(final[key], last[key]) for key in final)
    assert any(not torch.equal(final[key], halfway[key]) for key in final)


@pytest.mark.parametrize(("name", "kept"), [("dro", True), ("dpo", False)])
def test_a_checkpoint_holds_the_policy_where_something_samples_from_it(
    name: str, kept: bool, tmp_path: Path
) -> None:
    run(STAGES[name].model_copy(update={"steps": 2, "checkpoint_every": 2}), str(tmp_path))
    found = checkpoints.latest(str(tmp_path / "checkpoints"))
    assert found is not None
    assert ("policy" in found[1]) == kept
    assert "learner" in found[1]


def test_deterministic_algorithms_are_asked_for_by_name(tmp_path: Path) -> None:
    asked: list[bool] = []

    def note(metrics: dict[str, float]) -> None:
        asked.append(torch.are_deterministic_algorithms_enabled())

    for wanted in (True, False):
        stage = DPO.model_copy(update={"steps": 1, "deterministic": wanted})
        run(stage, str(tmp_path / str(wanted)), on_step=note)
    assert asked == [True, False]


def test_a_training_of_another_version_begins_anew_and_keeps_its_checkpoints(
    tmp_path: Path,
) -> None:
    checkpoints.write(str(tmp_path / "checkpoints"), 800, {"learner.0": torch.zeros(1)})
    run(DPO.model_copy(update={"steps": 2, "checkpoint_every": 1}), str(tmp_path))
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step-00000001.safetensors",
        "step-00000002.safetensors",
    ]
