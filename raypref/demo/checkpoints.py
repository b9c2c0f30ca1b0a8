"""The small checkpoints that come with the package: trained on the tiny world, in hub layout.

`raypref/demo/train.py` makes them.
"""

from __future__ import annotations

from pathlib import Path

from raypref.core.config import InputError

WEIGHTS = Path(__file__).with_name("weights")
NAMES = (
    *("sd15", "sd15-inpaint", "pickscore", "u2netp.safetensors", "critic.safetensors", "crisp"),
    *(f"taste-{name}.safetensors" for name in ("bright", "dark", "vivid", "pale")),
)


def path(name: str) -> Path:
    """The local folder or file of an embedded checkpoint.

    Args:
        name: `sd15` (StableDiffusionPipeline), `sd15-inpaint` (StableDiffusionInpaintPipeline),
            `pickscore` (CLIPModel with its processor and tokenizer), `u2netp.safetensors` (state of
            U2NETP), `critic.safetensors` (state of `critic.Critic`), `crisp` (a LoRA of `sd15`), or
            `taste-NAME.safetensors` (a linear head on `pickscore`: see `tastes`).

    Raises:
        InputError: there is no such checkpoint.
    """
    if name not in NAMES:
        known = ", ".join(f"tiny:{known}" for known in NAMES)
        raise InputError(f"no embedded model 'tiny:{name}'; there are: {known}")
    return WEIGHTS / name
