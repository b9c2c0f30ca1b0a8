"""What the page shows of a run, as plain data: nothing here reads, draws or computes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from raypref.evaluate.tables import NamedTable, Published
from raypref.pairs.config import TWINS
from raypref.pairs.kinds import KINDS
from raypref.pairs.maker import Terms


class Picture(NamedTuple):
    """An image of the page: a small one to look over, the full one beside the page."""

    small: str  # data URI, or a path relative to the page
    full: str  # path relative to the page; empty where there is only the small one
    width: int  # of the small one, pixels
    height: int
    pixelated: bool  # so small a source that it is enlarged with hard pixels


class PictureKind(NamedTuple):
    """One of the pictures of a pair."""

    kind: str  # attribute of `PairView`
    caption: str
    words: str  # for who cannot see it


class Dropped(NamedTuple):
    """One input that became no pair."""

    file: str  # where the source has it
    caption: str
    note: str  # what is wrong with it, or what was measured; may be empty
    picture: Picture | None  # None where it cannot be drawn


@dataclass(frozen=True, kw_only=True)
class DroppedFor:
    """The inputs of one reason."""

    reason: str
    count: int
    keep: str  # what the reason means and what would keep them
    shown: Sequence[Dropped]  # some of them
    listed: bool = False  # as lines, without pictures


class StepCost(NamedTuple):
    """What one step of the pipeline took."""

    step: str
    seconds: float
    amount: int
    rate: str  # "4.5 rows/s"
    device_share: float | None = None  # share of the time the device computed, where measured


class StepState(NamedTuple):
    """A step of the run."""

    name: str  # as in `run.json`
    label: str  # for people
    done: bool


class Link(NamedTuple):
    """Where something of the run is."""

    what: str
    text: str
    href: str = ""  # a web address, or a file in the page's folder; empty: text is a path


class Histogram(NamedTuple):
    """How a measurement is spread, and where the filter cuts it."""

    title: str
    note: str
    values: np.ndarray  # [n], finite
    threshold: float | None  # None where the filter was off


@dataclass(frozen=True, kw_only=True)
class FunnelStep:
    """How many inputs were left after a step, and why the others were not."""

    name: str
    remaining: int
    dropped: Mapping[str, int] = field(default_factory=dict)  # reason -> inputs


class BiasTable(NamedTuple):
    """What rewards prefer besides quality, measured in one place."""

    title: str
    properties: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]  # what is said of, and a text per property


class BiasView(NamedTuple):
    """Bias of the rewards that made the pairs."""

    sentences: Sequence[str]
    tables: Sequence[BiasTable]
    explained: str


TWIN_PICTURES = (
    PictureKind("chosen", "chosen", "Chosen"),
    PictureKind("region", "region", "Region, tinted"),
    PictureKind("rejected", "rejected", "Rejected"),
)


@dataclass(frozen=True, kw_only=True)
class InputsView:
    """What the pairs were made from. A part that is empty is left out."""

    funnel: Sequence[FunnelStep] = ()
    histograms: Sequence[Histogram] = ()
    dropped: Sequence[DroppedFor] = ()
    pairs: Sequence[PairView] = ()
    pairs_are: str = ""
    pictures: Sequence[PictureKind] = TWIN_PICTURES
    candidate_pages: str = ""
    bias: BiasView | None = None


@dataclass(frozen=True, kw_only=True)
class PairView:
    """One preference pair."""

    rank: int  # from 1
    prompt: str
    chosen: Picture
    region: Picture | None = None  # the photograph with the salient region, or the hole, tinted
    rejected: Picture | None = None  # None of a single image
    # Of twins:
    pickscore_chosen: float = math.nan
    pickscore_rejected: float = math.nan
    colorfulness: float = math.nan
    # Of labelled pairs:
    chosen_model: str = ""
    rejected_model: str = ""
    numbers: Mapping[str, float | None] = field(default_factory=dict)  # by column
    # Of candidates:
    notes: Mapping[str, str] = field(default_factory=dict)  # by picture, "no. 3, score 4"


@dataclass(frozen=True, kw_only=True)
class StripView:
    """The samples of one moment of a training: fixed prompts and seeds, side by side."""

    step: int
    picture: Picture


@dataclass(frozen=True, kw_only=True)
class TrainingView:
    """One training: a table with the column `step` and one column per metric."""

    name: str
    metrics: pd.DataFrame
    strips: Sequence[StripView] = ()
    prompts: Sequence[str] = ()  # of the images in a strip, from left to right
    own_samples: bool = False  # whether the rejected side is drawn by the policy


@dataclass(frozen=True, kw_only=True)
class GridRow:
    """The images of several models for one prompt and seed."""

    prompt: str
    seed: int
    images: Mapping[str, Picture]  # by model
    hole: Picture | None = None  # the photograph with its hole tinted, of a set of holes
    scores: Mapping[str, str] = field(default_factory=dict)  # by model, "PickScore 21.34"


class BeforeAfter(NamedTuple):
    """One prompt by the base and by the model the run is about."""

    prompt: str
    before: Picture
    after: Picture
    gain: str  # "PickScore +0.41"


@dataclass(frozen=True, kw_only=True)
class PromptGains:
    """Where a model beats the base by one metric, prompt by prompt."""

    metric: str
    gains: Sequence[tuple[str, float]]  # (prompt, mean score minus the base's), the best first
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything the page shows. A part that is empty is left out."""

    title: str
    subtitle: str  # seed, date
    config_toml: str
    banner: str = ""  # what a reader must know before any number
    done: Sequence[str] = ()  # steps for people
    to_come: Sequence[str] = ()
    seconds: float | None = None  # of the whole run; None takes the sum of the steps
    facts: Sequence[tuple[str, str]] = ()  # versions, git commit, ...
    links: Sequence[Link] = ()
    funnel: Sequence[FunnelStep] = ()  # from the inputs found to the pairs
    histograms: Sequence[Histogram] = ()
    dropped: Sequence[DroppedFor] = ()
    source: str = ""  # where the dropped files are
    pairs: Sequence[PairView] = ()  # all of them, by rank
    pairs_are: str = ""  # what both sides of the pairs are, in sentences
    pictures: Sequence[PictureKind] = TWIN_PICTURES  # of a pair, in order; those there are
    candidate_pages: str = ""  # `{page}` and `{pair}` stand for the numbers; empty: there are none
    bias: BiasView | None = None  # of the rewards that made the pairs
    terms: Terms = KINDS[TWINS].terms  # what the inputs are called
    training: Sequence[TrainingView] = ()
    earlier: Sequence[str] = ()  # trainings of other pairs or settings, which are not shown
    medians: Sequence[BeforeAfter] = ()  # prompts around the median gain
    grids: Sequence[GridRow] = ()
    opening: int = 0  # the grid that the comparison opens with
    inpaints: bool = False  # whether the model fills holes of photographs
    side_by_side: str = ""  # page of all images beside this one; empty where there is none
    use: str = ""  # Python code that loads the LoRA; empty where there is none
    table: pd.DataFrame | None = None  # of `statistics.summarise`
    sets: Sequence[NamedTable] = ()  # the tables of all prompt sets, the one above first
    categories: pd.DataFrame | None = None  # of `statistics.by_category`
    published: Published = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)  # models' names for people
    final: str = ""  # the model the run is about; empty takes the last of the table
    prompt_gains: Sequence[PromptGains] = ()  # of that model
    costs: Sequence[StepCost] = ()
