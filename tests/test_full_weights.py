"""Trainings of all weights (`lora.rank=0`): equal to a plain implementation, resume, ranks."""

from __future__ import annotations

import threading
from pathlib import Path

import diffusers
import pytest
import torch
from plain_full import PlainFull
from plain_training import SD3, SD15
from test_loop import TIMES, ThreadGroup
from training import BASES, denoiser, facts_of, photographs, run, training, twin

from raypref.align.residuals import LEARNER, REFERENCE
from raypref.core.config import InputError
from raypref.models import adapters, network
from raypref.models.families.registry import family as family_of
from raypref.models.lora_config import LoraConfig

ALL = LoraConfig(rank=0)
COMMON = {"steps": 20, "batch": 3, "micro_batch": 2, "ema_decay": 0.9, "warmup_steps": 3}
DRO = training(
    objective="dro", lr=1e-4, rollout_steps=3, policy_lag=4, margin=-0.005, clip=0.05, **COMMON
)
DPO = training(objective="dpo", lr=1e-4, beta=100, clip=0.5, **COMMON)
STAGES = {"dro": DRO, "dpo": DPO}
PLAIN = {"sd15": SD15, "sd35m": SD3}


def folder_of(folder: Path, family: str) -> torch.nn.Module:
    """The trained network as plain diffusers opens it."""
    own = family_of(family)
    kind = getattr(diffusers, own.network)
    module: torch.nn.Module = kind.from_pretrained(
        folder, subfolder=own.component, torch_dtype=torch.float64
    )
    return module


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize("name", STAGES)
def test_every_step_and_the_file_equal_a_plain_implementation(
    family: str, name: str, tmp_path: Path
) -> None:
    stage, made, weights = STAGES[name], denoiser(family), []

    def note(metrics: object) -> None:
        weights.append([p.clone() for p in adapters.matrices(made.module, LEARNER)])

    history = run(stage, str(tmp_path), network=made, on_step=note, family=family, lora=ALL)
    plain = PlainFull(
        PLAIN[family](BASES[family].model),
        [(caption, photo, twin(photo)) for caption, photo in photographs(10)],
        stage,
        targets=(),
        rank=0,
        alpha=0,
        seed=0,
        name=f"test-{name}",
        facts={key: values.tolist() for key, values in facts_of(stage).items()},
    )
    before = [p.detach().clone() for p in plain.parameters]
    for i in range(stage.steps):
        plain.step()
        assert history[i]["loss"] == pytest.approx(plain.losses[i], abs=1e-6)
        assert history[i]["grad_norm"] == pytest.approx(plain.norms[i], abs=1e-6)
        assert len(weights[i]) == len(plain.weights[i])
        for ours, theirs in zip(weights[i], plain.weights[i], strict=True):
            assert (ours - theirs).abs().max() < 1e-6
        moved = sum(
            (now - then).square().sum().item()
            for now, then in zip(plain.weights[i], before, strict=True)
        )
        assert history[i]["weights_norm"] == pytest.approx(moved**0.5, rel=1e-6, abs=1e-9)
    assert max(plain.norms) > stage.clip  # the example has steps with clipping
    changed = [(a - b).abs().max() > 1e-5 for a, b in zip(weights[-1], before, strict=True)]
    assert sum(changed) > 0.9 * len(changed)

    saved = folder_of(tmp_path, family)
    for value, average in zip(saved.parameters(), plain.shadow, strict=True):
        assert (value - average).abs().max() < 1e-6
    # What it predicts is what the average of the plain one predicts.
    for parameter, average in zip(plain.learner.parameters(), plain.shadow, strict=True):
        parameter.data = average
    shape = (made.module.config.in_channels, 8, 8)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()
    asked = [x], [500.0], [plain.prompt("a red ball")]
    with torch.no_grad():
        ours, theirs = (plain.family.many(net, *asked) for net in (saved, plain.learner))
    assert (ours - theirs).abs().max() < 1e-6


