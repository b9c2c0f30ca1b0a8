"""The training loop of one rank: any objective, any model family, no Ray.

Every rank takes the samples `rank, rank + world, ...` of the global batch and divides its loss by
the size of the global batch, so one sum over the ranks is the gradient of the whole batch however
it was split. That sum is one collective an optimizer step, over the gradient of one flat vector.
Where the ranks share the weights (`sharded=true`), each has a part of that vector, and backward
itself sums what it adds to the part's gradient.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn

from raypref.align import checkpoints, curriculum
from raypref.align.backprop import Backprop
from raypref.align.backprop_config import BackpropConfig
from raypref.align.config import TrainingConfig
from raypref.align.image_scores import LatentScores
from raypref.align.online import Rollouts
from raypref.align.online_config import OnlineConfig
from raypref.align.pair_data import PairData
from raypref.align.residuals import (
    LEARNER,
    REFERENCE,
    Draw,
    Residuals,
    Samples,
    measure,
    within,
)
from raypref.align.rollout_config import RolloutConfig
from raypref.align.state import (
    State,
    average,
    export_learner,
    milestone,
    prepare,
    restore,
    tensors_of,
)
from raypref.align.watch import LORA_NORM, WEIGHTS_NORM, StepMetrics, Watch
from raypref.core.config import InputError
from raypref.core.ledger import join, remove_unfinished
from raypref.core.rows import seed_of
from raypref.models import adapters
from raypref.models.compiled import compile_blocks
from raypref.models.families.base import Denoiser, Hole
from raypref.models.lora_config import LoraConfig


class Ranks(Protocol):
    """The ranks that train together."""

    @property
    def rank(self) -> int:
        """This rank, 0 .. world-1."""

    @property
    def world(self) -> int:
        """How many there are."""

    def sum(self, values: Tensor) -> None:
        """Replace `values` by their sum over all ranks."""


@dataclass(frozen=True)
class Alone:
    """A group of one."""

    rank: int = 0
    world: int = 1

    def sum(self, values: Tensor) -> None:
        """Nothing to add."""


def train(
    denoiser: Denoiser,
    data: PairData,
    training: TrainingConfig,
    lora_config: LoraConfig,
    *,
    name: str,
    draws: str,
    seed: int,
    folder: str,
    start: str | None,
    group: Ranks,
    on_step: Callable[[StepMetrics], None],
    hole: Hole | None = None,
    judge: LatentScores | None = None,
) -> list[StepMetrics]:
    """Run a training to its end, from its last checkpoint if there is one.

    Args:
        denoiser: the network, without adapters yet.
        data: the pairs, in the host's memory; what a step needs goes to the device.
        training: its settings: objective, schedule, batch.
        lora_config: shape of the adapter; with rank 0 it is all weights.
        name: of the training, for messages.
        draws: of its stream of random numbers; part of every seed.
        seed: seed of the run.
        folder: where checkpoints and the exported LoRA or network go, local or URI.
        start: folder with what to continue, as a training exports it; None for the base model.
        group: the ranks; rank 0 writes.
        on_step: called on rank 0 with the metrics of every step, in order. On a GPU the next step
            is on its way by then: the device does not wait for the host.
        hole: `Family.hole`, for trainings whose errors count in the hole alone.
        judge: decodes and scores images, for trainings that learn from rewards.

    Returns:
        The metrics of every step since the training began, also those before a resume.

    Raises:
        DivergedError: training cannot go on; the last good checkpoint is kept.
    """
    torch.use_deterministic_algorithms(training.deterministic)
    sharded = training.sharded and group.world > 1
    state = prepare(denoiser, training, lora_config, seed=seed, start=start, sharded=sharded)
    restored = restore(denoiser.module, state, folder)
    _require_one_step(state, group, device=denoiser.device)
    if training.compile:
        compile_blocks(denoiser.module)
    data = training.prepared(data, key=f"train.{name}")
    easiest_N = curriculum.easiest_first(data) if training.curriculum != "off" else None
    writes = group.rank == 0
    if writes:
        remove_unfinished(folder)  # a killed worker may have left half a checkpoint
    if writes and not state.step:
        # Of another version: a state of theirs is no start, and would crowd out ours.
        checkpoints.clear(join(folder, "checkpoints"))
    tell = on_step if writes else _keep_quiet
    watch = Watch(training, history=state.history, name=name, tell=tell)
    rollouts: Rollouts | None = None
    backprop: Backprop | None = None
    if isinstance(training, BackpropConfig):
        assert judge is not None, "a training on gradients of rewards has rewards"
        backprop = Backprop(denoiser, data, training, judge=judge)
        backprop.load(restored)
    if isinstance(training, OnlineConfig):
        assert judge is not None, "an online training has rewards"
        rollouts = Rollouts(
            *(denoiser, data, training), judge=judge, name=draws, seed=seed, group=group
        )
        rollouts.load(restored)
    rewarded = rollouts or backprop
    norm_name = LORA_NORM if lora_config.rank else WEIGHTS_NORM
    while state.step < training.steps:
        began = time.perf_counter()
        if isinstance(training, RolloutConfig) and state.step % training.policy_lag == 0:
            training.refresh(denoiser.module, first=state.step == 0)
        indices = _own_indices(training, group)
        mine = [
            _draw_of(i, state.step, training, len(data), name=draws, seed=seed) for i in indices
        ]
        if easiest_N is not None:
            mine = curriculum.reordered(mine, easiest_N, training, step=state.step)
        if backprop is not None:
            sums = backprop.sums(mine, state.step)
        elif rollouts is not None:
            portions = rollouts.samples(mine, indices, state.step)
            sums = _learned(denoiser, training, state, portions, hole)
        else:
            portions = _portions(denoiser, data, training, mine)
            sums = _learned(denoiser, training, state, portions, hole)
        metrics = _stepped(training, state, sums, group)
        if backprop is not None:
            backprop.remember(metrics)
        if training.reference == "ema":
            adapters.blend(denoiser.module, LEARNER, REFERENCE, keep=training.reference_decay)
        norm = adapters.update_norm(denoiser.module, LEARNER)
        state.step += 1
        watch.add(state.step, {**metrics, norm_name: norm}, began=began)
        checkpoint = state.step % training.checkpoint_every == 0 or state.step == training.steps
        sample = training.sample_every and state.step % training.sample_every == 0
        if checkpoint or sample:
            watch.read_all()  # on every rank, so that all stop before a bad state is written
        if checkpoint:
            also = rewarded.state() if rewarded is not None and writes else {}
            tensors = tensors_of(denoiser.module, state, training, also)
            if writes:
                checkpoints.write(join(folder, "checkpoints"), state.step, tensors)
        if sample:
            place = milestone(folder, state.step)
            export_learner(denoiser, state, lora_config, folder=place, writes=writes)
    export_learner(denoiser, state, lora_config, folder=folder, writes=writes)
    return state.history


def _require_one_step(state: State, group: Ranks, *, device: torch.device) -> None:
    """All ranks found the same checkpoint: else gradients of different steps would be summed."""
    total = torch.tensor([float(state.step)], device=device)
    group.sum(total)
    assert total.item() == state.step * group.world, "ranks resume from different steps"


def _keep_quiet(metrics: StepMetrics) -> None:
    """What ranks other than 0 tell of a step."""


def _learned(
    denoiser: Denoiser,
    training: TrainingConfig,
    state: State,
    portions: Iterator[Samples],
    hole: Hole | None,
) -> dict[str, Tensor]:
    """Forward and backward of this rank's samples of a step, `portions`.

    Returns:
        Metrics, summed over the samples and divided by the size of the batch, on the device.
    """
    # The last step's metrics may not have been read yet (`watch.LAG`): left out on every device.
    carried = training.carried(state.history[: max(0, state.step - 1)])
    sums: dict[str, Tensor] = {}
    for samples in (part for whole in portions for part in whole.split(training.micro_batch)):
        sides = measure(
            denoiser,
            samples,
            against=training.against,
            policy=training.reads_policy,
            factor_B1HW=_factor(training, samples, hole),
        )
        facts = {
            key: sides[0].error.new_full((len(samples.timesteps_B),), value)
            for key, value in carried.items()
        }
        loss_B, metrics = training.loss(sides, {**samples.facts, **facts})
        shape = tuple(samples.sides[0].x_BCHW.shape[1:])
        schedule_T = denoiser.training_timesteps(shape)
        loss_B = training.weighted(loss_B, samples.timesteps_B, schedule_T)
        (loss_B.sum() / training.batch).backward()
        for key, values_B in {
            "loss": loss_B.detach(),
            **_against_reference(sides, training.sides),
            **metrics,
            **training.reported(sides, samples.facts),
        }.items():
            sums[key] = sums.get(key, 0) + values_B.sum() / training.batch
    return sums


def _stepped(
    training: TrainingConfig, state: State, sums: dict[str, Tensor], group: Ranks
) -> Mapping[str, Tensor | float]:
    """Gradient and metrics summed over the ranks, and the step of the optimizer."""
    norm = _sum_over_ranks(state, sums, group)
    nn.utils.clip_grads_with_norm_(state.learner, training.clip, norm)
    rate = training.learning_rate(state.step)
    state.optimizer.param_groups[0]["lr"] = rate
    state.optimizer.step()
    state.optimizer.zero_grad()
    if state.ema is not None:
        average(state.ema, state.learner, step=state.step + 1, every=training.ema_every)
    return {
        **sums,
        "grad_norm": norm,
        "lr": rate,
    }


def _factor(training: TrainingConfig, samples: Samples, hole: Hole | None) -> Tensor | None:
    """What residuals are multiplied by; None where errors count everywhere."""
    if training.region == "image":
        return None
    surroundings_BKHW = samples.prompts.surroundings_BKHW
    if hole is None or surroundings_BKHW is None:
        raise InputError("region=hole: the base does not inpaint; set region=image")
    return within(hole(surroundings_BKHW), mean=training.region_mean)


def _portions(
    denoiser: Denoiser, data: PairData, training: TrainingConfig, draws: Sequence[Draw]
) -> Iterator[Samples]:
    """The samples, those of one size together; rollouts are done for many micro-batches at once."""
    experience = training.experience()
    size = max(1, training.samples_at_once // training.samples_per_draw)
    for alike in data.by_shape([draw.pair for draw in draws]):
        for first in range(0, len(alike), size):
            some = [draws[position] for position in alike[first : first + size]]
            yield experience(denoiser, data, training, some)


def _against_reference(sides: Sequence[Residuals], names: Sequence[str]) -> dict[str, Tensor]:
    """Per side the reference's error, and the learner's less that: both may rise unseen."""
    found = {}
    for name, side in zip(names, sides, strict=True):
        if side.reference is None:
            found[f"{name}_error"] = side.error.detach()
            continue
        found[f"ref_{name}"] = side.reference_error.detach()
        found[f"{name}_gap"] = side.gap.detach()
    return found


def _own_indices(training: TrainingConfig, group: Ranks) -> list[int]:
    """This rank's draws of a step's global batch; a pair's draws stay on one rank."""
    each = training.draws_per_pair
    pairs = range(group.rank, training.pairs_per_step, group.world)
    return [pair * each + number for pair in pairs for number in range(each)]


