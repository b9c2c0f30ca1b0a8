"""RAFT online: supervised fine-tuning on the best images that the policy draws now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator

from raypref.align.config import Metrics
from raypref.align.objectives.decoupled import DecoupledConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raypref.align.blocks import RolloutBlock
    from raypref.align.residuals import Residuals, Samples
    from raypref.models.families.base import Denoiser


class OnlineRAFT(DecoupledConfig):
    """error + kl |learner - reference|^2 on the `best` images of each group.

    Reward-ranked fine-tuning (Dong et al. 2023, arXiv 2304.06767): draw, rank, fine-tune, over and
    over. Of equal rewards the first images are taken. Only images that are kept are samples:
    `batch` is prompts times `best` times `timesteps`.
    """

    facts: ClassVar[tuple[str, ...]] = ()

    objective: Literal["online_raft"] = setting(
        "online_raft", "fine-tuning on the policy's best images per prompt"
    )
    best: int = setting(1, "images per prompt that are trained on, by reward", ge=1)
    advantage: Literal["rank"] = setting(
        "rank", "reward to advantage: rank within the group; it says which images are kept"
    )

    @model_validator(mode="after")
    def _leaves_some_out(self) -> Self:
        if self.best >= self.group:
            raise ValueError(
                f"best={self.best}: of group={self.group} images none would be left out; lower it"
            )
        return self

    @property
    def samples_per_prompt(self) -> int:
        """The images that are kept, at `timesteps` timesteps."""
        return self.best * self.timesteps

    def samples(
        self,
        denoiser: Denoiser,
        block: RolloutBlock,
        images: Sequence[int],
        generators: Sequence[torch.Generator],
    ) -> Samples:
        """The best images of each group; what is reported is the group's mean."""
        import torch

        reward_NG = block.reward_N[[*images]].view(-1, self.group)
        ranked_NG = torch.argsort(reward_NG, dim=1, descending=True, stable=True)
        first_N1 = torch.arange(0, len(images), self.group)[:, None]
        kept = (first_N1 + ranked_NG[:, : self.best]).flatten().tolist()
        samples = super().samples(
            denoiser, block, [images[k] for k in kept], [generators[k] for k in kept]
        )
        means = block.group_means(images, samples.sides[0].x_BCHW)
        return samples._replace(
            facts={
                name: values.repeat_interleave(self.best).repeat(self.timesteps)
                for name, values in means.items()
            }
        )

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        (image,) = sides
        return self.held(image.error, image), {}
