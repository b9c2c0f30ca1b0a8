"""The settings of curation, from the sections beside the code that reads them."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from raypref.core.config import Section, setting
from raypref.curate.captions import CaptionsConfig
from raypref.curate.export import Format
from raypref.curate.holes import HolesConfig
from raypref.curate.perturb import PerturbConfig
from raypref.curate.photographic import PhotographicConfig
from raypref.curate.saliency import SaliencyConfig
from raypref.curate.scoring import refuse_pool_beside
from raypref.curate.select import SelectConfig
from raypref.images.colorfulness import ColorConfig
from raypref.images.decode import ImageConfig
from raypref.rewards.pickscore import PickScoreConfig
from raypref.sources.index import SourceConfig


class PassesConfig(Section):
    """How pairs are made."""

    exhaustive: bool = setting(
        False,
        "make a pair of every retained photograph, as the paper did, instead of stopping when "
        "top_k have passed; the same pairs, and the funnel shows how many would pass",
    )


class ExportConfig(Section):
    """Other forms in which the pairs are written, below `export/`."""

    formats: tuple[Format, ...] = setting(
        (),
        "pickapic: Parquet with Pick-a-Pic's columns; folders: pairs.csv with images beside it",
        affects_result=False,
    )


class CurateConfig(Section):
    """Everything that decides the pairs."""

    source: SourceConfig
    seed: int = setting(0, "seed of everything random")
    images: ImageConfig = ImageConfig()
    captions: CaptionsConfig = CaptionsConfig()
    color: ColorConfig = ColorConfig()
    photographic: PhotographicConfig = PhotographicConfig()
    saliency: SaliencyConfig = SaliencyConfig()
    holes: HolesConfig = HolesConfig()
    perturb: PerturbConfig = PerturbConfig()
    pickscore: PickScoreConfig = PickScoreConfig()
    select: SelectConfig = SelectConfig()
    curate: PassesConfig = PassesConfig()
    export: ExportConfig = ExportConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse_pool_beside(self.photographic, self.pickscore)
        return self
