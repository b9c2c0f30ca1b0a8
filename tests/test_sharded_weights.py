"""All weights sharded over two processes (`sharded=true`) train as one process does unsharded."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import weakref
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from safetensors.torch import load_file
from torch import Tensor, nn
from training import denoiser, run, training

from raypref.align import checkpoints
from raypref.align.residuals import LEARNER
from raypref.align.watch import StepMetrics
from raypref.core.config import InputError, load
from raypref.models import adapters
from raypref.models.lora_config import LoraConfig
from raypref.models.own_weights import OwnWeights
from raypref.run.config import RunConfig

ALL = LoraConfig(rank=0)
TIMES = {"seconds", "images_per_second"}
EVERY, KILLED_IN, SAMPLED = 3, 5, 4
COMMON: dict[str, Any] = {"batch": 4, "micro_batch": 1, "lr": 1e-4, "sharded": True}
DPO = training(
    "dpo",
    beta=100,
    clip=0.5,
    steps=6,
    checkpoint_every=EVERY,
    ema_decay=0.9,
    warmup_steps=2,
    sample_every=SAMPLED,
    **COMMON,
)
FOLLOWS = {"reference": "ema", "reference_decay": 0.7, "ema_decay": 0.0, "steps": 4}
CASES = {  # family and training
    "sft": ("sd15", training("sft", steps=2, **COMMON)),
    "sd15": ("sd15", DPO),
    "sd35m": ("sd35m", DPO),
    # From what "sft" trained.
    "follows": ("sd15", DPO.model_copy(update={**FOLLOWS, "gradient_checkpointing": True})),
}
COMPONENTS = {"sd15": "unet", "sd35m": "transformer"}


class KilledError(Exception):
    pass


@dataclass
class Gloo:
    """The ranks of the default process group, which may all be killed in a step."""

    rank: int
    world: int = 2
    killed_in: int = 0
    sums: int = field(default=0, init=False)

    def sum(self, values: Tensor) -> None:
        self.sums += 1
        if self.sums == 1 + self.killed_in > 1:  # one at the start, one in every step
            raise KilledError
        torch.distributed.all_reduce(values)


# ------------------------------------------------------------------ what each of two processes does


def two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'group'}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=240),  # ranks that wait for different things
    )

    def train(case: str, name: str, killed_in: int = 0, **more: Any) -> None:
        family, stage = CASES[case]
        group = Gloo(rank, killed_in=killed_in)
        made = denoiser(family)
        more |= {"lora": ALL, "group": group, "network": made}
        history = run(stage, str(folder / name), family=family, **more)
        whole = sum(parameter.numel() for parameter in made.module.parameters())
        assert 0.4 * whole < len(adapters.vector(made.module, LEARNER)) < 0.6 * whole
        if rank == 0:
            (folder / name / "history.json").write_text(json.dumps(history))

    for case in CASES:
        train(case, case, start=str(folder / "sft") if case == "follows" else None)
    with pytest.raises(KilledError):
        train("sd15", "resumed", killed_in=KILLED_IN)
    if rank == 0:
        shutil.copytree(folder / "resumed", folder / "unsharded")
    for name in ("resumed", "sharded"):  # the second was begun by one process
        train("sd15", name)
    rows_that_do_not_divide(rank)
    half_precision(rank)
    torch.distributed.destroy_process_group()


def rows_that_do_not_divide(rank: int) -> None:
    """Of 5 rows a rank has 3 and one 2; of a single one, one has none."""
    from raypref.models.sharded_weights import ShardedWeights

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    plain = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    plain.load_state_dict(module.state_dict())
    one, weights = OwnWeights(plain), ShardedWeights(module)
    vector = nn.Parameter(weights.initial())
    assert len(vector) == (3 * 3 + 3 + 5 + 1 if rank == 0 else 2 * 3 + 2)
    everything = one.initial()
    assert torch.equal(weights.own(everything), vector)
    gathered = weights.whole(vector.detach())  # on every rank, or the other would wait
    assert torch.equal(gathered, everything if rank == 0 else everything[:0])
    assert weights.norm(vector) == 0
    # Another vector is read from the next forward on, and the first again after it.
    x = torch.arange(12.0).double().view(4, 3) / 10
    with torch.no_grad():
        weights.use(2 * vector)
        one.use(2 * everything)
        assert torch.allclose(module(x), plain(x), atol=1e-12)
        assert weights.norm(2 * vector) == pytest.approx(one.norm(2 * everything).item())
    weights.use(vector)
    module(x[rank::2]).square().sum().backward()
    whole = nn.Parameter(everything)
    one.use(whole)
    plain(x).square().sum().backward()
    assert vector.grad is not None and whole.grad is not None
    gradient = weights.whole(vector.grad)
    assert rank or (torch.allclose(gradient, whole.grad, atol=1e-12) and gradient.norm() > 0.1)


def half_precision(rank: int) -> None:
    """Vectors and sums of gradients are in float32, the forward in the precision of the base."""
    from raypref.models import sharded_weights
    from raypref.models.sharded_weights import ShardedWeights, fully_shard

    module, plain = (denoiser("sd35m").module.to(torch.bfloat16) for _ in range(2))
    loaded = [weakref.ref(parameter) for parameter in module.parameters()]
    precise: list[set[int]] = []  # those in float32 and whole, at every part that is sharded

    def shard(part: nn.Module, **how: Any) -> Any:
        alive = {id(own) for r in loaded if (own := r()) is not None and own.dtype == torch.float32}
        precise.append(alive - {id(own) for own in part.parameters()})
        return fully_shard(part, **how)

    with patch.object(sharded_weights, "fully_shard", shard):
        weights = ShardedWeights(module)
    assert len(precise) > 2 and not any(precise)  # at most the part itself
    assert not any(r() is not None for r in loaded)
    one = OwnWeights(plain)
    vector, whole = nn.Parameter(weights.initial()), nn.Parameter(one.initial())
    assert vector.dtype == whole.dtype == torch.float32
    weights.use(vector)
    one.use(whole)
    generator = torch.Generator().manual_seed(1)
    c = plain.config
    asked = {
        "hidden_states": torch.randn(2, c.in_channels, 8, 8, generator=generator),
        "encoder_hidden_states": torch.randn(2, 9, c.joint_attention_dim, generator=generator),
        "pooled_projections": torch.randn(2, c.pooled_projection_dim, generator=generator),
        "timestep": torch.tensor([10.0, 500.0]),
    }
    asked = {name: value.to(torch.bfloat16) for name, value in asked.items()}
    for _ in range(2):
        ours = module(**{name: value[rank : rank + 1] for name, value in asked.items()}).sample
        theirs = [plain(**{k: v[n : n + 1] for k, v in asked.items()}).sample for n in range(2)]
        assert ours.dtype == torch.bfloat16 and torch.equal(ours, theirs[rank])
        ours.float().square().sum().backward()
        for prediction in theirs:
            prediction.float().square().sum().backward()
    assert vector.grad is not None and vector.grad.dtype == torch.float32
    gradient = weights.whole(vector.grad)
    if rank == 0:  # apart by what backward rounds in bfloat16; the sum is not rounded to it
        assert whole.grad is not None and whole.grad.norm() > 1
        assert (gradient - whole.grad).norm() < 0.01 * whole.grad.norm()
        assert not torch.equal(gradient, gradient.to(torch.bfloat16).float())


# ------------------------------------------------------------------ what one process finds


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[StepMetrics]]]:
    """Folder and history of every training: "alone-CASE" by this process, others by the two."""
    folder = tmp_path_factory.mktemp("trained")
    found = {}

    def alone(case: str, name: str, **more: Any) -> None:
        family, stage = CASES[case]
        stage = stage.model_copy(update={"sharded": False})
        found[name] = (
            folder / name,
            run(stage, str(folder / name), family=family, lora=ALL, **more),
        )

    for case in CASES:
        start = str(folder / "alone-sft") if case == "follows" else None
        alone(case, f"alone-{case}", start=start)
    begun = f"checkpoints/step-{EVERY:08d}.safetensors"
    (folder / "sharded" / begun).parent.mkdir(parents=True)
    shutil.copy(folder / "alone-sd15" / begun, folder / "sharded" / begun)
    multiprocessing.set_forkserver_preload([training.__module__])  # imported once for the two
    torch.multiprocessing.start_processes(two, (folder,), nprocs=2, start_method="forkserver")
    alone("sd15", "unsharded")
    for name in (*CASES, "resumed", "sharded"):
        found[name] = folder / name, json.loads((folder / name / "history.json").read_text())
    return found


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype and value.shape == other[name].shape, name
        assert (value - other[name]).abs().max() < 1e-6, name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((case, case) for case in CASES),
        ("resumed", "sd15"),
        ("sharded", "sd15"),
        ("unsharded", "sd15"),
    ],
)
def test_two_processes_equal_one(
    name: str, expected: str, trained: dict[str, tuple[Path, list[StepMetrics]]]
) -> None:
    (ours, history), (theirs, plain) = trained[name], trained[f"alone-{expected}"]
    for mine, other in zip(history, plain, strict=True):
        assert mine.keys() == other.keys()
        # At its reference, where it begins, the learner is as often better as rounding has it.
        skipped = {"implicit_accuracy"} if other["step"] <= 2 else set()
        for key in other.keys() - TIMES - skipped:
            assert mine[key] == pytest.approx(other[key], rel=1e-6, abs=1e-6), key
    family = CASES.get(expected, CASES["sft"])[0]
    component = COMPONENTS[family]
    weights = f"{component}/diffusion_pytorch_model.safetensors"
    saved, before = load_file(ours / weights), denoiser(family).module.state_dict()
    assert_close(saved, load_file(theirs / weights))
    moved = [(saved[key] - value).abs().max() > 1e-5 for key, value in before.items()]
    assert sum(moved) > 0.9 * len(moved)
    config = f"{component}/config.json"
    assert (ours / config).read_text() == (theirs / config).read_text()
    kept = f"milestones/step-{SAMPLED:08d}/{weights}"
    assert (ours / kept).is_file() == (theirs / kept).is_file()
    if (ours / kept).is_file():
        assert_close(load_file(ours / kept), load_file(theirs / kept))
    # The states that a resume begins at are laid out alike.
    one, two = (checkpoints.latest(str(at / "checkpoints")) for at in (ours, theirs))
    assert one is not None and two is not None and one[0] == two[0]
    assert_close(
        *({k: v for k, v in state.items() if "history" not in k} for _, state in (one, two))
    )


def test_steps_are_clipped_and_guided(
    trained: dict[str, tuple[Path, list[StepMetrics]]],
) -> None:
    """The example has what needs all ranks: norms above the largest one."""
    assert max(row["grad_norm"] for row in trained["sd15"][1]) > DPO.clip
    assert trained["follows"][1][-1]["chosen_gap"] != 0


def test_resume_is_equal_to_the_bit(
    trained: dict[str, tuple[Path, list[StepMetrics]]],
) -> None:
    (resumed, history), (straight, expected) = trained["resumed"], trained["sd15"]
    for ours, theirs in zip(history, expected, strict=True):
        assert all(ours[key] == theirs[key] for key in theirs.keys() - TIMES)
    weights = "unet/diffusion_pytorch_model.safetensors"
    one, other = load_file(resumed / weights), load_file(straight / weights)
    assert all(torch.equal(one[key], other[key]) for key in other)


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lora.rank=4"], r"train.dpo.sharded=true: a LoRA is not sharded.*set lora.rank=0"),
        (["train.dpo.compile=true"], r"train.dpo.sharded=true: .*leave compile out"),
        (["train.dpo.optimizer=adamw8bit"], r"train.dpo.sharded=true: .*set optimizer=adamw"),
        (["train.dpo.min_workers=1"], r"train.dpo.sharded=true: .*leave min_workers out"),
        (["train.dpo.batch=7"], r"train.dpo.sharded=true: .*batch=7 is no multiple of 2"),
    ],
)
def test_refused(words: list[str], message: str) -> None:
    sharded = ["trainings=dpo", "train.dpo.sharded=true", "train.dpo.resources.workers=2"]
    given = ["lora.rank=0", *sharded, "train.dpo.batch=8"]
    load(RunConfig, "tiny", given)
    with pytest.raises(InputError, match=message):
        load(RunConfig, "tiny", [*given, *words])


@pytest.mark.parametrize("name", ["dro", "spin", "awm", "refl"])
def test_trainings_whose_workers_differ_are_refused(name: str) -> None:
    own = ["lora.rank=0", f"trainings={name}", f"train.{name}.sharded=true"]
    with pytest.raises(InputError, match=f"with {name} some workers call the network more often"):
        load(RunConfig, "tiny", own)
