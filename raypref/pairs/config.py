"""What the pairs of a run are made from, and the settings of labelled ones."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from raypref.core.config import InputError, Location, Section, setting
from raypref.curate.config import CurateConfig
from raypref.pairs.arena import ArenaConfig

TWINS = "twins"


class PairsConfig(Section):
    """What the pairs are made from."""

    kind: Literal["twins", "labelled", "images"] = setting(
        TWINS,
        "twins: photographs and their degraded copies; labelled: pairs that people judged; images: "
        "single images that people judged. source.path names the data",
        later=True,
    )
    images: Location = setting(
        "",
        "folder that image paths of labels are relative to; empty: source.path, or its folder",
        affects_result=False,  # the digest of what the source lists does
    )
    limit: int = setting(
        0, "take only the first N labels that decide; 0 takes all", later=True, ge=0
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
        both = ("images", "limit", "flip_labels")
        for name, field in PairsConfig.model_fields.items():
            if name == "kind" or self.kind == "labelled" or getattr(self, name) == field.default:
                continue
            if self.kind == TWINS or name not in both:
                kinds = "labelled or images" if name in both else "labelled"
                raise InputError(
                    f"pairs.{name} is a setting of pairs.kind={kinds}, and pairs.kind={self.kind}"
                )
        return self


class PairingConfig(CurateConfig):
    """Everything that decides the pairs, of whatever kind."""

    pairs: PairsConfig = PairsConfig()

    @model_validator(mode="after")
    def _exports_pairs(self) -> PairingConfig:
        if self.pairs.kind == "images" and self.export.formats:
            raise InputError(
                f"export.formats={','.join(self.export.formats)}: these formats hold pairs, and "
                "pairs.kind=images has single images; leave export.formats out"
            )
        return self
