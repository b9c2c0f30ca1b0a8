"""The settings of trainings that learn from rewards, and what an online objective may change.

An online training draws images with its own policy, scores them, and learns from them: how is the
objective's. Prompts are those of the pairs; images of pairs are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from raypref.align.config import TrainingConfig
from raypref.align.rollout_config import RolloutConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from raypref.align.blocks import RolledOut, RolloutBlock
    from raypref.align.residuals import Residuals, Samples
    from raypref.models.families.base import Denoiser
    from raypref.models.families.conditioning import Conditioning

FIRST_STEPS = 10  # whose mean diversity later ones are compared with


class RewardedConfig(TrainingConfig):
    """A training on rewards of images that its own model draws."""

    shares_weights: ClassVar[bool] = False

    rewards: dict[str, float] = setting(
        {"pickscore": 1.0},
        "what images are scored by, with weights: {NAME = weight}; an image's reward is the "
        "weighted sum of its scores (a weight below 0: less is better)",
    )
    held_out: tuple[str, ...] = setting(
        (),
        "rewards that are measured beside and never trained on: they show over-optimisation",
        affects_result=False,
    )
    held_out_every: int = setting(
        10, "optimizer steps between two measurements of them", affects_result=False, ge=1
    )
    reward_actors: int = setting(
        0,
        "actors that hold the reward models, beside the training's workers; 0: each worker holds "
        "them itself",
        affects_result=False,
        ge=0,
    )
    max_kl: float = setting(
        0.0,
        "stop when the predictions of learner and reference differ by more, as mean square (metric "
        "kl); 0: never",
        affects_result=False,
        ge=0,
    )
    min_diversity: float = setting(
        0.0,
        "stop when the images of a prompt are less diverse than this share of the first 10 steps' "
        "(metric diversity); 0: never",
        affects_result=False,
        ge=0,
        lt=1,
    )
    caption_dropout: float = setting(0.0, "prompts are never dropped: 0", ge=0, le=0)
    flip: float = setting(0.0, "images are never mirrored: 0", ge=0, le=0)

    @field_validator("rewards")
    @classmethod
    def _has_rewards(cls, rewards: dict[str, float]) -> dict[str, float]:
        if not any(rewards.values()):
            raise ValueError("name at least one reward with a weight other than 0")
        return rewards

    @model_validator(mode="after")
    def _reads_no_pairs(self) -> Self:
        """Refuse what is about the images of pairs."""
        for key, value in (("region", "image"), ("curriculum", "off")):
            if getattr(self, key) != value:
                raise ValueError(
                    f"{key}={getattr(self, key)}: {self.objective} learns from images that it "
                    f"draws; set {key}={value}"
                )
        if both := sorted({*self.rewards} & {*self.held_out}):
            raise ValueError(f"held_out={both[0]}: it is trained on (rewards)")
        return self

    @property
    def of_single_images(self) -> bool:
        """Whether single images are enough: it reads prompts alone."""
        return True

    def health(self, history: Sequence[Mapping[str, float]], *, key: str) -> str:
        """Why a training must stop: too far from the reference, or images that are all alike."""
        now = history[-1]
        if self.max_kl and now["kl"] > self.max_kl:
            return f"kl is {now['kl']:.3g}, more than {key}.max_kl={self.max_kl:g}"
        if not self.min_diversity:
            return ""
        first = history[:FIRST_STEPS]
        usual = sum(row["diversity"] for row in first) / len(first)
        if now["diversity"] < self.min_diversity * usual:
            return (
                f"diversity is {now['diversity']:.3g}, less than {key}.min_diversity="
                f"{self.min_diversity:g} times the {usual:.3g} of the first steps"
            )
        return ""


class OnlineConfig(RewardedConfig, RolloutConfig):
    """A training on groups of images that its policy draws for a prompt.

    A step trains on `batch` samples: prompts * `group` images * `timesteps`.
    """

    sides: ClassVar[tuple[str, ...]] = ("image",)

    rollout_steps: int = setting(10, "solver steps of a rollout", ge=1, le=1000)
    policy_lag: int = setting(
        1, "optimizer steps between refreshes of the policy, which draws the images", ge=1
    )
    policy_keep: float = setting(
        0.0,
        "what the policy keeps of itself when it is refreshed; 0: a copy of the learner",
        ge=0,
        lt=1,
    )
    group: int = setting(8, "images per prompt", ge=2)
    timesteps: int = setting(1, "samples that a step makes of one image", ge=1)
    reuse: int = setting(1, "optimizer steps that train on the same images", ge=1)
    guidance: float = setting(1.0, "classifier-free guidance of the rollouts; 1: none", ge=1)
    advantage: Literal["group", "mean", "rank", "win_rate", "batch", "prompt"] = setting(
        "group",
        "reward to advantage: less the group's mean and divided by its deviation; less the mean "
        "alone; rank within the group, -1 to 1; as group, of the share of the group that an image "
        "beats; as group, over all images of a step; as group, over a prompt's last 32 images",
    )
    advantage_clip: float = setting(5.0, "largest size of an advantage", gt=0)
    kl: float = setting(
        0.0, "weight of the squared distance between predictions of learner and reference", ge=0
    )

    @model_validator(mode="after")
    def _divides(self) -> Self:
        whole = self.samples_per_prompt
        if self.batch % whole:
            raise ValueError(
                f"batch={self.batch}: it is prompts times the samples that {self.objective} makes "
                f"of each (group={self.group}, timesteps={self.timesteps}), so a multiple of "
                f"{whole}"
            )
        if self.max_kl and self.against != "ref":
            raise ValueError(
                f"max_kl={self.max_kl:g}: {self.objective} does not look at the reference; set kl "
                "too, or max_kl=0"
            )
        if self.policy_lag % self.reuse:
            raise ValueError(
                f"policy_lag={self.policy_lag}: images that {self.reuse} steps reuse are of one "
                "policy; take a multiple of reuse"
            )
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """None: prompts alone are read."""
        return ()

    @property
    def against(self) -> str:  # type: ignore[override]
        """The reference, where the distance to it counts or is watched; else its forward is saved.

        An objective that always reads the reference says so itself.
        """
        return "ref" if self.kl or self.max_kl else ""

    @property
    def samples_per_draw(self) -> int:
        """As many as timesteps are drawn for an image."""
        return self.timesteps

    @property
    def draws_per_pair(self) -> int:
        """A group of images per prompt."""
        return self.group

    @property
    def samples_per_prompt(self) -> int:
        """Samples that a step makes of a prompt: of all images of its group, or of some."""
        return self.group * self.timesteps

    @property
    def pairs_per_step(self) -> int:
        """Prompts."""
        return self.batch // self.samples_per_prompt

    @property
    def steps_per_order(self) -> int:
        """Steps that reuse images."""
        return self.reuse

    @property
    def images_at_once(self) -> int:
        """Images per call of the rollout, on one worker: whole groups."""
        return self.group * max(1, self.rollout_batch // self.group)

    def refresh(self, module: nn.Module, *, first: bool) -> None:
        """Renew the policy: a copy of the learner, or a step towards it (`policy_keep`)."""
        from raypref.align.residuals import LEARNER, POLICY
        from raypref.models import adapters

        if first or not self.policy_keep:
            adapters.copy(module, LEARNER, POLICY)
        else:
            adapters.blend(module, LEARNER, POLICY, keep=self.policy_keep)

    def reported(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Rewards, how far the learner is from the reference, and how diverse images are."""
        found = {name: values for name, values in facts.items() if name in self._reported}
        found["advantage_abs"] = facts["advantage"].abs()
        if self.against == "ref":
            found["kl"] = sides[0].distance.detach()
        return found

    @property
    def _reported(self) -> set[str]:
        own = {f"reward/{name}" for name in self.rewards}
        others = {f"held_out/{name}" for name in self.held_out}
        return {"reward", "reward_std", "diversity", "unscored", *own, *others}

    def roll_out(
        self,
        denoiser: Denoiser,
        start_NCHW: Tensor,
        prompts: Conditioning,
        unconditional: Conditioning,
        generators: Sequence[torch.Generator],
        *,
        step: int,
    ) -> RolledOut:
        """Draw N images from their start noise, with the active adapter: here by the family's ODE.

        Args:
            denoiser: the network, the policy's adapter in use.
            start_NCHW: Gaussian noise.
            prompts: N of them.
            unconditional: the empty caption, N times.
            generators: one per image, after its start noise was drawn.
            step: the optimizer step that the images are first used for.
        """
        from raypref.align.online import finished

        return finished(self, denoiser, start_NCHW, prompts, unconditional)

    def samples(
        self,
        denoiser: Denoiser,
        block: RolloutBlock,
        images: Sequence[int],
        generators: Sequence[torch.Generator],
    ) -> Samples:
        """Samples of whole groups of images: here, images noised to drawn timesteps.

        Args:
            denoiser: the network.
            block: images with their rewards.
            images: positions in the block, whole groups one after another.
            generators: one per image.

        Returns:
            `timesteps` samples per image: the first of every image, then the second, ...
        """
        from raypref.align.online import noised

        return noised(self, denoiser, block, images, generators)

    def measured(self, sides: Sequence[Residuals]) -> Tensor:
        """With `whole_groups`, the number per sample that the group's loss reads, [B]."""
        return sides[0].gap

    def coefficients(self, numbers_NG: Tensor, facts: Mapping[str, Tensor]) -> Tensor:
        """With `whole_groups`, the derivative of the loss by each of `measured`, [N, G].

        Args:
            numbers_NG: of N groups of G images, without a gradient.
            facts: those of the samples, each [N, G].

        Returns:
            The fact `coefficient` of each sample. Its loss is that times `measured`.
        """
        raise NotImplementedError
