"""Images of every model for every prompt and seed: one base in memory, LoRAs switched on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import pyarrow as pa
import torch
from pydantic import field_validator
from safetensors.torch import load

from raypref.config import InputError, Location, Resources, Section, setting
from raypref.diffusion.backbone import BackboneConfig, load_pipeline, pick_device
from raypref.diffusion.lora import FILE_NAME
from raypref.evaluate.prompts import read_prompts
from raypref.images import encode_png
from raypref.ledger import join, read_bytes
from raypref.rows import Row
from raypref.tiny import world

BASE = "base"


class GenerateConfig(Section):
    """The evaluation's images; defaults are the paper's for SD-1.5 (method: section 5)."""

    prompts: Location = setting(
        "", "prompt file (.txt, .csv, .jsonl, .parquet), or tiny:prompts for the embedded ones"
    )
    limit: int = setting(0, "use only the first N prompts; 0 uses all", ge=0)
    seeds: tuple[int, ...] = setting(
        (42, 123, 456, 789, 1000), "one image a prompt for each; the released code's", min_length=1
    )
    steps: int = setting(50, "denoising steps", ge=1)
    guidance: float = setting(7.5, "classifier-free guidance scale", ge=0)
    size: int = setting(512, "side of the images in pixels", ge=8, multiple_of=8)
    samples: int = setting(
        4, "prompts drawn at the steps a stage kept a LoRA of", affects_result=False, ge=0
    )
    resources: Resources = Resources(batch=8)

    @field_validator("seeds")
    @classmethod
    def _differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("every seed may stand once: it makes one image a prompt")
        return seeds

    def read(self) -> list[str]:
        """The prompts.

        Raises:
            InputError: the file is missing or holds none.
        """
        if not self.prompts:
            raise InputError("evaluate.prompts is required: add evaluate.prompts=FILE")
        limit = self.limit or None
        if self.prompts == "tiny:prompts":
            return world.held_out_prompts(limit or 64)
        return read_prompts(self.prompts, limit=limit)


def rows_to_generate(
    prompts: Sequence[str], seeds: Sequence[int], models: Sequence[str]
) -> pa.Table:
    """One row an image: id, model, prompt_id, prompt, seed. Models come one after another."""
    return pa.Table.from_pylist(
        [
            {
                "id": f"{model}/{number:05d}/{seed}",
                "model": model,
                "prompt_id": number,
                "prompt": prompt,
                "seed": seed,
            }
            for model in models
            for number, prompt in enumerate(prompts)
            for seed in seeds
        ]
    )


class Generate:
    """Stage: model, prompt and seed to an image.

    The generator is seeded anew for every image with the row's seed, as the released code does:
    one seed gives all models, and all prompts, the same starting noise.

    Args:
        base: the model family and weights.
        config: steps, guidance, size.
        loras: model name to the folder of its LoRA; `base` needs none.
    """

    name = "generate"
    reads: tuple[str, ...] = ("model", "prompt", "seed")
    writes = pa.schema([("image", pa.binary())])

    def __init__(
        self, base: BackboneConfig, config: GenerateConfig, *, loras: Mapping[str, str]
    ) -> None:
        self.base = base
        self.config = config
        self.loras = dict(loras)
        self.resources = config.resources

    def setup(self) -> None:
        """Load the pipeline and every LoRA."""
        device = pick_device(self.resources.num_gpus)
        self.pipeline = load_pipeline(self.base, device=device)
        for model, folder in self.loras.items():
            data = read_bytes(join(folder, FILE_NAME))
            assert data is not None, f"no LoRA weights in {folder}"
            self.pipeline.load_lora_weights(load(data), adapter_name=model)

    def __call__(self, rows: list[Row]) -> None:
        """Fill the column."""
        for model, group in groupby(rows, key=lambda row: row["model"]):
            self._activate(model)
            batch = list(group)
            images = self.pipeline(
                prompt=[row["prompt"] for row in batch],
                height=self.config.size,
                width=self.config.size,
                num_inference_steps=self.config.steps,
                guidance_scale=self.config.guidance,
                generator=[torch.Generator().manual_seed(row["seed"]) for row in batch],
            ).images
            for row, image in zip(batch, images, strict=True):
                row["image"] = encode_png(image)

    def _activate(self, model: str) -> None:
        if not self.loras:
            return
        if model == BASE:
            self.pipeline.disable_lora()
        else:
            self.pipeline.enable_lora()
            self.pipeline.set_adapters(model)
