"""From scores of single images to means, gains, win rates, each with its interval.

Every interval is a 95% percentile bootstrap that resamples **prompts**: the images of one prompt
are alike, so drawing single images would make the intervals too narrow. A gain is paired: model
and base are resampled with the same prompts, which removes the large spread between prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from raypref.core.config import InputError
from raypref.evaluate.labels import lower_is_better, metric_names, neutral, ordered

SCORES = ("prompt", "prompt_id", "seed", "model", "metric", "score")
SUMMARY = (
    *("model", "metric", "mean", "low", "high"),
    *("gain", "gain_low", "gain_high", "n_prompts", "n_images", "n_unscored"),
)
WINS = ("model", "baseline", "metric", "win", "tie", "loss", "rate", "low", "high", "n_pairs")
NAN = (math.nan, math.nan, math.nan)


def summarise(
    scores: pd.DataFrame | pa.Table, *, base: str = "base", resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Mean, interval and gain over the base of every (model, metric).

    The same scores in any order give the same numbers. Images without a score (null, NaN) are
    left out of every number and counted in `n_unscored`.

    Args:
        scores: one row per image and metric with the columns `SCORES`.
        base: the model that gains are measured against.
        resamples: bootstrap samples behind each interval.
        seed: of the bootstrap.

    Returns:
        One row per (model, metric) with the columns `SUMMARY`, base first. `mean` is over images.
        `gain` is over the prompts that model and base share; NaN for the base itself and where
        the base was not scored. Intervals are NaN where fewer than two prompts were scored.

    Raises:
        InputError: columns are missing, nothing was scored, or an image was scored twice.
    """
    frame = _checked(scores)
    models = ordered(_models(scores), (base,))
    missing = frame[frame["score"].isna()].groupby(["model", "metric"]).size().to_dict()
    frame = frame[frame["score"].notna()]
    sampled: dict[int, np.ndarray] = {}

    def draws_rn(n_prompts: int) -> np.ndarray:
        # One matrix per number of prompts, so that model and base see the same resampled prompts.
        if n_prompts not in sampled:
            sampled[n_prompts] = draws(n_prompts, resamples, seed)
        return sampled[n_prompts]

    groups = frame.groupby(["model", "metric"], sort=False)
    per_prompt = {key: _per_prompt(part) for key, part in groups}
    rows = []
    for model in models:
        for metric in ordered(sorted(frame["metric"].unique()), metric_names()):
            own = per_prompt.get((model, metric))
            if own is None:
                continue
            mean = _mean(own, draws_rn(len(own)))
            reference = per_prompt.get((base, metric))
            gain = NAN
            if model != base and reference is not None:
                gain = _gain(own, reference, draws_rn)
            images, unscored = int(own["count"].sum()), missing.get((model, metric), 0)
            rows.append((model, metric, *mean, *gain, len(own), images, unscored))
    return pd.DataFrame(rows, columns=list(SUMMARY))


