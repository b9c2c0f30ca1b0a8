"""What the pairs of a run are made from, and the settings of labelled ones."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from raypref.core.config import InputError, Location, Section, setting
from raypref.curate.config import CurateConfig
from raypref.pairs.arena import ArenaConfig
from raypref.pairs.choice import ChoiceConfig
from raypref.rewards.rewards import Rewards, require_rewards

TWINS, CANDIDATES, PROMPTS = "twins", "candidates", "prompts"


class CandidatesConfig(Section):
    """The candidates that pairs are chosen from; `perturb` says what makes them."""

    count: int = setting(
        16,
        "candidates per photograph, each from noise of its own; raising it adds to those there are",
        ge=1,
        le=100,
        later=True,
    )
    rewards: tuple[str, ...] = setting(
        ("pickscore",),
        "rewards that score the candidates, as in metrics.rewards; adding one scores the images "
        "that are stored",
        later=True,
    )


class PairsConfig(Section):
    """What the pairs are made from."""

    kind: Literal["twins", "candidates", "labelled", "images", "prompts"] = setting(
        TWINS,
        "twins: photographs and their degraded copies; candidates: of several paintings of a "
        "photograph's hole, or pictures of its caption, the best and the worst by rewards; "
        "labelled: pairs that people judged; images: single images that people judged; prompts: "
        "prompts alone, for trainings that learn from their own images by rewards. source.path "
        "names the data",
        later=True,
    )
    images: Location = setting(
        "",
        "folder that image paths of labels are relative to; empty: source.path, or its folder",
        affects_result=False,  # the digest of what the source lists does
    )
    limit: int = setting(
        0,
        "take only the first N labels that decide, or the first N prompts; of candidates, N "
        "photographs in an order drawn by the seed; 0 takes all",
        later=True,
        ge=0,
    )
    min_confidence: float = setting(
        0.0, "leave out labels with less confidence, where they have one", later=True, ge=0
    )
    flip_labels: float = setting(
        0.0,
        "share of labels turned round, drawn by seed and id: noise for studies",
        later=True,
        ge=0,
        le=1,
    )
    gap: Literal["arena", "given"] = setting(
        "arena",
        "where the column gap comes from: the capabilities of the named generators, fitted to the "
        "labels, or the column gap of the source",
        later=True,
    )
    arena: ArenaConfig = ArenaConfig()
    shuffle_gaps: bool = setting(
        False, "give each pair the gap of another one, drawn by seed: for studies", later=True
    )

    @model_validator(mode="after")
    def _of_its_kind(self) -> PairsConfig:
        """Refuse what a kind would ignore."""
        of_kinds = {
            "images": ("labelled", "images"),
            "flip_labels": ("labelled", "images"),
            "limit": (CANDIDATES, "labelled", "images", PROMPTS),
        }
        for name, field in PairsConfig.model_fields.items():
            kinds = of_kinds.get(name, ("labelled",))
            if name == "kind" or self.kind in kinds or getattr(self, name) == field.default:
                continue
            raise InputError(
                f"pairs.{name} is a setting of pairs.kind={' or '.join(kinds)}, and "
                f"pairs.kind={self.kind}"
            )
        return self


class PairingConfig(CurateConfig):
    """Everything that decides the pairs, of whatever kind."""

    pairs: PairsConfig = PairsConfig()
    candidates: CandidatesConfig = CandidatesConfig()
    choice: ChoiceConfig = ChoiceConfig()
    rewards: Rewards = setting({}, "settings of rewards by name", validate_default=True)

    @model_validator(mode="after")
    def _exports_pairs(self) -> PairingConfig:
        instead = {"images": "single images", PROMPTS: "prompts alone"}.get(self.pairs.kind)
        if instead and self.export.formats:
            raise InputError(
                f"export.formats={','.join(self.export.formats)}: these formats hold pairs, and "
                f"pairs.kind={self.pairs.kind} has {instead}; leave export.formats out"
            )
        return self

    @model_validator(mode="after")
    def _can_choose(self) -> PairingConfig:
        """Refuse candidates that no pair can be chosen from; other kinds leave them alone."""
        if self.pairs.kind != CANDIDATES:
            return self
        require_rewards("candidates.rewards", self.candidates.rewards, self.rewards)
        self.choice.check(self.candidates.rewards, self.candidates.count)
        if self.color.enabled and self.color.variant != "paper":
            raise InputError(
                f"color.variant={self.color.variant} compares a photograph with its twin, and "
                "pairs.kind=candidates has none; take color.variant=paper or color.enabled=false"
            )
        squares = self.perturb.kind == "text2image" and self.choice.chosen == "photograph"
        if self.images.bucket_step and squares:
            raise InputError(
                f"images.bucket_step={self.images.bucket_step}: photographs keep their shape, and "
                "candidates of perturb.kind=text2image are squares; take choice.chosen=best, or "
                "images.bucket_step=0"
            )
        return self
