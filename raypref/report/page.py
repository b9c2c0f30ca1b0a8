"""The page a run ends in: one HTML file that needs nothing else, built from plain data.

Nothing is read from disk here but the template; `ReportData` is all that is known of the run.
Captions and messages come from strangers: the template escapes them, and the page's own policy
forbids scripts and anything loaded from outside.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image, UnidentifiedImageError

from raypref.evaluate import tables
from raypref.report import charts

PIXELATED = 128  # px; up to this side an image is enlarged with hard pixels and kept as it is
LARGEST = 768  # px; larger images are scaled down for the page
RECOMPRESS = 60_000  # bytes; larger files become JPEG, or 24 pairs would weigh 30 MB
FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}

# Training metrics we know, in the order they are shown, with what a reader should look for.
CURVES = {
    "loss": "the objective; lower is better",
    "diff": "winner_gap minus loser_gap; falls below zero",
    "winner_gap": "error on the photographs, compared with the reference; below zero is better",
    "loser_gap": "the same on what they are preferred to",
    "hinge_active": "share of samples that still give a gradient",
    "implicit_accuracy": "share of pairs ranked as the photographs demand; 0.5 is chance",
    "grad_norm": "before clipping",
    "lr": "learning rate",
    "seconds_per_step": "wall time of one optimizer step",
}
PLANNED = {"lr"}  # set by a schedule: a moving average would only falsify it


class Reject(NamedTuple):
    """One input that was turned away."""

    file: str
    stage: str
    reason: str
    message: str


class Cost(NamedTuple):
    """What one step of the pipeline took."""

    step: str
    seconds: float
    rows: int
    rate: str  # "4.5 rows/s"
    state: str  # "done" or "skipped" (finished by an earlier run)


@dataclass(frozen=True, kw_only=True)
class FunnelStep:
    """How many photographs were left after a step, and why the others were not."""

    name: str
    remaining: int
    dropped: Mapping[str, int] = field(default_factory=dict)  # reason -> photographs


@dataclass(frozen=True, kw_only=True)
class PairView:
    """One preference pair; images are encoded PNG, JPEG or WebP."""

    prompt: str
    chosen: bytes
    mask: bytes
    rejected: bytes
    pickscore_chosen: float
    pickscore_rejected: float
    colorfulness: float
    rank: int


@dataclass(frozen=True, kw_only=True)
class TrainingView:
    """One stage of training: a table with the column `step` and one column a metric."""

    name: str
    metrics: pd.DataFrame


@dataclass(frozen=True, kw_only=True)
class GridRow:
    """The images of several models for one prompt and seed."""

    prompt: str
    seed: int
    images: Mapping[str, bytes]  # model -> encoded image


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything the page shows. A part that is empty is shown as "not run"."""

    title: str
    subtitle: str  # preset, seed, date
    config_toml: str
    facts: Sequence[tuple[str, str]] = ()  # versions, git commit, ...
    funnel: Sequence[FunnelStep] = ()  # from the photographs found to the pairs
    rejects_examples: Sequence[Reject] = ()
    pairs: Sequence[PairView] = ()  # those to show; the last funnel step counts all
    training: Sequence[TrainingView] = ()
    grids: Sequence[GridRow] = ()
    table: pd.DataFrame | None = None  # of `tables.summarise`
    published: tables.Published = field(default_factory=dict)
    costs: Sequence[Cost] = ()


