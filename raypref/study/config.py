"""Settings of `raypref study`: what is asked about, and how it is served."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from raypref.core.config import Location, Section, setting

QUESTION = "Which image do you prefer given the prompt?"  # the paper's, appendix A.3


class StudyConfig(Section):
    """What is asked about. The defaults are the paper's user study, with a tie allowed."""

    out: str = setting(..., "folder of the study; local")
    question: str = setting(QUESTION, "what raters are asked", min_length=1, max_length=300)
    title: str = setting("Which image is better?", "heading of the page", max_length=100)
    ties: bool = setting(True, "let raters say that neither is better; the paper does not")
    images: Literal["evaluation", "candidates"] = setting(
        "evaluation", "of a run: its evaluation's images, or the candidates that pairs come from"
    )
    prompt_set: str = setting("", "folder of the set below evaluation/; empty: the first set")
    models: tuple[str, ...] = setting(
        (), "which models, as a,b; empty: a run's own and its base, of folders all"
    )
    versus: str = setting("", "show this model against each other one; empty: every two models")
    image_seed: int = setting(-1, "seed of the images; -1: the lowest that all models have")
    prompts: int = setting(
        60, "prompts, drawn by the seed as evenly over the categories as they allow; 0: all", ge=0
    )
    categories: tuple[str, ...] = setting((), "only prompts of these categories; empty: all")
    captions: Location = setting(
        "", "of folders: CSV with the columns file, caption and, if known, category"
    )
    per_rater: int = setting(0, "pairs per rater, drawn per rater; 0: all", ge=0)
    repeats: int = setting(
        0, "pairs that are shown again, with sides exchanged, to raters who see them at all", ge=0
    )
    checks: int = setting(0, "attention checks: a model's image against a scrambled copy", ge=0)
    quality: int = setting(100, "of the WebP images that raters see; 100: lossless", ge=1, le=100)
    seed: int = setting(0, "of the draw of prompts, and of each rater's order and sides")
    static: bool = setting(False, "also write page.html, which needs no server")

    @field_validator("out")
    @classmethod
    def _local(cls, out: str) -> str:
        if "://" in out or not out:
            raise ValueError("a study lies in a local folder")
        return out


class ServeConfig(Section):
    """How a study is served."""

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0: every network")
    port: int = setting(8765, "port; 0: a free one", ge=0, le=65535)
    rate: float = setting(
        20.0, "votes per second that one rater may send, and pages and images times ten", gt=0
    )


class ResultsConfig(Section):
    """Which raters count."""

    least_checks: float = setting(
        0.75, "share of the attention checks that a rater must pass", ge=0, le=1
    )
