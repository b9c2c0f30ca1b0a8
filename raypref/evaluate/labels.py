"""Names, order and rounding of models and metrics, as the paper prints them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from raypref.images.looks import LOOKS
from raypref.rewards.config import RewardConfig
from raypref.rewards.registry import REWARDS, reward_names

# Methods of the literature that published values are of.
METHODS = {
    "diffusion_dpo": "Diffusion-DPO",
    "spo": "SPO",
    "flowgrpo": "Flow-GRPO",
    "diffusion_kto": "Diffusion-KTO",
    "inpo": "InPO",
    "grpo_guard": "GRPO-Guard",
    "diffusionnft": "DiffusionNFT",
    "diffusion_dpo_both": "Diffusion-DPO + ours",
    "flowgrpo_both": "Flow-GRPO + ours",
}


class Shown(NamedTuple):
    """How a metric is shown that is no reward; a reward's settings class says it of its scores."""

    label: str
    digits: int = 2  # as the paper's
    lower_is_better: bool = False
    neutral: bool = False  # neither more nor less of it is better
    spelt_out: str = ""


IN_HOLE = "_in_hole"  # ends the names of looks that are of a hole alone
_LOOKS = {
    name: Shown(name.capitalize(), 0 if name == "texture" else 3, neutral=True) for name in LOOKS
}
OTHERS = {
    "human_preference": Shown("Human preference"),
    "dpg": Shown("DPG-Bench"),
    "rubric": Shown("Rubric", digits=1, spelt_out="aesthetics, structure and meaning, of 100"),
    "texture_detail": Shown("Texture detail", digits=0),
    "colorfulness": Shown("Colorfulness"),
    "prompt_accuracy": Shown("Prompt accuracy"),
    "psnr_kept": Shown("Kept PSNR", spelt_out="around the hole, in decibels"),
    "mse_kept": Shown("Kept MSE", lower_is_better=True, spelt_out="around the hole, times 1000"),
    "cmmd": Shown(
        "CMMD",
        lower_is_better=True,
        spelt_out="unbiased, without pairs of images of one prompt, on embeddings of "
        "metrics.embedder",
    ),
    "cmmd_biased": Shown(
        "CMMD (biased)",
        lower_is_better=True,
        spelt_out="the published estimator, all pairs of images, on embeddings of metrics.embedder",
    ),
    "fid": Shown("FID", digits=1, lower_is_better=True),
    # The texture of the whole is `texture_detail`.
    **{name: own for name, own in _LOOKS.items() if name != "texture"},
    **{n + IN_HOLE: own._replace(label=f"{own.label} in the hole") for n, own in _LOOKS.items()},
}
# What stands in the columns of tables that no evaluation fills.
BESIDE = {
    "stylization": Shown("Stylization", digits=3),
    "win": Shown("Win %"),
    "tie": Shown("Tie %", neutral=True),
    "lose": Shown("Lose %", lower_is_better=True),
    "anime": Shown("Anime, win %"),
    "concept_art": Shown("Concept-Art, win %"),
    "paintings": Shown("Paintings, win %"),
    "photo": Shown("Photo, win %"),
    "per_second": Shown("Images/s"),
    "gpu_hours": Shown("GPU hours", digits=1, lower_is_better=True),
}


def metric_names() -> list[str]:
    """All metrics in the order of the tables: rewards, the paper's six first, then the others."""
    return [*reward_names(), *OTHERS]


def _shown(metric: str) -> Shown | type[RewardConfig]:
    return REWARDS.get(metric) or OTHERS.get(metric) or BESIDE.get(metric) or Shown(metric)


def plain_label(metric: str) -> str:
    """The metric's name for people, the paper's short one."""
    return _shown(metric).label


def metric_label(metric: str) -> str:
    """The metric's name for people; an arrow where less is better."""
    return plain_label(metric) + (" ↓" if lower_is_better(metric) else "")


def heading(metric: str) -> str:
    """The metric's name at the head of a printed table, with the paper's arrow."""
    return metric_label(metric) + ("" if lower_is_better(metric) or neutral(metric) else " ↑")


def spelt_out(metric: str) -> str:
    """What a short label stands for; empty where it says so itself."""
    return _shown(metric).spelt_out


def lower_is_better(metric: str) -> bool:
    """Whether less of the metric is better."""
    return _shown(metric).lower_is_better


def neutral(metric: str) -> bool:
    """Whether neither more nor less of the metric is better: it says what changed, not how well."""
    shown = _shown(metric)
    return isinstance(shown, Shown) and shown.neutral


def model_label(model: str, labels: Mapping[str, str]) -> str:
    """The model's name for people.

    Args:
        model: its name.
        labels: what the run calls its models, as `Run.labels`.
    """
    return labels.get(model) or METHODS.get(model, model)


def digits(metric: str) -> int:
    """Decimals the metric is shown with."""
    return _shown(metric).digits


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
