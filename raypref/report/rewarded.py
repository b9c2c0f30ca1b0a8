"""Reward and over-optimisation: curves of trainings that learn from rewards, and what they say.

A reward model is a proxy. Pushed far enough, its score rises while the images get worse by every
other measure (arXiv 2210.10760; of diffusion models 2309.17400). So held-out rewards, which
nothing is trained on, stand beside the trained one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from raypref.evaluate.labels import gain_text, plain_label, score_text
from raypref.report.curves import HELD_OUT, REWARD, meaning
from raypref.report.drawn import curve
from raypref.report.views import TrainingView

WINDOWS = 5  # an average is over a fifth of the measurements
FEWEST = 4  # measurements of a held-out reward; fewer show no course
NOISE = 3.0  # standard errors that a change must exceed
IS = (
    "Over-optimisation looks like this: the trained reward keeps rising while rewards that nothing "
    "is trained on fall, the images move far from the reference (kl) and come to look alike "
    "(diversity falls)."
)
UNSEEN = (
    "No held-out reward was measured, so over-optimisation would not be seen: name one that is not "
    "trained on in held_out of the training."
)


class RewardCurve(NamedTuple):
    """One chart."""

    metric: str
    meaning: str
    drawing: Markup


class RewardCourse(NamedTuple):
    """One training that learns from rewards."""

    name: str
    sentences: list[str]
    curves: list[RewardCurve]


class _Change(NamedTuple):
    """A held-out reward between its best time and the end, and the trained one at both."""

    step: int  # the last of its best time
    before: float
    after: float
    trained_before: float
    trained_after: float
    fell: bool  # by more than its noise


def shown_here(metric: str) -> bool:
    """Whether a metric's curve is in this section, and not in that of the training."""
    return metric in ("reward", "kl", "diversity") or metric.startswith(HELD_OUT)


def courses(views: list[TrainingView]) -> list[RewardCourse]:
    """The trainings that learn from rewards, with what their curves say."""
    return [
        RewardCourse(view.name, list(_sentences(numbers)), list(_curves(numbers)))
        for view in views
        if "reward" in view.metrics
        and not (numbers := view.metrics[view.metrics["reward"].notna()].sort_values("step")).empty
    ]


def _curves(numbers: pd.DataFrame) -> Iterator[RewardCurve]:
    for metric in ("reward", *_held_out(numbers), "kl", "diversity"):
        if metric in numbers and numbers[metric].notna().any():
            steps, values = _measured(numbers, metric)
            svg = curve(metric, steps.tobytes(), values.tobytes(), smooth=True)
            yield RewardCurve(_called(metric), meaning(metric, own_samples=True), Markup(svg))


def _called(metric: str) -> str:
    if metric.startswith(HELD_OUT):
        return f"{plain_label(metric.removeprefix(HELD_OUT))}, held out"
    return metric


def _held_out(numbers: pd.DataFrame) -> list[str]:
    return sorted(name for name in numbers if str(name).startswith(HELD_OUT))


def _measured(numbers: pd.DataFrame, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values where a metric was measured, [n]; between two the last one is repeated."""
    known = numbers[numbers[metric].notna()]
    if metric.startswith(HELD_OUT):
        known = known[known[metric] != known[metric].shift()]
    return known["step"].to_numpy(np.int64), known[metric].to_numpy(np.float64)


def _sentences(numbers: pd.DataFrame) -> Iterator[str]:
    steps, values = _measured(numbers, "reward")
    width = max(1, len(values) // WINDOWS)
    first, last = values[:width].mean(), values[-width:].mean()
    yield (
        f"The trained reward ({_trained(numbers)}) went from {first:.4g} to {last:.4g}, averages "
        f"over the first and the last {width} of {len(values)} steps."
    )
    if not _held_out(numbers):
        yield UNSEEN
    for metric in _held_out(numbers):
        yield _said(metric.removeprefix(HELD_OUT), *_measured(numbers, metric), steps, values)
    if "diversity" in numbers and numbers["diversity"].notna().any():
        _, own = _measured(numbers, "diversity")
        width = max(1, len(own) // WINDOWS)
        first, last = own[:width].mean(), own[-width:].mean()
        share = f": {last / first:.0%} of it is left" if first > 0 else ""
        yield f"The diversity of a prompt's images went from {first:.3g} to {last:.3g}{share}."


def _trained(numbers: pd.DataFrame) -> str:
    names = [str(name) for name in numbers if str(name).startswith(REWARD)]
    shown = [plain_label(name.removeprefix(REWARD)) for name in names]
    return " and ".join(shown) if len(shown) < 2 else f"weighted sum of {', '.join(shown)}"


def _said(
    name: str, at: np.ndarray, held: np.ndarray, steps: np.ndarray, trained: np.ndarray
) -> str:
    """Whether a held-out reward fell while the trained one rose, with the numbers."""
    label = plain_label(name)
    if len(held) < FEWEST:
        return f"{label}, held out, was measured {len(held)} times: too few to show a course."
    change = _change(at, held, steps, trained)
    rose = change.trained_after > change.trained_before
    if not change.fell:
        first = held[: max(1, len(held) // WINDOWS)].mean()
        return (
            f"No sign of over-optimisation by {label}, which is held out: from "
            f"{score_text(name, first)} at first to {score_text(name, change.after)} at the end, "
            f"at best {score_text(name, change.before)}."
        )
    lost = (
        f"{label}, which is held out, fell from {score_text(name, change.before)} around step "
        f"{change.step} to {score_text(name, change.after)} at the end "
        f"({gain_text(name, change.after - change.before)})"
    )
    own = f"from {change.trained_before:.4g} to {change.trained_after:.4g}"
    if rose:
        return f"Over-optimised: {lost}, while the trained reward rose {own}."
    return f"{lost}; the trained reward fell too, {own}: the training went wrong otherwise."


def _change(at: np.ndarray, held: np.ndarray, steps: np.ndarray, trained: np.ndarray) -> _Change:
    """What became of a held-out reward since its best time.

    Averages are over a fifth of the measurements; the noise is what the single ones differ from the
    average around them by.

    Args:
        at: steps at which it was measured, ascending, [n].
        held: the held-out reward there, [n].
        steps: steps at which the trained one was, [m].
        trained: the trained reward there, [m].
    """
    width = max(1, len(held) // WINDOWS)
    means = np.convolve(held, np.ones(width) / width, mode="valid")  # [n - width + 1]
    best = int(means.argmax())
    around = pd.Series(held).rolling(max(3, width), center=True, min_periods=2).mean().to_numpy()
    noise = float((held - around).std()) * (2 / width) ** 0.5
    spans = (at[best], at[best + width - 1]), (at[-width], at[-1])
    own = [trained[(steps >= low) & (steps <= high)].mean() for low, high in spans]
    before, after = float(means[best]), float(means[-1])
    return _Change(
        int(spans[0][1]), before, after, float(own[0]), float(own[1]),
        fell=before - after > NOISE * noise,
    )  # fmt: skip
