"""Why photographs became no pair, in words: what each reason means and what would keep them."""

from __future__ import annotations

from raypref.curate.config import CurateConfig
from raypref.pairs.config import PairingConfig
from raypref.pairs.kinds import kind_of

DAMAGED = "The file is damaged: replace it."
MISSING = "The file cannot be read: put it where its table or caption says, or remove the entry."


def keeps(reason: str, config: CurateConfig, *, mean: float | None) -> str:
    """What a reason means and what would keep such photographs; empty for an unknown one.

    Args:
        reason: the word in the tables.
        config: the settings that the photographs were dropped by.
        mean: the mean colorfulness of the set; None where the filter did not use it.
    """
    text = _fixed().get(reason) or _limits(config).get(reason)
    if reason == "low_colorfulness" and mean is not None:
        return (
            f"Not above the mean of the set, {mean:.2f}: the filter keeps the more colorful ones, "
            "of most sets about half. color.enabled=false keeps all."
        )
    return text or ""


def keeps_label(reason: str, config: PairingConfig) -> str:
    """What a reason means and what would keep such labels or prompts; empty for an unknown one.

    Args:
        reason: the word in the tables.
        config: the settings that the pairs were made by.
    """
    pairs, images, what = config.pairs, config.images, kind_of(config).terms.input
    own = {
        "tie": "Neither image was preferred: there is nothing to choose. The arena of generators "
        "may count ties (pairs.arena.draw_probability).",
        "unlabelled": "Nobody said which image is better.",
        "low_confidence": f"Less confidence than pairs.min_confidence={pairs.min_confidence:g}.",
        "beyond_limit": f"pairs.limit={pairs.limit} {what}s were taken before it (0 takes all).",
        "same_image": "Both sides are one image.",
        "bad_label": "What the label says is no choice: write 1, 0 or 0.5, or leave it empty.",
        "bad_gap": "Its gap is below 0: swap the images, or take pairs.gap=arena.",
        "duplicate": f"The same {what} was kept once.",
        "no_caption": "An empty line, or a cell without text."
        if what == "prompt"
        else "Write a prompt beside the label.",
        "bad_caption": "The prompt holds a NUL character: write it anew.",
        "caption_too_long": f"source.max_caption={config.source.max_caption} sets the limit.",
        "too_small": f"A side is below {images.min_side} pixels: images.min_side sets the limit.",
    }
    return own.get(reason) or _fixed().get(reason) or _limits(config).get(reason) or ""


def _fixed() -> dict[str, str]:
    """Reasons that depend on no setting's value."""
    captions = "Write a caption: a line in captions.csv, or a .txt file beside the photograph."
    return {
        "duplicate": "The same photograph with the same caption was kept once.",
        "near_duplicate": "Looks like a photograph that was kept. "
        "images.near_duplicates=false keeps both.",
        "low_colorfulness": "Not colorful enough. color.enabled=false keeps all.",
        "less_colorful_than_twin": "Its rejected image came out more colorful. "
        "color.enabled=false keeps all; color.variant=paper compares with the set instead.",
        "no_salient_region": "Nothing stands out that could be repainted.",
        "no_mask": "The source has no mask for it; holes.kind=saliency needs none.",
        "bad_mask": "Its mask cannot be read: the message says why (docs/holes.md).",
        "not_a_photograph": "An artwork, by what a model says (photographic.enabled=false keeps "
        "all), or by its name a mask of the photograph beside it (a caption of its own keeps it).",
        "no_caption": captions,
        "bad_label": "Its label is none of 1, 0, 0.5 and empty (docs/labels.md).",
        "same_image": "Both images of the pair are the same.",
        "bad_caption": "Its caption holds a NUL character: write it anew.",
        "changed": "The file changed during curation: run again with run=NEW.",
        "bad_score": "The reward gave no number for it.",
        "too_few_candidates": "Too few of its candidates have a score of every reward that the "
        "rule reads.",
        "draw": "No candidate scores above the one that would be rejected. Where all score alike, "
        "choice.draws=random takes any two.",
        "beyond_limit": "pairs.limit were taken before it (0 takes all).",
        "animated": "An animation. images.animated=first_frame takes its first picture.",
        "unsupported_format": "Convert it to JPEG or PNG.",
        "unsupported_mode": "Its kind of pixels is not read: convert it to 8-bit RGB.",
        **dict.fromkeys(("empty", "unreadable", "truncated", "truncated_archive"), DAMAGED),
        **dict.fromkeys(("missing_file", "unreadable_file", "outside_root", "no_image"), MISSING),
    }


def _limits(config: CurateConfig) -> dict[str, str]:
    """Reasons that name a limit of the settings."""
    images, select = config.images, config.select
    least, most = config.holes.min_share, config.holes.max_share
    return {
        "hole_too_small": f"The hole takes less than {least:.0%} of the picture (holes.min_share), "
        "or lies outside of the crop.",
        "hole_too_large": f"The hole takes more than {most:.0%} of the picture (holes.max_share).",
        "not_needed": f"select.top_k={select.top_k} pairs were reached before its turn: a larger "
        "select.top_k takes more (0 takes all).",
        "outside_pool": f"source.pool_size={config.source.pool_size} photographs have a better "
        "PickScore, and pairs are made of those alone: a larger one takes more (0 takes all).",
        "beyond_top_k": f"Its pair passed, but {select.top_k} ranked higher: a larger "
        "select.top_k takes more (0 takes all).",
        "negligible_degradation": "Its rejected image scored about as high or higher, gap at most "
        f"{select.min_gap}: a smaller select.min_gap keeps more, select.negligible=false all.",
        "too_small": f"A side is below {images.min_side} pixels: images.min_side sets the limit.",
        "too_large": f"More than {images.max_pixels:,} pixels: images.max_pixels sets the limit.",
        "too_many_bytes": f"More than {images.max_bytes:,} bytes, or unpacks to too many: "
        "images.max_bytes sets the limit.",
        "bad_aspect": f"More than {images.max_aspect:g} times as long as wide: images.max_aspect "
        "sets the limit.",
    }
