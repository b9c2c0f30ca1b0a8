"""Names, order and rounding of models and metrics, as the paper prints them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

# Methods of the literature that published values are of.
METHODS = {"diffusion_dpo": "Diffusion-DPO", "spo": "SPO", "flowgrpo": "Flow-GRPO"}
# The paper's six first, under its own short names.
METRICS = {
    "pickscore": "PickScore",
    "imagereward": "ImgRwd",
    "unifiedreward": "UniRwd",
    "hpsv3": "HPSv3",
    "deqa": "DeQA",
    "aesthetic": "Aes",
    "human_preference": "Human preference",
    "hpsv2": "HPSv2",
    "clipscore": "CLIPScore",
    "vqascore": "VQAScore",
    "dpg": "DPG-Bench",
    "texture_detail": "Texture detail",
    "colorfulness": "Colorfulness",
    "realism": "Realism",
    "prompt_accuracy": "Prompt accuracy",
    "cmmd": "CMMD",
    "fid": "FID",
}
SPELT_OUT = {
    "imagereward": "ImageReward",
    "unifiedreward": "UnifiedReward",
    "aesthetic": "LAION aesthetic classifier",
}
# Decimals shown; 2 for all others, as the paper does.
DIGITS = {"texture_detail": 0, "realism": 3, "hpsv2": 3, "vqascore": 3, "fid": 1}
LOWER_IS_BETTER = frozenset({"cmmd", "fid"})


def metric_label(metric: str) -> str:
    """The metric's name for people; an arrow where less is better."""
    return METRICS.get(metric, metric) + (" ↓" if metric in LOWER_IS_BETTER else "")


def heading(metric: str) -> str:
    """The metric's name at the head of a printed table, with the paper's arrow."""
    return METRICS.get(metric, metric) + (" ↓" if metric in LOWER_IS_BETTER else " ↑")


def model_label(model: str, labels: Mapping[str, str]) -> str:
    """The model's name for people.

    Args:
        model: its name.
        labels: what the run calls its models, as `Run.labels`.
    """
    return labels.get(model) or METHODS.get(model, model)


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


def ordered(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """The names in the order of the known ones; the others after them in their own order."""
    own = list(dict.fromkeys(names))
    first = [name for name in dict.fromkeys(known) if name in own]
    return first + [name for name in own if name not in first]
