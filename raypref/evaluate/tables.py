"""From scores of single images to the tables of the paper: means, intervals, gains over the base.

Every interval is a 95% percentile bootstrap that resamples **prompts**: the images of one prompt
are alike, so drawing single images would make the intervals too narrow. A gain is paired: model
and base are resampled with the same prompts, which removes the large spread between prompts.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa

from raypref.config import InputError

Published: TypeAlias = Mapping[tuple[str, str], float]  # (model, metric) -> published mean

# Known names with the words for people, in the order of the tables; others follow by name.
MODELS = {
    "base": "base",
    "start": "start",  # the LoRA that training went on from
    "start_2": "second start",
    "start_3": "third start",
    "sft": "SFT",
    "stage1": "stage 1",
    "stage2_alone": "stage 2 alone",
    "stage2": "stage 2",
    "sft_stage2": "SFT + stage 2",
    "both": "stage 1 + stage 2",
}
METRICS = {
    "pickscore": "PickScore",
    "imagereward": "ImageReward",
    "unifiedreward": "UnifiedReward",
    "hpsv3": "HPSv3",
    "deqa": "DeQA",
    "aesthetic": "Aesthetic",
    "texture_detail": "Texture detail",
    "colorfulness": "Colorfulness",
    "prompt_accuracy": "Prompt accuracy",
    "cmmd": "CMMD",
    "realism": "Realism",
}
DIGITS = {"texture_detail": 0, "realism": 3}  # decimals shown; 2 for all others, as the paper does
LOWER_IS_BETTER = frozenset({"cmmd"})

SCORES = ("prompt", "prompt_id", "seed", "model", "metric", "score")
SUMMARY = (
    *("model", "metric", "mean", "low", "high"),
    *("gain", "gain_low", "gain_high", "n_prompts", "n_images"),
)


def summarise(
    scores: pd.DataFrame | pa.Table, *, base: str = "base", resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Mean, interval and gain over the base of every (model, metric).

    The same scores in any order give the same numbers. Images without a score (null, NaN) are
    left out and missing in `n_images`.

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
    sampled: dict[int, np.ndarray] = {}

    def draws_rn(n_prompts: int) -> np.ndarray:
        # One matrix a prompt count, so that model and base see the same resampled prompts.
        if n_prompts not in sampled:
            sampled[n_prompts] = draws(n_prompts, resamples, seed)
        return sampled[n_prompts]

    groups = frame.groupby(["model", "metric"], sort=False)
    per_prompt = {key: _per_prompt(part) for key, part in groups}
    models = _ordered(frame["model"].unique(), (base, *MODELS))
    rows = []
    for model in models:
        for metric in _ordered(frame["metric"].unique(), METRICS):
            own = per_prompt.get((model, metric))
            if own is None:
                continue
            mean, low, high = _mean(own, draws_rn(len(own)))
            gain = (math.nan, math.nan, math.nan)
            reference = per_prompt.get((base, metric))
            if model != base and reference is not None:
                gain = _gain(own, reference, draws_rn)
            images = int(own["count"].sum())
            rows.append((model, metric, mean, low, high, *gain, len(own), images))
    return pd.DataFrame(rows, columns=list(SUMMARY))


def markdown(summary: pd.DataFrame, *, published: Published | None = None) -> str:
    """The table in the paper's form, one row per model and one column per metric.

    A cell reads `21.04 [20.98, 21.10] (+0.39) paper 21.04`: mean, interval, gain over the base,
    published value where there is one.

    Args:
        summary: of `summarise`.
        published: of `published`, or None to leave the published values out.
    """
    metrics = list(dict.fromkeys(summary["metric"]))
    cells = {(row.model, row.metric): row for row in summary.itertuples()}
    lines = [
        _markdown_row(["model", *(metric_label(metric) for metric in metrics)]),
        _markdown_row(["---"] * (1 + len(metrics))),
    ]
    for model in dict.fromkeys(summary["model"]):
        texts = [model_label(model)]
        for metric in metrics:
            row = cells.get((model, metric))
            texts.append(_cell(row, (published or {}).get((model, metric))) if row else "not run")
        lines.append(_markdown_row(texts))
    return "\n".join([*lines, "", footnote(summary, published=published), ""])


def csv(summary: pd.DataFrame, *, published: Published | None = None) -> str:
    """The summary as CSV text with full precision and a column `published` (empty where none)."""
    known = published or {}
    pairs = zip(summary["model"], summary["metric"], strict=True)
    column = [known.get(pair, math.nan) for pair in pairs]
    return str(summary.assign(published=column).to_csv(index=False, lineterminator="\n"))


def published(table: str, model_family: str = "sd15") -> dict[tuple[str, str], float]:
    """Published means of one table of the paper.

    Args:
        table: `"table3"` (the two stages) or `"table1a"` (the main comparison).
        model_family: `"sd15"` or `"sd35m"`.

    Returns:
        (model, metric) -> mean; empty where the paper has no figures of this family.

    Raises:
        InputError: no such table in `published.toml`.
    """
    file = Path(__file__).with_name("published.toml")
    tables = tomllib.loads(file.read_text(encoding="utf-8"))
    if table not in tables:
        raise InputError(f"no published '{table}'; there are: {', '.join(tables)}")
    models = tables[table].get(model_family, {})
    return {(model, m): value for model, values in models.items() for m, value in values.items()}


def footnote(summary: pd.DataFrame, *, published: Published | None = None) -> str:
    """The sentences under the table that say how it was computed."""
    prompts, images = _span(summary["n_prompts"]), _span(summary["n_images"])
    text = (
        f"Mean over {images} images of {prompts} prompts [95% interval, bootstrap over prompts] "
        "(gain over the base)."
    )
    scored = set(zip(summary["model"], summary["metric"], strict=True))
    if published and scored & set(published):
        text += (
            " 'paper' is the published value (arXiv 2605.19839): comparable for the same base "
            "model, prompts and number of images only."
        )
    return text


def metric_label(metric: str) -> str:
    """The metric's name for people; an arrow where less is better."""
    return METRICS.get(metric, metric) + (" ↓" if metric in LOWER_IS_BETTER else "")


