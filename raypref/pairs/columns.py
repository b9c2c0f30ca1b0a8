"""Columns of pairs that are no twins, of what they are chosen from, and of every label's end."""

from __future__ import annotations

from collections.abc import Sequence

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
PROMPT_PAIRS = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.string()),
        ("prompt", pa.string()),
    ]
)
CANDIDATE_PAIRS = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.string()),
        ("prompt", pa.string()),
        ("chosen", IMAGE),
        ("rejected", IMAGE),
        ("mask", IMAGE),  # null without a hole
        ("source", IMAGE),  # the photograph; null without a hole
        ("candidate_chosen", pa.int32()),  # -1: the photograph itself
        ("candidate_rejected", pa.int32()),
        ("score_chosen", pa.float64()),
        ("score_rejected", pa.float64()),
        ("gap", pa.float64()),
        ("rule", pa.string()),
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
PROMPTS = pa.schema([_LABELS.field(n) for n in ("id", "key", "prompt", "status", "reason")])
COLUMNS = {"labelled": PAIRS, "images": SINGLE}
OUTCOMES = {"labelled": _LABELS, "images": _SCORES}
# What each column is, for people.
MEANING = {
    "id": "where the label came from, unique: file and row",
    "key": "sha256 of both images' bytes and the prompt, in hexadecimal",
    "prompt": "what both images were made for",
    "chosen": "image: the one that people preferred, cropped",
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
    "chosen": "image: whatever its score, cropped",
    "rejected": "null: there is one image per row",
    "chosen_model": "the generator of the image; null where the source does not say",
    "score": "what people said of the image: 1 good, 0 bad, or a number of the source",
}
PROMPT_MEANING = {
    "id": "where the prompt came from, unique: file and number in it",
    "key": "sha256 of the prompt, after a zero byte, in hexadecimal",
    "prompt": "the prompt, without surrounding spaces",
}
PROMPTS_MEANING = {
    **PROMPT_MEANING,
    "key": f"{PROMPT_MEANING['key']}; null where it was not taken",
    "status": "`pair` (taken), `not_selected` or `dropped` (it could not be used)",
    "reason": "why it was not taken, in a word; null where it was",
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
CANDIDATES_MEANING = {
    "id": "where the photograph came from, unique: file, shard member or row of a table",
    "key": "sha256 of the photograph's bytes and the caption, in hexadecimal",
    "prompt": "the photograph's caption",
    "chosen": "image: the candidate that the rule chose, or the photograph",
    "rejected": "image: the candidate that the rule rejected",
    "mask": "image: white where a candidate was repainted; null where it was drawn from the prompt "
    "alone",
    "source": "image: the photograph, whose hole was repainted; null like `mask`",
    "candidate_chosen": "number of the chosen candidate, from 0; -1 for the photograph",
    "candidate_rejected": "number of the rejected candidate",
    "score_chosen": "what the rule says of `chosen`, higher is better; null for the photograph",
    "score_rejected": "what the rule says of `rejected`",
    "gap": "`score_chosen` minus `score_rejected`, over its mean: the mean over the pairs is 1",
    "rule": "`choice.by`",
}
HOLES_MEANING = {
    "id": CANDIDATES_MEANING["id"],
    "key": CANDIDATES_MEANING["key"],
    "prompt": CANDIDATES_MEANING["prompt"],
    "image": "image: the photograph, cropped; null where it has no hole that fits",
    "mask": "image: white where candidates are repainted; null where they are drawn from the "
    "prompt alone",
    "saliency": "image: what the painter was given for the hole",
    "reject_reason": "why the photograph was dropped, in a word; null where it was not",
}
SCORES_MEANING = {
    "id": CANDIDATES_MEANING["id"],
    "key": CANDIDATES_MEANING["key"],
    "candidate": "its number, from 0",
    "rule": "what the rule says of it, higher is better; null for a candidate that is out",
}


def candidate_pairs(rewards: Sequence[str]) -> pa.Schema:
    """Columns of pairs of candidates, each with the scores of its rewards."""
    scores = [f"score_{name}_{side}" for name in rewards for side in ("chosen", "rejected")]
    return pa.schema([*CANDIDATE_PAIRS, *((name, pa.float64()) for name in scores)])


def candidate_scores(rewards: Sequence[str]) -> pa.Schema:
    """Columns of the table of all candidates."""
    about = [("id", pa.string()), ("key", pa.string()), ("candidate", pa.int32())]
    return pa.schema([*about, *((name, pa.float64()) for name in (*rewards, "rule"))])