def _draw_of(
    index: int, step: int, training: TrainingConfig, pairs: int, *, name: str, seed: int
) -> Draw:
    """Draw `index` of a step's global batch: pairs come in a new order every epoch."""
    order = step // training.steps_per_order
    position = order * training.pairs_per_step + index // training.draws_per_pair
    epoch, place = divmod(position, pairs)
    pair = _shuffled(pairs, seed_of(seed, name, "epoch", epoch))[place]
    generator = torch.Generator().manual_seed(seed_of(seed, name, "sample", step, index))
    return Draw(pair, generator)


@lru_cache(maxsize=2)  # a batch may reach into the next epoch
def _shuffled(count: int, seed: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def _sum_over_ranks(state: State, sums: dict[str, Tensor], group: Ranks) -> Tensor:
    """Sum gradient and metrics over the ranks, in one collective; returns the gradient's norm."""
    gradient_P = state.learner.grad
    assert gradient_P is not None, "the adapter got no gradient"
    metrics = torch.stack(list(sums.values())).to(gradient_P)
    if state.sharded:  # the gradient of this rank's weights is the sum
        squares = nn.utils.get_total_norm([gradient_P]).square()
        flat = torch.cat([metrics, squares[None]])
        group.sum(flat)
        metrics, norm = flat[:-1], flat[-1].sqrt()
    else:
        if group.world > 1:
            flat = torch.cat([gradient_P, metrics])
            group.sum(flat)
            state.learner.grad, metrics = flat.split([len(gradient_P), len(sums)])
        assert state.learner.grad is not None
        norm = nn.utils.get_total_norm([state.learner.grad])
    sums.update(zip(sums, metrics, strict=True))
    return norm