def render(data: ReportData) -> str:
    """The page as HTML text, self-contained: images and charts inside, no script, no link out.

    Raises:
        ValueError: an image is not PNG, JPEG or WebP.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=lambda number: f"{number:,}", duration=duration, number=_number, img=_img
    )
    return environment.get_template("page.html").render(
        data=data,
        tiles=list(_tiles(data)),
        account=_account(data.funnel),
        pair_count=_pair_count(data),
        trainings=[_training(view) for view in data.training if not view.metrics.empty],
        models=_grid_models(data.grids),
        results=_results(data),
        forests=list(_forests(data)),
        seconds=sum(cost.seconds for cost in data.costs if cost.state == "done"),
        model_label=tables.model_label,
    )


def duration(seconds: float) -> str:
    """A time for people: `0.4 s`, `43 s`, `3 min 20 s`, `2 h 14 min`, `3 d 2 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    if seconds < 86400:
        hours, rest = divmod(round(seconds / 60), 60)
        return f"{hours} h {rest} min"
    days, rest = divmod(round(seconds / 3600), 24)
    return f"{days} d {rest} h"


@dataclass(frozen=True)
class _Tile:
    label: str
    value: str
    note: str
    trend: str = ""  # "up", "down", "flat" or ""


@dataclass(frozen=True)
class _Score:
    mean: str
    interval: str
    gain: str
    gain_interval: str
    trend: str
    paper: str


@dataclass(frozen=True)
class _Results:
    metrics: list[str]
    rows: list[tuple[str, list[_Score | None]]]
    footnote: str
    final: str  # the model of the summary


def _tiles(data: ReportData) -> Iterator[_Tile]:
    pairs = _pair_count(data)
    found = f"from {data.funnel[0].remaining:,} photographs" if data.funnel else ""
    yield _Tile("preference pairs", f"{pairs:,}" if pairs else "not run", found)
    if data.costs:
        skipped = sum(cost.state == "skipped" for cost in data.costs)
        spent = sum(cost.seconds for cost in data.costs if cost.state == "done")
        note = f"{len(data.costs)} steps"
        note += f", {skipped} from an earlier run" if skipped else ""
        yield _Tile("wall time", duration(spent), note)
    if data.table is None or data.table.empty:
        yield _Tile("evaluation", "not run", "")
        return
    best = _final_model(data.table)
    for row in data.table[data.table["model"] == best].itertuples():
        score = _score(row, data.published)
        note = f"{score.gain} {score.gain_interval}" if score.gain else tables.model_label(best)
        yield _Tile(tables.metric_label(row.metric), score.mean, note, score.trend)


def _final_model(table: pd.DataFrame) -> str:
    models = list(dict.fromkeys(table["model"]))
    return "both" if "both" in models else models[-1]


def _pair_count(data: ReportData) -> int:
    return data.funnel[-1].remaining if data.funnel else len(data.pairs)


def _account(funnel: Sequence[FunnelStep]) -> tuple[int, int, int, int] | None:
    """Found, kept, dropped and unaccounted for: the last is zero, or the run lost something."""
    if not funnel:
        return None
    found, kept = funnel[0].remaining, funnel[-1].remaining
    dropped = sum(sum(step.dropped.values()) for step in funnel[1:])
    return found, kept, dropped, found - kept - dropped


def _training(view: TrainingView) -> tuple[str, list[tuple[str, str, Markup]]]:
    numbers = view.metrics.sort_values("step")
    steps = numbers["step"].to_numpy()
    columns = [
        name
        for name in numbers.select_dtypes(["number", "bool"]).columns
        if name != "step" and np.isfinite(numbers[name].to_numpy(np.float64)).any()
    ]
    known = list(CURVES)
    columns.sort(key=lambda name: (known.index(name) if name in CURVES else len(known), name))
    return view.name, [
        (
            name,
            CURVES.get(name, ""),
            Markup(
                charts.curve(
                    name, steps, numbers[name].to_numpy(np.float64), smooth=name not in PLANNED
                )
            ),
        )
        for name in columns
    ]


def _grid_models(grids: Sequence[GridRow]) -> list[str]:
    return list(dict.fromkeys(model for row in grids for model in row.images))


def _results(data: ReportData) -> _Results | None:
    if data.table is None or data.table.empty:
        return None
    cells = {
        (row.model, row.metric): _score(row, data.published) for row in data.table.itertuples()
    }
    metrics = list(dict.fromkeys(data.table["metric"]))
    return _Results(
        metrics=[tables.metric_label(metric) for metric in metrics],
        rows=[
            (tables.model_label(model), [cells.get((model, metric)) for metric in metrics])
            for model in dict.fromkeys(data.table["model"])
        ],
        footnote=tables.footnote(data.table, published=data.published),
        final=tables.model_label(_final_model(data.table)),
    )


def _score(row: Any, published: tables.Published) -> _Score:
    paper = published.get((row.model, row.metric))
    has_gain = not math.isnan(row.gain)
    trend = ""
    if has_gain:
        trend = "up" if row.gain_low > 0 else "down" if row.gain_high < 0 else "flat"
    return _Score(
        mean=tables.score_text(row.metric, row.mean),
        interval=tables.interval_text(row.metric, row.low, row.high),
        gain=tables.gain_text(row.metric, row.gain) if has_gain else "",
        gain_interval=tables.interval_text(row.metric, row.gain_low, row.gain_high),
        trend=trend,
        paper="" if paper is None else tables.score_text(row.metric, paper),
    )


def _forests(data: ReportData) -> Iterator[tuple[str, Markup]]:
    """One chart a metric of every model's gain over the base: (label, svg)."""
    if data.table is None:
        return
    gains = data.table[data.table["gain"].notna()]
    # The base is the model without gains; the published gain needs its published value.
    bases = [model for model in data.table["model"] if model not in set(gains["model"])]
    for metric in dict.fromkeys(gains["metric"]):
        at_base = data.published.get((bases[0], metric)) if bases else None
        rows = []
        for row in gains[gains["metric"] == metric].itertuples():
            paper = data.published.get((row.model, metric))
            gap = None if paper is None or at_base is None else paper - at_base
            label = tables.model_label(row.model)
            rows.append(charts.Gain(label, row.gain, row.gain_low, row.gain_high, gap))
        label = tables.metric_label(metric)
        yield label, Markup(charts.forest(label, rows, digits=tables.digits(metric)))


def _img(encoded: bytes, alt: str) -> Markup:
    """An `<img>` with the image inside; large ones are recompressed, small ones kept exactly."""
    try:
        image = Image.open(io.BytesIO(encoded), formats=list(FORMATS))
    except UnidentifiedImageError:
        raise ValueError(f"an image of the report is not {', '.join(FORMATS)}") from None
    mime, size = FORMATS[str(image.format)], image.size
    pixelated = max(size) <= PIXELATED
    if not pixelated and (max(size) > LARGEST or len(encoded) > RECOMPRESS):
        small = image.convert("RGB")
        small.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=88)
        encoded, mime, size = buffer.getvalue(), "image/jpeg", small.size
    tag = (
        '<img src="data:{};base64,{}" width="{}" height="{}" alt="{}" class="{}" '
        'loading="lazy" decoding="async">'
    )
    source = base64.b64encode(encoded).decode("ascii")
    return Markup(tag).format(mime, source, *size, alt, "pixelated" if pixelated else "smooth")


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:z.{digits}f}"
