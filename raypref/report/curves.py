"""The metrics of a training in words, in the order in which the page shows their curves."""

from __future__ import annotations

# How the metrics of single rewards begin: `reward/pickscore`.
REWARD, HELD_OUT = "reward/", "held_out/"
CURVES = {
    "loss": "the objective; lower is better",
    "reward": "mean of the images that the policy makes; what is trained on",
    "reward_std": "spread of the reward within the images of a prompt",
    "kl": "mean squared distance of the predictions from the reference's",
    "diversity": "how unlike the images of a prompt are: 1 minus their mean cosine",
    "advantage_abs": "mean size of the advantages",
    "chosen_gap": "error on the chosen images relative to the reference; below 0 is better",
    "rejected_gap": "the same on the rejected images; above 0 is better",
    "ref_chosen": "error of the reference on the chosen images",
    "ref_rejected": "error of the reference on the rejected ones",
    "chosen_error": "error on the chosen images; lower is better",
    "rejected_error": "the same on the rejected images",
    "image_gap": "error on the labelled images relative to the reference",
    "ref_image": "error of the reference on the labelled images",
    "desirable_gap": "the part of image_gap on desirable or weighted images; below 0 is better",
    "ref_desirable": "error of the reference on these",
    "desirable": "share of images that are desirable",
    "weight": "of the images, by their score",
    "reference_point": "reward from which gains count",
    "diff": "chosen_gap minus rejected_gap; below 0 is better",
    "hinge_active": "share of samples that still give a gradient",
    "implicit_accuracy": "share of pairs ranked as preferred; 0.5 is chance",
    "rejected_share": "share of the rejected side's gradient that is let through",
    "label_probability": "how sure the labels are; 0.5 is a tie",
    "pair_weight": "of a pair's errors; a half where learner and reference agree",
    "margin_exceeded": "share of pairs told apart by more than their margin",
    "logit": "how much the learner prefers the chosen image more than the reference does",
    "grad_norm": "before clipping",
    "lora_norm": "size of what the LoRA adds to the weights",
    "weights_norm": "how far all weights are from the base's",
    "lr": "learning rate",
    "seconds_per_step": "wall time of one optimizer step",
    "images_per_second": "chosen images per second, each with its rejected one",
}
# Of a training on samples of its own policy: they are its rejected side.
OWN_SAMPLES = {
    "rejected_gap": "the same on the policy's own samples",
    "ref_rejected": "error of the reference on the policy's own samples",
    "rejected_error": "error on the policy's own samples",
    "diff": "chosen_gap minus the gap on the policy's own samples; below 0 is better",
    "implicit_accuracy": "share of chosen images preferred to the policy's own; 0.5 is chance",
    "images_per_second": "chosen images per second, each with a sample of the policy",
}
BOTH_GAPS = (
    '0 = unchanged: <span class="better">chosen images</span> should fall, '
    '<span class="paper">rejected images</span> should rise'
)
BOTH_GAPS_OF_OWN_SAMPLES = (
    '0 = unchanged: <span class="better">chosen images</span> should fall below '
    '<span class="paper">the policy\'s own samples</span>'
)


def meaning(metric: str, *, own_samples: bool) -> str:
    """What a metric says; empty for one that is not known.

    Args:
        metric: its column.
        own_samples: whether the rejected side is drawn by the policy.
    """
    if metric.startswith(REWARD):
        return "of the policy's images; trained on"
    if metric.startswith(HELD_OUT):
        return "of the policy's images; nothing is trained on it"
    return (OWN_SAMPLES.get(metric, "") if own_samples else "") or CURVES.get(metric, "")


def both_gaps(*, own_samples: bool) -> str:
    """What the two gaps in one chart say, as markup.

    Args:
        own_samples: whether the rejected side is drawn by the policy.
    """
    return BOTH_GAPS_OF_OWN_SAMPLES if own_samples else BOTH_GAPS
