"""Page and cards say what chose the pairs of candidates: rewards, chance, or the photograph."""

from __future__ import annotations

from pathlib import Path

import pytest
from candidate_pairs import config, made, photographs
from in_process import without_ray

from raypref.pairs.kinds import kind_of


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("source") / "photographs", 2)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)


@pytest.mark.parametrize(
    ("words", "data", "learned", "tags"),
    [
        ([], "candidates that rewards ranked", "draw what rewards prefer", ("reward-preferences",)),
        (
            ["choice.by=random", "candidates.rewards=[]"],
            "candidates that were chosen at random",
            "prefer images chosen at random",
            ("random-preferences",),
        ),
        (
            ["choice.chosen=photograph"],
            "real photographs, chosen over candidates that rewards ranked",
            "prefer your photographs",
            ("real-images", "reward-preferences"),
        ),
        (
            ["choice.chosen=photograph", "choice.rejected=first"],
            "real photographs, chosen over candidates",
            "prefer your photographs",
            ("real-images",),
        ),
        (
            ["choice.rejected=first"],
            "candidates that rewards ranked",
            "draw what rewards prefer",
            ("reward-preferences",),
        ),
    ],
)
def test_page_and_model_card_say_what_was_chosen(root, words, data, learned, tags):
    """No reward is said to have chosen what chance or a photograph decided."""
    kind = kind_of(config(root, *words))
    assert (kind.terms.data, kind.terms.learned, kind.tags) == (data, learned, tags)
    assert ("realalign2026" in kind.citation) == ("choice.chosen=photograph" in words)


def test_the_card_of_pairs_names_task_and_choice(root, tmp_path):
    painted = made(config(root, "choice.by=random", "pairs.limit=2"), tmp_path / "holes")
    drawn = made(config(root, "pairs.limit=2", kind="text2image"), tmp_path / "captions")
    of_holes, of_captions = (
        Path(maker.pairs.path, "_README.md").read_text(encoding="utf-8")
        for maker in (painted, drawn)
    )
    assert "[image-to-image]" in of_holes and "task_ids: [image-inpainting]" in of_holes
    assert "text-to-image" not in of_holes and "task_categories: [text-to-image]" in of_captions
    assert "No reward chose." in of_holes
    assert "best candidate by the rule ensemble" in of_captions and "No reward" not in of_captions