@pytest.mark.parametrize("name", STAGES)
def test_resume_is_equal_to_the_bit(name: str, tmp_path: Path) -> None:
    # The policy is older than the learner at the checkpoint.
    update = {"steps": 7, "checkpoint_every": 3, "policy_lag": 2, "warmup_steps": 1}
    stage = STAGES[name].model_copy(update=update)
    straight = run(stage, str(tmp_path / "straight"), lora=ALL)

    class KilledError(Exception):
        pass

    def die(metrics: dict[str, float]) -> None:
        if metrics["step"] == 5:
            raise KilledError

    with pytest.raises(KilledError):
        run(stage, str(tmp_path / "killed"), on_step=die, lora=ALL)
    resumed = run(stage, str(tmp_path / "killed"), lora=ALL)
    for ours, theirs in zip(resumed, straight, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - TIMES:
            assert ours[key] == theirs[key], key
    one, other = (folder_of(tmp_path / way, "sd15") for way in ("killed", "straight"))
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("name", STAGES)
def test_two_ranks_equal_one(name: str, tmp_path: Path) -> None:
    stage = STAGES[name].model_copy(update={"steps": 3, "batch": 5, "micro_batch": 5})
    alone = run(stage, str(tmp_path / "one"), lora=ALL)
    split = stage.model_copy(update={"micro_batch": 2})
    barrier, slots = threading.Barrier(2), [None] * 2
    networks, histories = [denoiser() for _ in range(2)], {}

    def work(rank: int) -> None:
        group = ThreadGroup(rank, 2, barrier, slots)  # type: ignore[arg-type]
        histories[rank] = run(
            split, str(tmp_path / "two"), group=group, network=networks[rank], lora=ALL
        )

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in range(2):
        for ours, theirs in zip(histories[rank], alone, strict=True):
            for key in theirs.keys() - TIMES:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-7, abs=1e-10), key


def test_a_second_training_starts_from_the_first_which_is_its_reference(tmp_path: Path) -> None:
    run(DRO.model_copy(update={"steps": 2}), str(tmp_path / "stage1"), lora=ALL)
    made = denoiser()
    stage = DPO.model_copy(update={"steps": 2, "ema_decay": 0.0, "warmup_steps": 0})
    history = run(
        stage, str(tmp_path / "stage2"), start=str(tmp_path / "stage1"), network=made, lora=ALL
    )
    assert history[0]["loss"] == pytest.approx(0.6931471805599453, abs=1e-9)
    assert history[1]["chosen_gap"] != 0.0
    first = folder_of(tmp_path / "stage1", "sd15")
    for ours, theirs in zip(
        adapters.matrices(made.module, REFERENCE), first.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
    # Against the base the two trainings add up; with reference=base that is what is compared with.
    compared = run(
        stage.model_copy(update={"reference": "base"}),
        str(tmp_path / "other"),
        start=str(tmp_path / "stage1"),
        lora=ALL,
    )
    assert compared[0]["chosen_gap"] != 0.0


def test_weights_are_kept_in_float32_where_the_base_is_bfloat16() -> None:
    module = denoiser().module.to(torch.bfloat16)
    before = [p.detach().clone() for p in module.parameters()]
    adapters.attach(module, ALL, names=(LEARNER, REFERENCE), seed=0)
    vector = adapters.vector(module, LEARNER)
    assert vector.dtype == torch.float32
    assert all(
        torch.equal(own, base)
        for own, base in zip(adapters.matrices(module, LEARNER), before, strict=True)
    )
    with torch.no_grad():
        vector += 2.0**-20  # below the spacing of most weights in bfloat16
    adapters.activate(module, LEARNER, train=True)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    x = torch.randn(1, 4, 8, 8, dtype=torch.bfloat16)
    text = torch.randn(1, 77, module.config.cross_attention_dim, dtype=torch.bfloat16)
    for _ in range(2):  # micro-batches add up in float32
        module(x, torch.tensor([10]), text).sample.float().square().sum().backward()
    assert vector.grad is not None and vector.grad.dtype == torch.float32
    assert all(p.grad is None for p in module.parameters())
    adapters.activate(module, REFERENCE)
    assert not any(p.requires_grad for p in module.parameters())
    assert all(torch.equal(p, base) for p, base in zip(module.parameters(), before, strict=True))


def test_buffers_stay_as_they_are(tmp_path: Path) -> None:
    made = denoiser("sd35m")
    table = dict(made.module.named_buffers())["pos_embed.pos_embed"].clone()
    stage = DPO.model_copy(update={"steps": 1, "warmup_steps": 0})
    run(stage, str(tmp_path), network=made, family="sd35m", lora=ALL)
    saved = folder_of(tmp_path, "sd35m")
    assert torch.equal(dict(saved.named_buffers())["pos_embed.pos_embed"], table)


def test_a_start_of_another_architecture_is_refused(tmp_path: Path) -> None:
    run(DPO.model_copy(update={"steps": 2}), str(tmp_path), lora=ALL)
    with pytest.raises(InputError, match="another architecture"):
        network.read_network(denoiser("sdxl").module.state_dict(), str(tmp_path), component="unet")
    with pytest.raises(InputError, match="no weights of a transformer"):
        network.read_network(
            denoiser("sd35m").module.state_dict(), str(tmp_path), component="transformer"
        )
