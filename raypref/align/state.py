"""What changes during a training: prepared, written to checkpoints, restored, exported."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from raypref.align import checkpoints
from raypref.align.adamw8bit import AdamW8bit
from raypref.align.config import TrainingConfig
from raypref.align.residuals import LEARNER, POLICY, REFERENCE
from raypref.align.rollout_config import RolloutConfig
from raypref.align.watch import StepMetrics
from raypref.core.ledger import join
from raypref.models import adapters, lora, network
from raypref.models.families.base import Denoiser
from raypref.models.lora_config import LoraConfig

PORTION = 2**26  # values of a vector that are averaged at a time
ONLINE = "online."  # before the names of what a checkpoint holds of rollouts


@dataclass
class State:
    """All that changes during training, and so all that a checkpoint holds.

    With rewards online there is more: what `online.Rollouts.state` gives.
    """

    learner: nn.Parameter  # [P], all values of the adapter, or what this rank has of them
    optimizer: torch.optim.Optimizer
    ema: EMAModel | None
    sharded: bool = False  # each rank has a part of every vector
    step: int = 0
    history: list[StepMetrics] = field(default_factory=list)


def prepare(
    denoiser: Denoiser,
    training: TrainingConfig,
    config: LoraConfig,
    *,
    seed: int,
    start: str | None,
    sharded: bool,
) -> State:
    """Attach the adapters and make the optimizer.

    Args:
        sharded: whether the ranks share all weights of the network.
        denoiser, training, config, seed, start: as those of `loop.train`.
    """
    module = denoiser.module
    names = (LEARNER, REFERENCE, POLICY)
    adapters.attach(module, config, names=names, seed=seed, sharded=sharded)
    if start is not None:
        if config.rank:
            lora.load_weights(
                module, config, folder=start, name=LEARNER, component=denoiser.component
            )
        else:
            found = network.read_network(module.state_dict(), start, component=denoiser.component)
            adapters.set_state(module, LEARNER, found)
        if training.reference != "base":  # else it stays as attached: it adds nothing to the base
            adapters.copy(module, LEARNER, REFERENCE)
    if training.gradient_checkpointing:
        module.enable_gradient_checkpointing()  # type: ignore[operator]
    learner = adapters.vector(module, LEARNER)
    kind = AdamW8bit if training.optimizer == "adamw8bit" else torch.optim.AdamW
    optimizer = kind(
        [learner], lr=training.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=training.weight_decay
    )
    ema = EMAModel([learner], decay=training.ema_decay) if training.ema_decay else None
    return State(learner, optimizer, ema, sharded)


def average(ema: EMAModel, learner: nn.Parameter, *, step: int, every: int) -> None:
    """Move the average towards the learner, if its interval ends with this step.

    The decay is diffusers' for this step, min(decay, n / (n + 9)), whatever the interval.

    Args:
        ema: the average.
        learner: its weights after the step.
        step: n, the optimizer step that was done, counted from 1.
        every: N, steps between updates: they come after the steps N - 1, 2 N - 1, ..., since the
            released code counts a step before it asks whether N divides the next one's number.
    """
    if (step + 1) % every:
        return
    whole = ema.shadow_params
    ema.optimization_step = step - 1
    # In portions, of which diffusers makes copies: two of all weights of a network would not fit.
    ema.shadow_params = [*whole[0].split(PORTION)]
    ema.step(learner.split(PORTION))
    ema.shadow_params = whole


def tensors_of(
    module: nn.Module, state: State, training: TrainingConfig, also: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The state as named tensors, and others after them, named `online.NAME`.

    Every rank asks for it. Where the ranks share the weights, rank 0 gets whole vectors, the same
    as those of a training that is not sharded: any number of workers resumes from them.
    """
    vectors: dict[str, Tensor] = {"learner": state.learner.data}
    if isinstance(training, RolloutConfig):
        vectors["policy"] = adapters.vector(module, POLICY).data
    if training.reference == "ema":
        vectors["reference"] = adapters.vector(module, REFERENCE).data
    adam = state.optimizer.state[state.learner]
    vectors |= {f"adamw.{key}": value for key, value in adam.items() if key != "step"}
    if state.ema is not None:
        (vectors["ema"],) = state.ema.shadow_params
    tensors = {name: adapters.whole(module, vector) for name, vector in vectors.items()}
    tensors["adamw.step"] = adam["step"]
    for key in dict.fromkeys(key for metrics in state.history for key in metrics):
        # A metric that was asked for, or given up, at a resume is not known of every step.
        values = [metrics.get(key, math.nan) for metrics in state.history]
        tensors[f"history.{key}"] = torch.tensor(values, dtype=torch.float64)
    return tensors | {f"{ONLINE}{name}": value for name, value in also.items()}


def restore(module: nn.Module, state: State, folder: str) -> dict[str, Tensor]:
    """Put the last checkpoint back, if there is one; returns what `tensors_of` was given."""
    found = checkpoints.latest(join(folder, "checkpoints"))
    if found is None or "learner" not in found[1]:
        return {}  # 0.1.0's development wrote a tensor per layer: such a training begins anew
    state.step, tensors = found
    device = state.learner.device

    def vector(name: str) -> Tensor:
        return adapters.own(module, tensors[name]).to(device, copy=True)  # not the mapped file's

    adapters.fill(module, LEARNER, adapters.own(module, tensors["learner"]))
    if "policy" in tensors:  # else nothing samples from it
        adapters.fill(module, POLICY, adapters.own(module, tensors["policy"]))
    if "reference" in tensors:  # else it is frozen, and as it was at the start
        adapters.fill(module, REFERENCE, adapters.own(module, tensors["reference"]))
    state.optimizer.state[state.learner] = {
        key.removeprefix("adamw."): value.clone() if key == "adamw.step" else vector(key)
        for key, value in tensors.items()
        if key.startswith("adamw.")
    }
    if state.ema is not None:
        state.ema.shadow_params = [vector("ema")]
    columns = {k.removeprefix("history."): v for k, v in tensors.items() if k.startswith("history")}
    names, rows = list(columns), zip(*(v.tolist() for v in columns.values()), strict=True)
    state.history = [dict(zip(names, row, strict=True)) for row in rows]
    also = {k.removeprefix(ONLINE): v for k, v in tensors.items() if k.startswith(ONLINE)}
    return {name: value.clone() for name, value in also.items()}


def milestone(folder: str, step: int) -> str:
    """Where the weights of a step on the way are kept, for samples."""
    return join(folder, "milestones", f"step-{step:08d}")


def export_learner(
    denoiser: Denoiser, state: State, config: LoraConfig, *, folder: str, writes: bool
) -> None:
    """Write what is trained: the moving average where one is kept (as the released code does).

    Every rank calls it, and one of them writes.
    """
    learner = state.learner if state.ema is None else state.ema.shadow_params[0]
    learner = adapters.whole(denoiser.module, learner)
    if not writes:
        return
    values = adapters.state_of(denoiser.module, learner)
    if config.rank:
        lora.save(values, config, folder=folder, component=denoiser.component)
    else:
        network.write_network(denoiser.module, values, folder=folder, component=denoiser.component)
