"""The page and the card of a training on rewards: curves, and whether it went too far."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_labels_page import seen

from raypref.core.config import load
from raypref.pairs.kinds import KINDS
from raypref.report.card import model_card
from raypref.report.page import render
from raypref.report.rewarded import courses
from raypref.report.views import FunnelStep, ReportData, TrainingView
from raypref.run.config import RunConfig

STEPS = 200
NOISE = np.random.default_rng(0).normal(0, 0.02, STEPS)


def metrics(held: np.ndarray | None, *, rise: float = 2.0, every: int = 10) -> pd.DataFrame:
    """As a training logs them: between measurements the last held-out value is repeated."""
    step = np.arange(1, STEPS + 1)
    columns: dict[str, Any] = {
        "step": step,
        "loss": 1 - step / STEPS,
        "reward": 21 + rise * step / STEPS + NOISE,
        "reward_std": 0.4,
        "reward/pickscore": 21 + rise * step / STEPS + NOISE,
        "kl": 0.01 * step / STEPS,
        "diversity": 0.4 - 0.2 * step / STEPS,
        "advantage_abs": 0.8,
        "grad_norm": 0.3,
    }
    if held is not None:
        seen = pd.Series(np.where((step - 1) % every == 0, held, np.nan)).ffill()
        columns["held_out/aesthetic"] = seen
    return pd.DataFrame(columns)


def said(table: pd.DataFrame) -> str:
    (course,) = courses([TrainingView(name="nft", metrics=table)])
    return " ".join(course.sentences)


SHARE = np.arange(STEPS) / STEPS


def test_a_held_out_reward_that_falls_while_the_trained_rises_is_over_optimisation() -> None:
    held = 5 + np.where(SHARE < 0.5, SHARE, 1 - SHARE) + NOISE  # up to 5.5 and down again
    text = said(metrics(held))
    # Reference: the best mean of four of twenty measurements, and the last four.
    seen = held[::10]
    best = max(range(17), key=lambda n: seen[n : n + 4].mean())
    top, end = seen[best : best + 4].mean(), seen[-4:].mean()
    assert f"fell from {top:.2f} around step {10 * (best + 3) + 1} to {end:.2f} at the end" in text
    assert "Over-optimised: " in text and "while the trained reward rose from 22" in text
    assert "diversity of a prompt's images went from 0.38 to 0.22" in text


@pytest.mark.parametrize(
    ("held", "rise", "words"),
    [
        (5 + SHARE + NOISE, 2.0, "No sign of over-optimisation by"),
        (5 + 0 * SHARE + NOISE, 2.0, "No sign of over-optimisation by"),  # noise alone
        (5 - SHARE + NOISE, -2.0, "the trained reward fell too"),
    ],
)
def test_other_courses_are_none(held: np.ndarray, rise: float, words: str) -> None:
    text = said(metrics(held, rise=rise))
    assert words in text and "Over-optimised" not in text


def test_without_measurements_nothing_is_claimed() -> None:
    assert "No held-out reward was measured" in said(metrics(None))
    assert "too few to show a course" in said(metrics(5 + SHARE, every=100))


def test_the_page_has_the_section_and_the_card_the_weights() -> None:
    data = ReportData(
        title="t",
        subtitle="s",
        config_toml="",
        terms=KINDS["prompts"].terms,
        funnel=[FunnelStep(name="prompts found", remaining=9), FunnelStep(name="u", remaining=7)],
        training=[TrainingView(name="nft", metrics=metrics(5 + SHARE))],
    )
    page = render(data)
    section = page.split('<section id="rewards">')[1].split("</section>")[0]
    shown = re.findall(r"<figcaption><b>(.*?)</b>", section)
    assert shown == ["reward", "Aes, held out", "kl", "diversity"]
    assert section.count("<svg") == 4
    training = page.split('<section id="training">')[1].split("</section>")[0]
    first = training.split("<details>")[0]
    assert re.findall(r"<figcaption><b>(.*?)</b>", first) == ["loss", "reward/pickscore"]
    assert "held_out/" not in training and "diversity" not in training
    text = seen(page)
    assert "7 distinct prompts from 9 prompts" in text and "photograph" not in text.lower()


def test_a_training_without_rewards_has_no_such_section() -> None:
    table = pd.DataFrame({"step": [1, 2], "loss": [1.0, 0.5]})
    data = ReportData(title="t", subtitle="s", config_toml="")
    page = render(ReportData(**{**vars(data), "training": [TrainingView(name="a", metrics=table)]}))
    assert 'id="rewards"' not in page and 'href="#rewards"' not in page


def test_the_card_says_rewards_and_weights() -> None:
    config = load(RunConfig, "tiny")
    rewards = {"pickscore": 1.0, "aesthetic": 0.5}
    card = model_card(
        name="r",
        base=config.base,
        draw=config.evaluate,
        shared="r.safetensors",
        licence="other",
        photographs="cc0-1.0",
        counts={"pair": 7, "duplicate": 2},
        starts_from="",
        trainings={"nft": {"objective": "nft", "rewards": rewards}},
        lora={"rank": 8},
        table="",
        fused=False,
        commits={},
        kind=KINDS["prompts"],
    )
    assert "PickScore (weight 1), Aes (weight 0.5)." in card
    assert "| rewards | pickscore=1.0 aesthetic=0.5 |" in card
    assert "## Citation" not in card and "Licence of the prompts: cc0-1.0." in card
    assert "| distinct prompts | 7 |" in card
