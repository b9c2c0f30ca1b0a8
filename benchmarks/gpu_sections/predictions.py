"""What was predicted before any GPU was at hand, for one H100 of 80 GB, and for full-size models.

Counts are exact, of the networks on the meta device; times are a roofline of these counts (450
TFLOP/s in matrix products and convolutions, 350 in attention, 2.4 TB/s elsewhere, at least 4 us
per kernel); shares of the device were simulated. `as is` stands for code without autocast.
"""

from __future__ import annotations

Key = tuple[str, str, str]  # section, figure, variant

TFLOP = {"sd15": (0.804, 0.910), "sd35m": (2.468, 2.791)}  # of a sample: forward, backward

_TRAIN: dict[tuple[str, str], float] = {
    ("forward at 16", "no adapter"): 44,
    ("forward at 16", "as is"): 51,
    ("forward at 16", "autocast"): 67,
    ("forward and backward at 16", "as is"): 128,
    ("forward and backward at 16", "autocast"): 162,
    ("memory per sample", "as is"): 0.74,
    ("memory per sample", "autocast"): 1.06,
    ("memory per sample", "checkpointing"): 0.16,
    ("kernels, forward", "as is"): 1240,
    ("kernels, forward", "autocast"): 2157,
    ("kernels, forward and backward", "as is"): 2729,
    ("kernels, forward and backward", "autocast"): 4267,
    ("host-to-device copies, rollout of 32", "as is"): 12,
    ("dro, 256 samples", "as is"): 14.3,
    ("dro, 256 samples", "autocast"): 18.6,
    ("dro, 256 samples", "two stops"): 11.3,
    ("dpo, 256 samples", "as is"): 5.7,
    ("dpo, 256 samples", "autocast"): 7.3,
    ("dro, MFU", "as is"): 0.24,
    ("dro, MFU", "autocast"): 0.19,
    ("dro, plain loop / ours", ""): 22.2 / 13.5,
    ("dpo, plain loop / ours", ""): 7.3 / 5.04,
}
_CURATION: dict[Key, float] = {
    ("inpaint", "UNet per twin", "PNDM 50"): 0.28,
    ("inpaint", "VAE per twin", "PNDM 50"): 0.02,
    ("inpaint", "CPU per twin", "PNDM 50"): 0.106,
    ("inpaint", "device time per twin", "batch 16"): 0.30,
    ("inpaint", "device time per twin", "compiled blocks, channels_last"): 0.23,
    ("inpaint", "device time per twin", "DPM-Solver++ 20"): 0.13,
    ("inpaint", "device time per twin", "DPM-Solver++ 25"): 0.16,
    ("inpaint", "saliency per image", ""): 4.5,
    ("evaluate", "device time per image", "base"): 0.30,
    ("evaluate", "device time per image", "LoRA"): 0.35,
    ("evaluate", "device time per image", "LoRA merged"): 0.30,
    ("score", "PickScores", "float32, batch 32"): 130,
    ("score", "PickScores", "TF32, batch 32"): 700,
    ("score", "PickScores", "float16, batch 128"): 1000,
    ("score", "CPU per image", "1 thread"): 8.5,
    ("lock", "device share, score", "in turn"): 0.44,
    ("lock", "device share, score", "ahead"): 0.95,
    ("lock", "device share, inpaint", "in turn"): 0.74,
    ("lock", "device share, inpaint", "ahead"): 0.95,
}
_COMPILE: dict[Key, float] = {
    ("compile", "dro, 256 samples", "blocks"): 11,
    ("compile", "dpo, 256 samples", "blocks"): 4.5,
    ("sd35", "forward at 8", "as is"): 88,
    ("sd35", "forward at 8", "autocast"): 106,
    ("sd35", "forward and backward at 8", "as is"): 219,
    ("sd35", "forward and backward at 8", "autocast"): 260,
    ("sd35", "dro, 256 samples", "checkpointing"): 46,
    ("sd35", "memory per sample", "as is"): 2.04,
    ("sd35", "memory per sample", "autocast"): 2.43,
    ("sd35", "memory per sample", "checkpointing"): 0.10,
}
_ENV: dict[Key, float] = {
    ("env", "copy", ""): 2.4,
    ("env", "matrix product", "bfloat16"): 450,
    ("check", "equal bits of a batch's positions, PickScore", ""): 1,
    ("check", "equal bits of a batch's positions, inpaint", ""): 1,
    ("check", "equal bits, watched late and at once", ""): 1,
}
# Of the full size whatever is measured.
COUNTED: dict[Key, float] = {
    ("env", "counted: kernels, forward", "sd15"): 1240,
    ("env", "counted: kept for backward per sample", "sd15"): 0.74,
    ("env", "counted: forward per sample", "sd15"): 0.804,
    ("env", "counted: backward per sample", "sd15"): 0.910,
    ("env", "counted: kernels, both", "sd15"): 2729,
    ("env", "counted: kept for backward per sample", "sd35m"): 2.04,
    ("env", "counted: forward per sample", "sd35m"): 2.468,
    ("env", "counted: backward per sample", "sd35m"): 2.791,
}
ON_H100: dict[Key, float] = {
    **{("train", name, variant): value for (name, variant), value in _TRAIN.items()},
    **_CURATION,
    **_COMPILE,
    **_ENV,
}


def predicted(section: str, name: str, variant: str, *, size: str, cuda: bool) -> float | None:
    """The prediction for a figure; None where there is none, or where it would not apply."""
    key = section, name, variant
    if key in COUNTED:
        return COUNTED[key]
    return ON_H100.get(key) if size == "full" and cuda else None


# Published peaks of dense bfloat16 matrix products, TFLOP/s, by a part of the card's name.
PEAKS = {
    "H100 PCIe": 756,
    "H100": 989,
    "H200": 989,
    "A100": 312,
    "L40S": 362,
    "A10G": 70,
    "RTX 4090": 165,
    "RTX 3090": 71,
}


def peak_of(card: str) -> float | None:
    """The published peak of a card, if it is known here."""
    return next((peak for part, peak in PEAKS.items() if part in card), None)
