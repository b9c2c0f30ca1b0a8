"""Scores of a training's images by actors, which hold the reward models in place of its workers."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from raypref.align.image_scores import Scores
from raypref.align.reward_groups import ScoredBy
from raypref.engine.actors import answers_of


@dataclass(frozen=True)
class PooledScores:
    """`ImageScores` by actors: what `WorkerScores` of all the rewards would say.

    Args:
        scored_by: the rewards, each in one of the groups, and who holds them.
        rank: of the worker that asks: each begins with another actor.
    """

    scored_by: Sequence[ScoredBy]
    rank: int

    def __call__(
        self, images_NHWC: np.ndarray, prompts: Sequence[str], names: Sequence[str]
    ) -> Scores:
        """See `ImageScores`.

        Raises:
            InputError: a reward cannot be loaded.
            NoRoomError: an actor's memory is full, or actors are lost again and again.
        """

        def asked(scored_by: ScoredBy) -> list[Scores]:
            group, handles = scored_by
            size, own = group.images, [name for name in names if name in group.rewards]
            if not own and group.embeds is None:
                return []
            calls = [
                (images_NHWC[at : at + size], [*prompts[at : at + size]], own)
                for at in range(0, len(images_NHWC), size)
            ]
            return answers_of(handles, calls, name=group.name, first=self.rank)

        with ThreadPoolExecutor(len(self.scored_by)) as threads:  # all kinds of actors at once
            found = [*threads.map(asked, self.scored_by)]
        by_reward = {
            name: torch.cat([part.by_reward[name] for part in parts])
            for parts in found
            for name in (parts[0].by_reward if parts else ())
        }
        embeddings = [
            part.embedding_ND for parts in found for part in parts if part.embedding_ND is not None
        ]
        return Scores(
            {name: by_reward[name] for name in names}, torch.cat(embeddings) if embeddings else None
        )
