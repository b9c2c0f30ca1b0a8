"""The degraded twin: the salient region of a photograph, painted anew from its caption."""

from __future__ import annotations

import pyarrow as pa
import torch
from diffusers import StableDiffusionInpaintPipeline

from raypref.config import Location, Resources, Section, setting
from raypref.diffusion.backbone import DTYPES, DType, pick_device
from raypref.hub import model_folder
from raypref.images import encode_png, open_png
from raypref.rows import Row, seed_of


class PerturbConfig(Section):
    """Prompt-conditioned inpainting; the defaults are the pipeline's own, as in the paper."""

    model: Location = setting(
        "stable-diffusion-v1-5/stable-diffusion-inpainting", "hub id or folder of the inpainter"
    )
    variant: str = setting("", "file variant on the hub, such as fp16")
    dtype: DType = setting("float32", "precision of the inpainter")
    steps: int = setting(50, "denoising steps", ge=1)
    guidance: float = setting(7.5, "classifier-free guidance scale", ge=0)
    strength: float = setting(1.0, "1 repaints from pure noise", gt=0, le=1)
    resources: Resources = Resources(batch=4)

    def folder(self) -> str:
        """What to hand to `from_pretrained`."""
        return model_folder(self.model, key="perturb.model", probe="model_index.json")


class Inpaint:
    """Stage: photograph and saliency map to the degraded twin.

    The soft map goes in; the pipeline binarises it at 0.5 itself. The noise of a row is seeded by
    (seed, key): batch, order and worker do not matter.
    """

    name = "inpaint"
    reads: tuple[str, ...] = ("key", "caption", "chosen", "saliency")
    writes = pa.schema([("rejected", pa.binary())])

    def __init__(self, config: PerturbConfig, *, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.resources = config.resources

    def setup(self) -> None:
        """Load the pipeline, without the safety checker (it would blacken twins)."""
        self.pipeline = StableDiffusionInpaintPipeline.from_pretrained(
            self.config.folder(),
            variant=self.config.variant or None,
            dtype=DTYPES[self.config.dtype],
            safety_checker=None,
            requires_safety_checker=False,
        )
        self.pipeline.to(pick_device(self.resources.num_gpus))
        self.pipeline.set_progress_bar_config(disable=True)

    def __call__(self, rows: list[Row]) -> None:
        """Fill the column."""
        photos = [open_png(row["chosen"]) for row in rows]
        generators = [
            torch.Generator().manual_seed(seed_of(self.seed, "inpaint", row["key"])) for row in rows
        ]
        twins = self.pipeline(
            prompt=[row["caption"] for row in rows],
            image=photos,
            mask_image=[open_png(row["saliency"]) for row in rows],
            height=photos[0].height,
            width=photos[0].width,
            num_inference_steps=self.config.steps,
            guidance_scale=self.config.guidance,
            strength=self.config.strength,
            generator=generators,
        ).images
        for row, twin in zip(rows, twins, strict=True):
            row["rejected"] = encode_png(twin)
