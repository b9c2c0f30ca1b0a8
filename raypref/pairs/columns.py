"""Columns of what labelled data leaves: the pairs, and the table of what became of every label."""

from __future__ import annotations

import pyarrow as pa

from raypref.core.rows import IMAGE

PAIRS = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.string()),
        ("prompt", pa.string()),
        ("chosen", IMAGE),
        ("rejected", IMAGE),
        ("chosen_model", pa.string()),
        ("rejected_model", pa.string()),
        ("confidence", pa.float64()),
        ("vote_share", pa.float64()),
        ("gap", pa.float64()),
        ("gap_std", pa.float64()),
        ("flipped", pa.bool_()),
    ]
)
SINGLE = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.string()),
        ("prompt", pa.string()),
        ("chosen", IMAGE),  # the image
        ("rejected", IMAGE),  # null
        ("chosen_model", pa.string()),
        ("score", pa.float64()),
    ]
)
_LABELS = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.string()),
        ("prompt", pa.string()),
        ("first", pa.string()),
        ("second", pa.string()),
        ("first_model", pa.string()),
        ("second_model", pa.string()),
        ("label", pa.float64()),
        ("confidence", pa.float64()),
        ("vote_share", pa.float64()),
        ("status", pa.string()),  # pair, not_selected or dropped
        ("reason", pa.string()),  # null for a pair
    ]
)
_SCORES = pa.schema(
    [_LABELS.field(n) for n in ("id", "key", "prompt", "first", "first_model", "label")]
    + [_LABELS.field(n) for n in ("status", "reason")]
)
COLUMNS = {"labelled": PAIRS, "images": SINGLE}
OUTCOMES = {"labelled": _LABELS, "images": _SCORES}
# What each column is, for people.
MEANING = {
    "id": "where the label came from, unique: file and row",
    "key": "sha256 of both images' bytes and the prompt, in hexadecimal",
    "prompt": "what both images were made for",
    "chosen": "image: the one that people preferred, cropped to a square",
    "rejected": "image: the other one",
    "chosen_model": "the generator of `chosen`; null where the source does not say",
    "rejected_model": "the generator of `rejected`",
    "confidence": "how sure people were, as the source says it; null where it does not",
    "vote_share": "share of votes for `chosen`, 0 to 1; null where the source does not say",
    "gap": "how much better `chosen` is expected to be by what both generators can do; the mean "
    "over the pairs is 1; null where no generators are named",
    "gap_std": "standard deviation of the gap, in the same unit",
    "flipped": "whether the label was turned round on purpose (`pairs.flip_labels`)",
}
SINGLE_MEANING = {
    "id": MEANING["id"],
    "key": "sha256 of the image's bytes and the prompt, in hexadecimal",
    "prompt": "what the image was made for",
    "chosen": "image: whatever its score, cropped to a square",
    "rejected": "null: there is one image per row",
    "chosen_model": "the generator of the image; null where the source does not say",
    "score": "what people said of the image: 1 good, 0 bad, or a number of the source",
}
LABELS_MEANING = {
    "id": MEANING["id"],
    "key": f"{MEANING['key']}; null where there is no pair",
    "prompt": "the prompt as it was found",
    "first": "where the first image is in the source",
    "second": "where the second image is",
    "first_model": "the generator of the first image; null where the source does not say",
    "second_model": "the generator of the second image",
    "label": "1 the first image was preferred, 0 the second, 0.5 a tie, null without a label; of a "
    "single image its score",
    "confidence": MEANING["confidence"],
    "vote_share": "share of votes for the first image, 0 to 1; null where the source does not say",
    "status": "`pair`, `not_selected` or `dropped` (it could not be used)",
    "reason": "why it is no pair, in a word; null for a pair",
}
