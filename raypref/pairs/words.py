"""How pairs of candidates were chosen, in words: for the page, the cards and the models' names."""

from __future__ import annotations

from raypref.pairs.choice import RANDOM, RULES, ChoiceConfig
from raypref.pairs.maker import Kind


def how_chosen(choice: ChoiceConfig) -> str:
    """Which images the two sides of a pair are, in one or two sentences."""
    among = f" among the first {choice.candidates}" if choice.candidates else ""
    best = worst = f"a candidate drawn at random{among}"
    if choice.by != RANDOM:
        by = f"the rule {choice.by}" if choice.by in RULES else f"the reward {choice.by}"
        best, worst = (f"the {side} candidate{among} by {by}" for side in ("best", "worst"))
    chosen = "the photograph itself" if choice.chosen == "photograph" else best
    rejected = "the first candidate" if choice.rejected == "first" else worst
    said = f"The chosen image is {chosen}, the rejected image {rejected}."
    return said if ranked(choice) else f"{said} No reward chose."


def ranked(choice: ChoiceConfig) -> bool:
    """Whether rewards decide at least one side."""
    best_or_worst = choice.chosen == "best" or choice.rejected == "worst"
    return choice.by != RANDOM and best_or_worst


def of_choice(kind: Kind, choice: ChoiceConfig, *, real: str) -> Kind:
    """What is known of pairs of candidates that were chosen in this way.

    Args:
        kind: of pairs of candidates that rewards ranked, as by default.
        choice: how they were chosen.
        real: what is cited where photographs are chosen.
    """
    by_rewards = ranked(choice)
    if choice.chosen == "photograph":
        others = "candidates that rewards ranked" if by_rewards else "candidates"
        terms = kind.terms._replace(
            data=f"real photographs, chosen over {others}", learned="prefer your photographs"
        )
        tags = ("real-images", *(kind.tags if by_rewards else ()))
        return kind._replace(terms=terms, tags=tags, citation=f"{kind.citation}\n{real}")
    if by_rewards:
        return kind
    terms = kind.terms._replace(
        data="candidates that were chosen at random", learned="prefer images chosen at random"
    )
    return kind._replace(terms=terms, tags=("random-preferences",))
