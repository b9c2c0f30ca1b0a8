"""Images of every model for every prompt and seed: one base in memory, LoRAs switched on it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import field_validator

from raypref.core.config import InputError, Location, Resources, Section, setting
from raypref.core.device import pick_device
from raypref.core.ledger import absolute, join, read_bytes
from raypref.core.rows import Row, seed_of
from raypref.core.schemes import scheme_of
from raypref.evaluate.prompts import read_prompts
from raypref.images.decode import of_unit
from raypref.models.backbone import BackboneConfig, load_pipeline
from raypref.models.families.registry import family
from raypref.models.lora_config import FILE_NAME
from raypref.sources.prompts import Prompt

BASE = "base"


class GenerateConfig(Section):
    """The evaluation's images; defaults are the paper's for SD-1.5."""

    # What the prompts are decides the images, not where they came from.
    prompts: Location = setting(
        "",
        "prompt file (.txt, .csv, .tsv, .json, .jsonl, .parquet) or a folder of them, or "
        "tiny:prompts for the embedded ones",
        affects_result=False,
    )
    limit: int = setting(0, "use only the first N prompts; 0 uses all", affects_result=False, ge=0)
    loras: dict[str, str] = setting(
        {}, "more LoRAs to compare: {name = 'folder'}, as of another run", affects_result=False
    )
    seeds: tuple[int, ...] = setting(
        (42, 123, 456, 789, 1000),
        "one image per prompt and seed; the released code's",
        min_length=1,
    )
    seed_mode: Literal["released", "per_prompt"] = setting(
        "released",
        "released: one noise per seed, shared by all prompts, as in the released code; per_prompt: "
        "one per prompt and seed",
    )
    steps: int = setting(50, "denoising steps", ge=1)
    guidance: float = setting(7.5, "classifier-free guidance scale", ge=0)
    size: int = setting(512, "side of the images in pixels", ge=8, multiple_of=8)
    samples: int = setting(
        4, "prompts sampled at each step where a training kept a LoRA", affects_result=False, ge=0
    )
    resources: Resources = Resources(batch=8)

    @field_validator("seeds")
    @classmethod
    def _differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("seeds must differ: each makes one image per prompt")
        return seeds

    @field_validator("loras")
    @classmethod
    def _names(cls, loras: dict[str, str]) -> dict[str, str]:
        for name in loras:
            if not re.fullmatch(r"[\w-]+", name) or name == BASE:
                raise ValueError(
                    f"a LoRA cannot be called '{name}': take letters, digits, - and _, and not "
                    f"'{BASE}'"
                )
        return loras

    def read(self) -> list[Prompt]:
        """The prompts.

        Raises:
            InputError: the file is missing or holds none.
        """
        if not self.prompts:
            raise InputError("evaluate.prompts is required: add evaluate.prompts=FILE")
        limit = self.limit or None
        if embedded := scheme_of(self.prompts):
            scheme, name = embedded
            prompts: list[Prompt] = scheme.prompts(name, limit=limit)
            return prompts
        return read_prompts(self.prompts, limit=limit)


def _adapter(model: str) -> str:
    """A name for peft, which keeps adapters beside attributes of a module: `half` is one."""
    return f"model_{model}"


class Adapter(NamedTuple):
    """A LoRA and what tells it from others."""

    folder: str
    fingerprint: str


def other_loras(loras: Mapping[str, str]) -> dict[str, Adapter]:
    """The LoRAs of `evaluate.loras`, identified by their bytes.

    Raises:
        InputError: a folder holds none.
    """
    found = {}
    for name, folder in loras.items():
        data = read_bytes(join(folder, FILE_NAME))
        if data is None:
            raise InputError(f"evaluate.loras.{name}: no {FILE_NAME} in '{folder}'")
        found[name] = Adapter(absolute(folder), hashlib.sha256(data).hexdigest()[:16])
    return found


def rows_to_generate(
    prompts: Sequence[str], config: GenerateConfig, models: Sequence[str]
) -> pa.Table:
    """One row per image: id, model, prompt_id, prompt, seed, noise. Models come one after another.

    `noise` seeds the image's generator. It is the seed itself, or drawn for the prompt; the same
    for all models either way, so that they can be compared image by image.
    """
    released = config.seed_mode == "released"
    return pa.Table.from_pylist(
        [
            {
                "id": f"{model}/{number:05d}/{seed}",
                "model": model,
                "prompt_id": number,
                "prompt": prompt,
                "seed": seed,
                "noise": seed if released else seed_of(seed, prompt),
            }
            for model in models
            for number, prompt in enumerate(prompts)
            for seed in config.seeds
        ]
    )


class Generate:
    """Transform: model, prompt and seed to an image.

    The generator is seeded anew for every image with the row's `noise`, as the released code does:
    one seed gives all models (and, unless `seed_mode` is per_prompt, all prompts) the same start.

    Args:
        base: the model family and weights.
        config: steps, guidance, size.
        loras: model name to the folder of its LoRA; `base` needs none.
    """

    name = "generate"
    reads: tuple[str, ...] = ("model", "prompt", "noise")
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
        from safetensors.torch import load

        device = pick_device(self.resources.num_gpus)
        self.pipeline = load_pipeline(self.base, device=device)
        for model, folder in self.loras.items():
            data = read_bytes(join(folder, FILE_NAME))
            assert data is not None, f"no LoRA weights in {folder}"
            self.pipeline.load_lora_weights(load(data), adapter_name=_adapter(model))

    def prepare(self, rows: list[Row]) -> list[Row]:
        """The rows themselves: the pipeline reads text."""
        return rows

    def compute(self, batch: list[Row]) -> list[np.ndarray]:
        """One image per row, 0..1: float32 [H, W, 3].

        Every model of the batch draws all of it, so that it always has one shape.
        """
        images: dict[str, np.ndarray] = {}
        for model in dict.fromkeys(row["model"] for row in batch):
            self._activate(model)
            images[model] = self._draw(batch)
        return [images[row["model"]][number] for number, row in enumerate(batch)]

    def finish(self, rows: list[Row], out: list[np.ndarray]) -> None:
        """Fill the column."""
        for row, pixels in zip(rows, out, strict=False):
            row["image"] = of_unit(pixels)

    def _draw(self, batch: list[Row]) -> np.ndarray:
        """Images of the active model, float32 [B, H, W, 3]."""
        import torch

        config, arguments = self.config, family(self.base.family).arguments
        images: np.ndarray = self.pipeline(
            **arguments([row["prompt"] for row in batch], config.guidance, config.size),
            num_inference_steps=config.steps,
            generator=[torch.Generator().manual_seed(row["noise"]) for row in batch],
            output_type="np",
        ).images
        return images

    def _activate(self, model: str) -> None:
        if not self.loras:
            return
        if model == BASE:
            self.pipeline.disable_lora()
        else:
            self.pipeline.enable_lora()
            self.pipeline.set_adapters(_adapter(model))