def model_label(model: str) -> str:
    """The model's name for people."""
    return MODELS.get(model, model)


def digits(metric: str) -> int:
    """Decimals the metric is shown with."""
    return DIGITS.get(metric, 2)


def score_text(metric: str, value: float) -> str:
    """A score with the metric's number of decimals, never a negative zero."""
    return f"{value:z.{digits(metric)}f}"


def gain_text(metric: str, value: float) -> str:
    """A gain with its sign and the metric's number of decimals."""
    return f"{value:+z.{digits(metric)}f}"


def interval_text(metric: str, low: float, high: float) -> str:
    """An interval as `[20.98, 21.10]`; empty where there is none."""
    if math.isnan(low):
        return ""
    return f"[{score_text(metric, low)}, {score_text(metric, high)}]"


def _checked(scores: pd.DataFrame | pa.Table) -> pd.DataFrame:
    frame = scores.to_pandas() if isinstance(scores, pa.Table) else scores
    missing = [name for name in SCORES if name not in frame.columns]
    if missing:
        raise InputError(f"the scores table lacks the columns {', '.join(missing)}")
    frame = frame[frame["score"].notna()]
    if frame.empty:
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


def draws(n_prompts: int, resamples: int, seed: int) -> np.ndarray:
    """How often each prompt is drawn in each bootstrap sample, [resamples, n_prompts]."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(n_prompts, size=(resamples, n_prompts), dtype=np.int32)
    counts = np.empty((resamples, n_prompts), dtype=np.float32)
    for row, picks in enumerate(drawn):
        counts[row] = np.bincount(picks, minlength=n_prompts)
    return counts


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
        return (math.nan, math.nan, math.nan)
    own, reference = own.loc[shared], reference.loc[shared]
    shared_rn = draws_rn(len(shared))
    gain = own["sum"].sum() / own["count"].sum() - reference["sum"].sum() / reference["count"].sum()
    return (
        float(gain),
        *percentiles(_means(own, shared_rn) - _means(reference, shared_rn), len(shared)),
    )


def percentiles(values_r: np.ndarray, n_prompts: int = 2) -> tuple[float, float]:
    """The 95% interval of bootstrap values, NaN where there is but one prompt."""
    # One prompt resampled is always itself: a width of zero would claim certainty.
    if n_prompts < 2:
        return (math.nan, math.nan)
    low, high = np.quantile(values_r, [0.025, 0.975])
    return (float(low), float(high))


def _ordered(names: Iterable[str], known: Iterable[str]) -> list[str]:
    rank = {name: place for place, name in reversed(list(enumerate(known)))}
    return sorted(names, key=lambda name: (rank.get(name, math.inf), name))


def _cell(row: Any, paper: float | None) -> str:
    parts = [score_text(row.metric, row.mean), interval_text(row.metric, row.low, row.high)]
    if not math.isnan(row.gain):
        parts.append(f"({gain_text(row.metric, row.gain)})")
    if paper is not None:
        parts.append(f"paper {score_text(row.metric, paper)}")
    return " ".join(part for part in parts if part)


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _span(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
