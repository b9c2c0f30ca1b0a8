"""Which rewards of a training share an actor, what the actors hold, and what they ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from raypref.align.config import TrainingConfig
from raypref.align.online_config import OnlineConfig, RewardedConfig
from raypref.core.config import InputError, Resources
from raypref.engine.worker import needs_of, shared_worker
from raypref.rewards.base import Score
from raypref.rewards.config import RewardConfig
from raypref.rewards.passes import Measure, passes

if TYPE_CHECKING:
    from raypref.align.image_scores import WorkerScores


class RewardGroup(NamedTuple):
    """Rewards whose models are in memory together, in each of so many actors."""

    rewards: Mapping[str, RewardConfig]  # by name
    need: Resources  # `workers`: how many actors
    runtime_env: Mapping[str, Any] | None  # Ray's description of an environment of their own
    embeds: str | None  # the one of them whose embeddings are wanted

    @property
    def name(self) -> str:
        """For messages."""
        return f"reward actors ({', '.join(self.rewards)})"

    @property
    def images(self) -> int:
        """How many images an actor is sent at once: the largest batch of its rewards."""
        return max(config.resources.batch for config in self.rewards.values())


def hold(group: RewardGroup) -> WorkerScores:
    """Load the rewards of a group: what an actor does."""
    from raypref.align.image_scores import WorkerScores

    scores = WorkerScores(group.rewards)
    scores.embeds = group.embeds  # embeddings are those of the first of all rewards that embeds
    return scores


ScoredBy: TypeAlias = tuple[RewardGroup, Sequence[Any]]  # rewards, handles of their actors


def reward_groups(
    training: TrainingConfig, rewards: Mapping[str, RewardConfig]
) -> list[RewardGroup]:
    """The rewards of a training by the actors that hold them; none where its workers do.

    Models of billions of weights, and those with an environment of their own, have actors of their
    own; the others share actors, as they share workers where stored images are scored.

    Args:
        training: of whose `reward_actors` each group has so many.
        rewards: settings of its rewards by name, in order.
    """
    if not isinstance(training, RewardedConfig) or not training.reward_actors:
        return []
    measures = {
        name: Measure(Score(config, columns={}, prompt="prompt"), {}, (), config.runtime_env)
        for name, config in rewards.items()
    }
    first = next((name for name, config in rewards.items() if config.embeds), None)
    groups = []
    for together in passes(measures):
        need = shared_worker(needs_of([measure.stage for measure in together.values()]))
        own = {name: rewards[name] for name in together}
        env = next(iter(own.values())).runtime_env
        need = need.model_copy(update={"workers": training.reward_actors})
        groups.append(RewardGroup(own, need, env, first if first in own else None))
    return groups


def check_actors(
    training: RewardedConfig, rewards: Mapping[str, RewardConfig], *, key: str
) -> None:
    """Raise InputError where the rewards of a training cannot be where they are to be.

    Args:
        training: its settings.
        rewards: settings of its rewards by name.
        key: of the training in the settings, for messages.
    """
    actors = training.reward_actors
    apart = [name for name, config in rewards.items() if config.runtime_env is not None]
    if apart and not actors:
        raise InputError(
            f"{key}.reward_actors=0: {', '.join(apart)} needs an environment of its own, which the "
            f"training's workers have not; set {key}.reward_actors=1"
        )
    if actors and not isinstance(training, OnlineConfig):
        raise InputError(
            f"{key}.reward_actors={actors}: objective={training.objective} needs the gradient of "
            f"its rewards, which no actor hands back; set {key}.reward_actors=0"
        )
    workers = training.resources.workers
    images = math.ceil(training.batch / training.samples_per_draw / max(1, workers))
    for group in reward_groups(training, rewards):
        most = workers * math.ceil(images / group.images)
        if actors > most:
            raise InputError(
                f"{key}.reward_actors={actors}: at most {most} of them would have work: each of "
                f"{workers} workers makes {images} images at once, and an actor scores "
                f"{group.images} at a time (resources.batch of {', '.join(group.rewards)})"
            )


def all_of(needs: Sequence[Resources]) -> Resources:
    """What workers of several kinds hold at once, as if one worker held it."""
    return Resources(
        num_cpus=sum(need.workers * need.num_cpus for need in needs),
        num_gpus=sum(need.workers * need.num_gpus for need in needs),
        memory_gib=sum(need.workers * need.memory_gib for need in needs),
    )
