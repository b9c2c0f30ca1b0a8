"""Dataset cards of pairs that are no twins: what the columns are, what became of every input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from raypref.core.ledger import Ledger, join, write_bytes
from raypref.core.messages import public_name
from raypref.curate.cards import CARD, PHOTOS_COLUMNS, REJECTS_COLUMNS, card_text, hub_header
from raypref.pairs.columns import (
    CANDIDATES_MEANING,
    HOLES_MEANING,
    LABELS_MEANING,
    MEANING,
    PROMPT_MEANING,
    PROMPTS_MEANING,
    SCORES_MEANING,
    SINGLE_MEANING,
)
from raypref.pairs.config import PairingConfig
from raypref.pairs.words import how_chosen


def write_label_cards(
    config: PairingConfig,
    counts: Counter[str],
    *,
    labels: Ledger,
    rejects: Ledger,
    pairs: Ledger,
) -> None:
    """Write the cards of the three tables, each into its folder."""
    header = hub_header(config.source.license)
    columns = {name: LABELS_MEANING[name] for name in labels.schema().names}
    about = ["One row per label: what the source says and what became of it. There are no images."]
    lost = [
        "One row per label that could not be used, with the reason. Where none was dropped, pandas",
        "shows no rows; `datasets` refuses a table without rows.",
    ]
    texts = (
        (pairs, _pairs(config, counts)),
        (labels, card_text(header, "Every label of a run", about, columns, counts)),
        (rejects, card_text(header, "Dropped labels of a run", lost, REJECTS_COLUMNS, counts)),
    )
    for ledger, text in texts:
        write_bytes(join(ledger.path, CARD), text.encode())


def _pairs(config: PairingConfig, counts: Counter[str]) -> str:
    header = [*hub_header(config.source.license), "task_categories: [text-to-image]"]
    if config.pairs.kind == "images":
        about = ["Images that people judged one by one, with their scores."]
        return card_text(header, "Labelled images", about, SINGLE_MEANING, counts)
    about = [
        "Two images per prompt, and which one people preferred: `chosen` against `rejected`.",
        "Labels are as the source gives them; nothing was scored by a model.",
    ]
    if config.pairs.flip_labels:
        share = f"{config.pairs.flip_labels:.0%}"
        about.append(f"About {share} of the labels were turned round on purpose (`flipped`).")
    if config.pairs.shuffle_gaps:
        about.append("`gap` and `gap_std` were shuffled among the pairs on purpose.")
    return card_text(header, "Preference pairs labelled by people", about, MEANING, counts)


def write_prompt_cards(
    config: PairingConfig,
    counts: Counter[str],
    *,
    prompts: Ledger,
    rejects: Ledger,
    pairs: Ledger,
) -> None:
    """Write the cards of the three tables of prompts alone, each into its folder."""
    header = hub_header(config.source.license)
    task = [*header, "task_categories: [text-to-image]"]
    about = ["Distinct prompts. A training on them learns from images that its own policy makes."]
    every = ["One row per prompt of the source: what became of it."]
    lost = [
        "One row per prompt that could not be used, with the reason. Where none was dropped,",
        "pandas shows no rows; `datasets` refuses a table without rows.",
    ]
    texts = (
        (pairs, card_text(task, "Prompts", about, PROMPT_MEANING, counts)),
        (prompts, card_text(header, "Every prompt of a run", every, PROMPTS_MEANING, counts)),
        (rejects, card_text(header, "Dropped prompts of a run", lost, REJECTS_COLUMNS, counts)),
    )
    for ledger, text in texts:
        write_bytes(join(ledger.path, CARD), text.encode())


def write_candidate_cards(
    config: PairingConfig, counts: Counter[str], tables: Mapping[str, Ledger], *, hole: bool
) -> None:
    """Write the cards of pairs of candidates and of what they were chosen from.

    Args:
        config: the settings that they were made by.
        counts: what became of every photograph.
        tables: the ledgers `holes`, `scores`, `pairs`, `photos` and `rejects`.
        hole: whether candidates fill a hole.
    """
    header, rewards = hub_header(config.source.license), config.candidates.rewards
    named = ", ".join(rewards) or "no reward"
    model = f"`{public_name(config.perturb.model)}`"
    painted = "filled the hole of" if hole else "drew from the caption of"
    about = [
        f"{config.candidates.count} candidates each: {model} {painted} every photograph so often.",
        f"They were scored by {named}. {how_chosen(config.choice)}",
        "Method: *Follow-Your-Preference* (arXiv 2509.23082).",
    ]
    inpainting = ["task_categories: [image-to-image]", "task_ids: [image-inpainting]"]
    task = [*header, *(inpainting if hole else ["task_categories: [text-to-image]"])]
    scores = {
        f"score_{name}_{side}": f"{name} of `{side}` and the prompt"
        for name in rewards
        for side in ("chosen", "rejected")
    }
    photos = {**PHOTOS_COLUMNS, "pickscore": "null: no score ranks these photographs"}
    lost = ["One row per photograph that could not be used, with the reason."]
    each = {"id": "", "key": "", "candidate": "", **dict.fromkeys(rewards, "the reward's score")}
    texts = {
        "pairs": (task, "Preference pairs of candidates", about, CANDIDATES_MEANING | scores),
        "holes": (header, "Photographs and their holes", about[:1], HOLES_MEANING),
        "scores": (header, "Scores of candidates", about, each | SCORES_MEANING),
        "photos": (header, "Every input of a run", about, photos),
        "rejects": (header, "Dropped inputs of a run", lost, REJECTS_COLUMNS),
    }
    for name, (head, title, text, columns) in texts.items():
        card = card_text(head, title, text, columns, counts)
        write_bytes(join(tables[name].path, CARD), card.encode())
