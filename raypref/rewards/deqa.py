"""DeQA-Score: the quality of an image, whatever its prompt (You et al. 2025).

The model (mPLUG-Owl2) is Python code in its repository, which runs only with an old transformers.
So it has to be allowed, and needs workers with an environment of their own, `runtime_env`. This
module must run in that environment: it imports nothing of the project that needs more than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image

from raypref.core.config import InputError, Location, Resources, setting
from raypref.core.device import pick_device, torch_dtype
from raypref.core.messages import first_line
from raypref.models.hub import from_pretrained, model_folder
from raypref.rewards.config import RewardConfig

KEY = "rewards.deqa.model"
# Versions from the model's README; the hub client is the last series that this transformers takes.
PINS = (
    "transformers==4.36.1",
    "tokenizers==0.15.0",
    "huggingface_hub==0.25.2",
    "sentencepiece==0.1.99",
    "icecream",
)
PROMPT = (
    "USER: How would you rate the quality of this image?\n",
    "\nASSISTANT: The quality of the image is",
)
IMAGE_TOKEN = -200  # what stands between the two until the model puts the image there
LEVELS = {"excellent": 5.0, "good": 4.0, "fair": 3.0, "poor": 2.0, "bad": 1.0}


class DeQAConfig(RewardConfig):
    """Which DeQA weights and how; off unless its code is allowed."""

    # Not `differentiable`: its code runs in no worker that trains, whose transformers is newer.
    label: ClassVar[str] = "DeQA"
    large: ClassVar[bool] = True

    # The commit that RealAlign evaluates with.
    model: Location = setting(
        "zhiyuanyou/DeQA-Score-Mix3@f37ba4273ad8d7548e21ac2fa58353c517e4df49",
        "folder of the model, or OWNER/REPO@COMMIT: no other code is run",
    )
    allow_code: bool = setting(False, "run the Python code that comes with the model")
    dtype: Literal["float32", "float16", "bfloat16"] = setting("float16", "precision of the model")
    resources: Resources = Resources(batch=8)

    @property
    def runtime_env(self) -> dict[str, Any]:
        """Ray's description of the environment that a worker needs for it."""
        return {"pip": list(PINS)}

    def check(self) -> None:
        """Look for the model.

        Raises:
            InputError: its code is not allowed or may change, or the model is missing.
        """
        if not self.allow_code:
            raise InputError(
                f"rewards.deqa.allow_code: '{self.model}' brings Python code of its own; read it "
                "and set rewards.deqa.allow_code=true to run it"
            )
        self.folder()

    def folder(self) -> str:
        """What to hand to `hub.from_pretrained`.

        Raises:
            InputError: the model is missing, or named by what may be other code tomorrow.
        """
        folder = model_folder(self.model, key=KEY, probe="config.json")
        if not Path(folder).is_dir() and folder != self.model:
            raise InputError(
                f"{KEY}: '{self.model}' brings Python code of its own; name the commit that you "
                f"have read ({folder} is the present one)"
            )
        return folder

    def load(self) -> DeQA:
        """Load the model onto its device."""
        return DeQA(self)


class DeQA:
    """Expected level of quality, from 1 (bad) to 5 (excellent); prompts are not looked at.

    Every row has the same text and one square image: rows of a batch have nothing to do with each
    other but for rounding, 1e-5 in float32 and 0.02 in the half precisions.
    """

    def __init__(self, config: DeQAConfig) -> None:
        import torch
        import transformers
        from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoTokenizer

        config.check()
        self.device = pick_device(config.resources.num_gpus)
        folder, trust = config.folder(), {"trust_remote_code": True}
        try:
            self.tokenizer: Any = from_pretrained(AutoTokenizer, folder, use_fast=False, **trust)
            self.images = from_pretrained(AutoImageProcessor, folder, **trust)
            # Made on the device and filled file by file: the host never holds the model. The old
            # transformers would need accelerate for a `device_map`.
            with self.device:
                model: Any = from_pretrained(
                    AutoModelForCausalLM,
                    folder,
                    torch_dtype=torch_dtype(config.dtype),  # the old name of `dtype`
                    attn_implementation="eager",
                    use_safetensors=True,
                    **trust,
                )
        except (ImportError, AttributeError, TypeError, OSError, ValueError) as error:
            raise InputError(
                f"{KEY}: '{config.model}' does not load with transformers "
                f"{transformers.__version__} ({first_line(error)}); it needs a Python "
                f"with {', '.join(PINS)}"
            ) from None
        self.model = model.to(self.device).eval().requires_grad_(False)
        before, after = (self.tokenizer(text).input_ids for text in PROMPT)
        if after[0] == self.tokenizer.bos_token_id:
            after = after[1:]
        self.text_1L = torch.tensor([[*before, IMAGE_TOKEN, *after]], device=self.device)
        self.levels = [
            self.tokenizer(level, add_special_tokens=False).input_ids[0] for level in LEVELS
        ]
        self.worth_5 = torch.tensor(list(LEVELS.values()), device=self.device)

    def prepare(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Any:
        """Pixels of the images, each in a square: float32 [B, 3, H, W]."""
        assert len(images) == len(prompts)
        colour = tuple(int(255 * mean) for mean in self.images.image_mean)
        squares = [square(image, colour) for image in images]
        return self.images(images=squares, return_tensors="pt")["pixel_values"]

    def compute(self, batch: Any) -> np.ndarray:
        """Score B images: float32 [B]."""
        logits_BLV = self.model(
            input_ids=self.text_1L.repeat(len(batch), 1),
            images=batch.to(self.device, self.model.dtype),
        )["logits"]
        chances_B5 = logits_BLV[:, -1, self.levels].float().softmax(-1)
        return (chances_B5 @ self.worth_5).cpu().numpy()

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Score B images: float32 [B]. Not inherited, as this module imports little."""
        return self.compute(self.prepare(images, prompts))


def square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """The image in the middle of the smallest square that holds it."""
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas
