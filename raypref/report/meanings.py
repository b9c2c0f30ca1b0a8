"""What metrics and gains say, for people who meet them first on the page."""

from __future__ import annotations

from collections.abc import Iterable

from raypref.evaluate.labels import IN_HOLE, gain_text, lower_is_better, neutral, plain_label

# After the metric's name; the page adds which way is better.
MEANINGS = {
    "pickscore": "rates how well a picture fits its prompt and pleases people",
    "imagereward": "rates how well a picture fits its prompt and pleases people",
    "unifiedreward": "is a grade from 1 to 5 that a vision-language model gives a picture",
    "hpsv2": "rates how well a picture fits its prompt and pleases people",
    "hpsv3": "rates how well a picture fits its prompt and pleases people",
    "deqa": "rates the quality of a picture, whatever its prompt",
    "aesthetic": "rates how beautiful people find a picture, whatever its prompt",
    "clipscore": "measures how close a picture is to its prompt",
    "vqascore": "is how likely a model finds it that a picture shows its prompt",
    "realism": "measures how much a picture looks like a photograph",
    "dpg": "is the share of questions about the prompt that the picture answers with yes",
    "texture_detail": "measures fine contrast in a picture",
    "colorfulness": "measures how strong and varied the colors of a picture are",
    "brightness": "is the mean grey level of a picture, 0 to 1",
    "contrast": "is the spread of a picture's grey levels",
    "saturation": "is the mean saturation of a picture's colors, 0 to 1",
    "texture": "is the variance of a picture's fine structure",
    "composition": "is how near its middle a picture's detail lies, 1 in the middle",
    "prompt_accuracy": "is the share of what a prompt names that a classifier finds in the picture",
    "psnr_kept": "measures how well the model keeps a photograph around the hole, before blending",
    "mse_kept": "is the model's error around the hole, before blending",
    **dict.fromkeys(
        ("cmmd", "cmmd_biased"),
        "is a distance between the model's pictures and the chosen images of the pairs, or, for "
        "holes, what was in them",
    ),
    "fid": "is an older distance to the same images; with few pictures it is biased: no interval",
}


def meaning_of(metric: str) -> str:
    """One sentence on a metric: what it says and which way is better; empty where unknown."""
    of_whole = metric.removesuffix(IN_HOLE)
    if of_whole not in MEANINGS:
        return ""
    better = "lower is" if lower_is_better(metric) else "higher is"
    better = "neither more nor less is" if neutral(metric) else better
    return f"{plain_label(metric)} {MEANINGS[of_whole]}; {better} better."


def meanings(metrics: Iterable[str]) -> list[str]:
    """One sentence per metric that is known, in order."""
    return [said for metric in dict.fromkeys(metrics) if (said := meaning_of(metric))]


def gain_words(metric: str, gain: float) -> str:
    """A gain with its sign; `±0` where it rounds to zero, which is neither a rise nor a drop."""
    text = gain_text(metric, gain)
    return text if text.strip("+-0.") else f"±{text[1:]}"