def win_rates(
    scores: pd.DataFrame, *, baseline: str = "base", resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """How often a model's image beats the baseline's image of the same prompt and seed.

    Args:
        scores: as for `summarise`.
        baseline: the model that is to be beaten.
        resamples: bootstrap samples behind each interval.
        seed: of the bootstrap.

    Returns:
        One row per (model, metric) with the columns `WINS`: shares of image pairs won, tied (equal
        scores) and lost; `rate` = win + tie / 2 with its interval over prompts. Where less is
        better, the smaller score wins; a neutral metric has no row. Pairs in which one image has
        no score are left out.
    """
    frame = _checked(scores)
    models = _models(scores)
    frame = frame[frame["score"].notna()]
    rows = []
    for metric in ordered(sorted(frame["metric"].unique()), metric_names()):
        own = frame[frame["metric"] == metric]
        wide = own.pivot_table(index=["prompt_id", "seed"], columns="model", values="score")
        if baseline not in wide or neutral(metric):
            continue
        sign = -1.0 if lower_is_better(metric) else 1.0
        for model in models:
            if model == baseline or model not in wide:
                continue
            gaps = sign * (wide[model] - wide[baseline]).dropna()
            if gaps.empty:
                continue
            win, tie = float((gaps > 0).mean()), float((gaps == 0).mean())
            points = pd.DataFrame({"score": (np.sign(gaps) + 1) / 2}).reset_index()
            per_prompt = _per_prompt(points)
            rate = _mean(per_prompt, draws(len(per_prompt), resamples, seed))
            rows.append((model, baseline, metric, win, tie, 1 - win - tie, *rate, len(gaps)))
    return pd.DataFrame(rows, columns=list(WINS))


def by_category(
    scores: pd.DataFrame,
    groups: Mapping[int, Mapping[str, str]],
    *,
    base: str = "base",
    resamples: int = 2000,
) -> pd.DataFrame:
    """`summarise` for the prompts of each category.

    Args:
        scores: as for `summarise`.
        groups: prompt_id to its categories, as `{"category": "Animals", "challenge": "Basic"}`.
        base: the model that gains are measured against.
        resamples: bootstrap samples behind each interval.

    Returns:
        The columns `grouping`, `group` and `SUMMARY`; no rows where prompts have no categories.
    """
    kinds = dict.fromkeys(kind for own in groups.values() for kind in own)
    parts = []
    for kind in kinds:
        of_prompt = scores["prompt_id"].map({i: own.get(kind) for i, own in groups.items()})
        for group in dict.fromkeys(of_prompt.dropna()):
            part = scores[of_prompt == group]
            if part["score"].notna().any():
                summary = summarise(part, base=base, resamples=resamples)
                summary.insert(0, "group", group)
                summary.insert(0, "grouping", kind)
                parts.append(summary)
    columns = ["grouping", "group", *SUMMARY]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def human_preference(summary: pd.DataFrame, *, base: str = "base") -> pd.DataFrame:
    """The paper's human preference score (Figure 2b), as rows of the same table.

    0.5 minmax(UnifiedReward) + 0.5 minmax(HPSv3), each min-max normalised over the models of the
    table: 0 is the worst of them and 1 the best, so it has no interval and changes with the models
    compared. No rows unless at least two models have both.
    """
    of = [
        summary[summary["metric"] == metric].set_index("model")["mean"]
        for metric in ("unifiedreward", "hpsv3")
    ]
    models = of[0].index.intersection(of[1].index)
    spans = [float(np.ptp(means[models])) if len(models) else 0.0 for means in of]
    if len(models) < 2 or 0 in spans:
        return summary.iloc[:0]
    value = sum(
        0.5 * (means[models] - means[models].min()) / span
        for means, span in zip(of, spans, strict=True)
    )
    rows = summary[(summary["metric"] == "hpsv3") & summary["model"].isin(models)].copy()
    rows["metric"] = "human_preference"
    rows["mean"] = value[rows["model"]].to_numpy()
    rows["gain"] = rows["mean"] - value[base] if base in value.index else math.nan
    rows.loc[rows["model"] == base, "gain"] = math.nan
    rows[["low", "high", "gain_low", "gain_high"]] = math.nan
    return rows


def arranged(summary: pd.DataFrame, *, first: Sequence[str] = ()) -> pd.DataFrame:
    """The rows with every model's metrics in the order of the tables, some before all others."""
    models = list(dict.fromkeys(summary["model"]))
    metrics = ordered(summary["metric"], [*first, *metric_names()])
    place = summary["model"].map(models.index) * len(metrics) + summary["metric"].map(metrics.index)
    return summary.iloc[np.argsort(place.to_numpy(), kind="stable")].reset_index(drop=True)


def draws(n_prompts: int, resamples: int, seed: int) -> np.ndarray:
    """How often each prompt is drawn in each bootstrap sample, [resamples, n_prompts]."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(n_prompts, size=(resamples, n_prompts), dtype=np.int32)
    counts = np.empty((resamples, n_prompts), dtype=np.float32)
    for row, picks in enumerate(drawn):
        counts[row] = np.bincount(picks, minlength=n_prompts)
    return counts


def percentiles(values_r: np.ndarray, n_prompts: int = 2) -> tuple[float, float]:
    """The 95% interval of bootstrap values, NaN where there is but one prompt."""
    # One prompt resampled is always itself: a width of zero would claim certainty.
    if n_prompts < 2:
        return (math.nan, math.nan)
    low, high = np.quantile(values_r, [0.025, 0.975])
    return (float(low), float(high))


def interval(
    values: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of independent values and its 95% interval."""
    array = np.asarray(values, np.float64)
    own = pd.DataFrame({"sum": array, "count": np.ones(len(array))})
    return _mean(own, draws(len(array), resamples, seed))


def _models(scores: pd.DataFrame | pa.Table) -> list[str]:
    """The models in the order in which the rows name them."""
    return list(dict.fromkeys(str(model) for model in scores["model"].unique().tolist()))


def _checked(scores: pd.DataFrame | pa.Table) -> pd.DataFrame:
    frame = scores.to_pandas() if isinstance(scores, pa.Table) else scores
    missing = [name for name in SCORES if name not in frame.columns]
    if missing:
        raise InputError(f"the scores table lacks the columns {', '.join(missing)}")
    if frame["score"].isna().all():
        raise InputError("the scores table holds no score")
    key = ["model", "metric", "prompt_id", "seed"]
    twice = frame[frame.duplicated(key)]
    if not twice.empty:
        first = ", ".join(f"{name} {twice.iloc[0][name]}" for name in key)
        raise InputError(f"the scores table holds an image twice: {first}")
    # Sorted, because floating-point sums depend on the order of the rows.
    return frame.sort_values(key)


def _per_prompt(part: pd.DataFrame) -> pd.DataFrame:
    return part.groupby("prompt_id")["score"].agg(["sum", "count"]).sort_index()


def _means(own: pd.DataFrame, draws_rn: np.ndarray) -> np.ndarray:
    """Mean over images of each bootstrap sample, [resamples]."""
    sums_n = own["sum"].to_numpy(np.float64)
    counts_n = own["count"].to_numpy(np.float64)
    return (draws_rn @ sums_n) / (draws_rn @ counts_n)


def _mean(own: pd.DataFrame, draws_rn: np.ndarray) -> tuple[float, float, float]:
    mean = float(own["sum"].sum() / own["count"].sum())
    return (mean, *percentiles(_means(own, draws_rn), len(own)))


def _gain(
    own: pd.DataFrame, reference: pd.DataFrame, draws_rn: Callable[[int], np.ndarray]
) -> tuple[float, float, float]:
    shared = own.index.intersection(reference.index)
    if shared.empty:
        return NAN
    own, reference = own.loc[shared], reference.loc[shared]
    shared_rn = draws_rn(len(shared))
    gain = own["sum"].sum() / own["count"].sum() - reference["sum"].sum() / reference["count"].sum()
    return (
        float(gain),
        *percentiles(_means(own, shared_rn) - _means(reference, shared_rn), len(shared)),
    )
