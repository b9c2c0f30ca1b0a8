"""The page a run ends in: one HTML file that needs nothing from elsewhere, built from plain data.

Nothing is read from disk here but the template; `ReportData` is all that is known of the run.
Captions and messages come from strangers: the template escapes them, the script sets them as text
only, and the page's own policy allows this very script and nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from raypref.core.progress import duration
from raypref.evaluate import labels, tables
from raypref.report import charts, headline
from raypref.report.bias import DRIFT, drift_tables
from raypref.report.compared import compared
from raypref.report.curves import CURVES, REWARD, both_gaps, meaning
from raypref.report.drawn import curve, gap_curves
from raypref.report.layout import fill
from raypref.report.listed import listed, number_text
from raypref.report.meanings import gain_words, meanings
from raypref.report.rewarded import IS, courses, shown_here
from raypref.report.views import (
    FunnelStep,
    Picture,
    PromptGains,
    ReportData,
    StripView,
    TrainingView,
)

RELATIVE = "error relative to the reference"
SHOWN_CURVES = ("loss", RELATIVE, "implicit_accuracy", "hinge_active", "grad_norm")  # the first two
OPEN_GRIDS = 6  # prompts shown at once, the others on demand
OPEN_THUMBS = 12  # dropped photographs of a reason shown at once
EXTREMES = 5  # prompts named at each end of the gains

PLANNED = {"lr"}  # set by a schedule: a moving average would only falsify it
GAPS = ("chosen_gap", "rejected_gap")  # drawn together: the loss may fall while both get worse


def render(data: ReportData) -> str:
    """The page as HTML text: small pictures, charts, style and script inside."""
    gallery = listed(data)
    drift = drift_tables(data)
    return fill(
        "page.html",
        filters={
            "count": lambda number: f"{number:,}",
            "duration": duration,
            "number": number_text,
            "img": _img,
        },
        scripts=("lightbox.js", "cursor.js", "page.js"),
        data=data,
        sentence=headline.sentence(data),
        intro=headline.intro(data),
        about=headline.about(data),
        progress=headline.progress(data),
        sections=_sections(data, drift=bool(drift)),
        account=_account(data.funnel),
        histograms=[
            (h, Markup(charts.histogram(h.title, h.values, threshold=h.threshold)))
            for h in data.histograms
        ],
        gallery=gallery,
        drift=drift,
        drift_is=DRIFT,
        rewarded=courses(list(data.training)),
        over_optimisation=IS,
        trainings=[_training(view) for view in data.training if not view.metrics.empty],
        models=list(dict.fromkeys(model for row in data.grids for model in row.images)),
        open_grids=OPEN_GRIDS,
        open_thumbs=OPEN_THUMBS,
        results=_results(data),
        results_set=data.sets[0].name if len(data.sets) > 1 else "",
        other_sets=[
            (each, _results(dataclasses.replace(data, table=each.table))) for each in data.sets[1:]
        ],
        forests=list(_forests(data)),
        compared=[]
        if data.table is None or data.table.empty
        else list(compared(data.table, data.categories, data.published, data.labels)),
        prompt_gains=[_prompt_gains(view) for view in data.prompt_gains if view.gains],
        device_shares=any(cost.device_share is not None for cost in data.costs),
        seconds=headline.seconds(data),
        model_label=lambda model: labels.model_label(model, data.labels),
    )


def _sections(data: ReportData, *, drift: bool) -> list[tuple[str, str, bool]]:
    """Id, name and whether it is there, in the order of the page."""
    return [
        ("pairs", "Pairs", bool(data.pairs)),
        ("results", "Results", data.table is not None and not data.table.empty),
        ("bias", "Bias", data.bias is not None or drift),
        ("samples", "Before and after", bool(data.grids)),
        ("use", "Use it", bool(data.use)),
        (f"{data.terms.input}s", f"{data.terms.input.capitalize()}s", bool(data.funnel)),
        ("dropped", "Dropped", bool(data.dropped)),
        ("rewards", "Rewards", any("reward" in view.metrics for view in data.training)),
        ("training", "Training", any(not view.metrics.empty for view in data.training)),
        ("costs", "Cost", bool(data.costs)),
        ("configuration", "Configuration", True),
    ]


@dataclass(frozen=True)
class _Score:
    mean: str
    interval: str
    gain: str
    trend: str  # "better", "worse", "flat" or ""
    mark: str  # which way the number went
    paper: str


@dataclass(frozen=True)
class _Results:
    metrics: list[str]
    meanings: list[str]  # a sentence per metric
    rows: list[tuple[str, list[_Score | None]]]
    footnote: str
    final: str  # the model of the summary


class _Curve(NamedTuple):
    metric: str
    meaning: str
    drawing: Markup


@dataclass(frozen=True)
class _Curves:
    name: str
    shown: list[_Curve]
    more: list[_Curve]
    strips: Sequence[StripView]
    prompts: Sequence[str]


@dataclass(frozen=True)
class _Gains:
    metric: str
    chart: Markup
    counts: PromptGains
    best: list[tuple[str, str]]  # (prompt, gain)
    worst: list[tuple[str, str]]


def _account(funnel: Sequence[FunnelStep]) -> tuple[int, int, int, int] | None:
    """Found, kept, dropped and unaccounted for: the last is zero, or the run lost something."""
    if not funnel:
        return None
    found, kept = funnel[0].remaining, funnel[-1].remaining
    dropped = sum(sum(step.dropped.values()) for step in funnel[1:])
    return found, kept, dropped, found - kept - dropped


def _training(view: TrainingView) -> _Curves:
    numbers = view.metrics.sort_values("step")
    steps = numbers["step"].to_numpy(np.int64)
    of_rewards = "reward" in numbers
    columns = [
        name
        for name in numbers.select_dtypes(["number", "bool"]).columns
        if name != "step"
        and not (of_rewards and shown_here(name))
        and np.isfinite(numbers[name].to_numpy(np.float64)).any()
    ]
    known = list(CURVES)
    columns.sort(key=lambda name: (known.index(name) if name in CURVES else len(known), name))
    gaps = [numbers[name].to_numpy(np.float64) for name in GAPS if name in columns]
    together = len(gaps) == len(GAPS) and bool(np.isfinite(gaps).all())
    drawn: list[_Curve] = []
    for name in columns:
        values = numbers[name].to_numpy(np.float64)
        if together and name == GAPS[0]:
            other = "own samples" if view.own_samples else "rejected images"
            svg = gap_curves(steps.tobytes(), *(gap.tobytes() for gap in gaps), other)
            words = both_gaps(own_samples=view.own_samples)
            drawn.append(_Curve(RELATIVE, Markup(words), Markup(svg)))
        elif not together or name not in GAPS:
            svg = curve(name, steps.tobytes(), values.tobytes(), smooth=name not in PLANNED)
            said = meaning(name, own_samples=view.own_samples)
            drawn.append(_Curve(name, said, Markup(svg)))
    names = [curve.metric for curve in drawn]
    first = [name for name in SHOWN_CURVES if name in names][:2] or names[:2]
    if rewards := [name for name in names if name.startswith(REWARD)]:
        first = ["loss", *rewards]
    return _Curves(
        view.name,
        shown=[curve for curve in drawn if curve.metric in first],
        more=[curve for curve in drawn if curve.metric not in first],
        strips=view.strips,
        prompts=view.prompts,
    )


def _results(data: ReportData) -> _Results | None:
    if data.table is None or data.table.empty:
        return None
    cells = {
        (row.model, row.metric): _score(row, data.published) for row in data.table.itertuples()
    }
    metrics = list(dict.fromkeys(data.table["metric"]))
    return _Results(
        metrics=[labels.metric_label(metric) for metric in metrics],
        meanings=meanings(metrics),
        rows=[
            (
                labels.model_label(model, data.labels),
                [cells.get((model, metric)) for metric in metrics],
            )
            for model in dict.fromkeys(data.table["model"])
        ],
        footnote=tables.footnote(data.table, published=data.published),
        final=labels.model_label(headline.final_model(data), data.labels),
    )


def _score(row: Any, published: tables.Published) -> _Score:
    paper = published.get((row.model, row.metric))
    has_gain = not math.isnan(row.gain)
    # NaN intervals, of a single prompt, claim nothing.
    rises, falls = row.gain_low > 0, row.gain_high < 0
    level = row.gain_low <= 0 <= row.gain_high
    good, bad = (falls, rises) if labels.lower_is_better(row.metric) else (rises, falls)
    if labels.neutral(row.metric):
        good = bad = False
    return _Score(
        mean=labels.score_text(row.metric, row.mean),
        interval=labels.interval_text(row.metric, row.low, row.high),
        gain=gain_words(row.metric, row.gain) if has_gain else "",
        trend=("better" if good else "worse" if bad else "flat") if has_gain else "",
        mark=("▲" if rises else "▼" if falls else "≈" if level else "") if has_gain else "",
        paper="" if paper is None else labels.score_text(row.metric, paper),
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
            label = labels.model_label(str(row.model), data.labels)
            rows.append(charts.Gain(label, row.gain, row.gain_low, row.gain_high, gap))
        label = labels.metric_label(metric)
        less = None if labels.neutral(metric) else labels.lower_is_better(metric)
        svg = charts.forest(label, rows, digits=labels.digits(metric), less=less)
        yield label, Markup(svg)


def _prompt_gains(view: PromptGains) -> _Gains:
    label, digits = labels.metric_label(view.metric), labels.digits(view.metric)
    gains = np.array([gain for _, gain in view.gains])
    named = [(prompt, gain_words(view.metric, gain)) for prompt, gain in view.gains]
    few = min(EXTREMES, len(named) // 2)
    return _Gains(
        metric=label,
        chart=Markup(charts.versus_base(label, gains, digits=digits)),
        counts=view,
        best=named[:few],
        worst=named[len(named) - few :][::-1],
    )


def _img(picture: Picture, alt: str, model: str) -> Markup:
    """An `<img>` of the small picture; the script finds it by the model."""
    tag = Markup(
        '<img src="{}" width="{}" height="{}" alt="{}" class="{}" data-model="{}" '
        'loading="lazy" decoding="async">'
    )
    hard = "pixelated" if picture.pixelated else "smooth"
    return tag.format(picture.small, picture.width, picture.height, alt, hard, model)
