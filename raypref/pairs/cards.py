"""Dataset cards of labelled pairs: what the columns are, what became of every label."""

from __future__ import annotations

from collections import Counter

from raypref.core.ledger import Ledger, join, write_bytes
from raypref.curate.cards import CARD, REJECTS_COLUMNS, card_text, hub_header
from raypref.pairs.columns import LABELS_MEANING, MEANING, SINGLE_MEANING
from raypref.pairs.config import PairingConfig


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
