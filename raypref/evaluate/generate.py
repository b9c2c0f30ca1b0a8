"""Images of every model for every prompt and seed: one base on the device, LoRAs switched on it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import BeforeValidator, ValidationInfo, field_validator

from raypref.core.config import InputError, Location, Resources, Section, setting
from raypref.core.device import OtherDType, pick_device
from raypref.core.ledger import absolute
from raypref.core.rows import Row, seed_of
from raypref.images.decode import Rounding, of_unit
from raypref.models.backbone import BackboneConfig, load_denoiser, load_pipeline
from raypref.models.families.registry import batch_alone, family
from raypref.models.fused import Fused
from raypref.models.lora_formats import MAGNITUDE, content, pipeline_weights
from raypref.models.network import WholeNetworks, holds_network
from raypref.models.soups import Term, is_soup, soup_text, terms_of

BASE = "base"


def _files(given: object, info: ValidationInfo) -> object:
    """One file as it is; several, a list or `a.txt,b.csv`, as a tuple."""
    if isinstance(given, str) and "," in given and not Path(given).expanduser().exists():
        given = given.split(",")
    if not isinstance(given, list | tuple) or not all(isinstance(file, str) for file in given):
        return given
    files = tuple(file.strip() for file in given if file.strip())
    if twice := sorted({file for file in files if files.count(file) > 1}):
        raise InputError(f"evaluate.{info.field_name}: {twice[0]} is named twice")
    return files[0] if len(files) == 1 else files or ""


Files = Annotated[Location | tuple[Location, ...], BeforeValidator(_files)]


class GenerateConfig(Section):
    """The evaluation's images; defaults are the paper's for SD-1.5."""

    # What the prompts are decides the images, not where they came from.
    prompts: Files = setting(
        "",
        "prompt file (.txt, .csv, .tsv, .json, .jsonl, .parquet) or a folder of them, or "
        "tiny:prompts for the embedded ones; several, as a.txt,b.csv, make a table each; empty: "
        "captions of photographs that are in no pair",
        affects_result=False,
    )
    # Part of the fingerprint of a set of holes, as the holes themselves; not of prompts.
    holes: Files = setting(
        "",
        "holes to paint, for a base that inpaints, in place of evaluate.prompts: a benchmark or "
        "folder of photographs with masks, or tiny:holes; several make a table each",
        affects_result=False,
    )
    blend: bool = setting(
        True,
        "judge a painted hole within its photograph, put back with a soft rim; false judges the "
        "model's own output",
        affects_result=False,
    )
    limit: int = setting(
        0,
        "use only the first N prompts or holes of a set; 0 uses all, and 100 of the captions",
        affects_result=False,
        ge=0,
    )
    loras: dict[str, str] = setting(
        {},
        "more LoRAs to compare: {name = 'folder, file or hub id'}, as of another run; weighted, as "
        "'0.5 * A', and sums, as '0.5 * A + 0.5 * B', where names of trainings may stand too",
        affects_result=False,
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
    fuse: bool = setting(
        False,
        "merge each model's LoRA into the weights before it draws: quicker on a GPU; images differ "
        "by rounding",
        later=True,
    )
    dtype: OtherDType = setting(
        "",
        "precision of the pipeline that draws; empty: base.dtype; the released code's is float16",
        later=True,
    )
    vae_dtype: OtherDType = setting(
        "",
        "precision of its autoencoder, which decodes; empty: evaluate.dtype; the released code's "
        "is float32 for SD-3.5-Medium",
        later=True,
    )
    noise_device: Literal["cpu", "model"] = setting(
        "cpu",
        "where noise is drawn: on the CPU, which is the same noise everywhere; or where the model "
        "is, as in the released code: a GPU draws other noise for the same seed",
        later=True,
    )
    rounding: Rounding = setting(
        "nearest",
        "decoded pixels to 8 bits: to the nearest level; or truncate, as the released code does, "
        "which darkens by half a level",
        later=True,
    )
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

    @property
    def files(self) -> tuple[str, ...]:
        """The prompt files; none where the captions are taken."""
        return _named(self.prompts)

    @property
    def hole_files(self) -> tuple[str, ...]:
        """The sets of holes that are painted in place of all prompts; none: nothing is."""
        return _named(self.holes)


def _named(given: str | tuple[str, ...]) -> tuple[str, ...]:
    return given if isinstance(given, tuple) else (given,) if given else ()


def _adapter(model: str) -> str:
    """A name for peft, which keeps adapters beside attributes of a module: `half` is one."""
    return f"model_{model}"


class Adapter(NamedTuple):
    """A LoRA, or a network trained whole, and what tells it from others."""

    folder: str  # or a file, or an id of the hub
    fingerprint: str
    whole: bool = False  # a network of a training of all weights


def other_loras(
    loras: Mapping[str, str],
    trained: Mapping[str, Adapter] = MappingProxyType({}),
    *,
    key: str = "evaluate.loras.",
) -> dict[str, Adapter]:
    """The LoRAs of `evaluate.loras`, identified by their bytes.

    Args:
        loras: by name: where each lies, or a soup of such places (`models/soups.py`).
        trained: those of the run, which a soup may name.
        key: what stands before the names in errors.

    Raises:
        InputError: there is none.
    """
    return {name: _found(ref, trained, key=f"{key}{name}") for name, ref in loras.items()}


def _found(ref: str, trained: Mapping[str, Adapter], *, key: str) -> Adapter:
    return _soup(ref, trained, key=key) if is_soup(ref) else _other(ref, key)


def _other(ref: str, key: str) -> Adapter:
    data = content(ref, key=key)
    local = "://" in ref or Path(ref).expanduser().exists()
    where = absolute(str(ref)) if local else ref
    return Adapter(where, hashlib.sha256(data).hexdigest()[:16])


def _soup(text: str, trained: Mapping[str, Adapter], *, key: str) -> Adapter:
    """A soup whose parts are found: it is read as one LoRA."""
    terms = terms_of(text, key=key)
    found = [trained[t.ref] if t.ref in trained else _other(t.ref, key) for t in terms]
    pairs = [*zip(terms, found, strict=True)]
    if whole := [term.ref for term, own in pairs if own.whole]:
        raise InputError(
            f"{key}: {whole[0]} trained all weights (lora.rank=0); weights and soups are of LoRAs"
        )
    where = soup_text([Term(term.weight, own.folder) for term, own in pairs])
    said = " + ".join(f"{term.weight!r} * {own.fingerprint}" for term, own in pairs)
    return Adapter(where, hashlib.sha256(said.encode()).hexdigest()[:16])


def rows_to_generate(
    prompts: Sequence[str] | Mapping[int, str], config: GenerateConfig, models: Sequence[str]
) -> pa.Table:
    """One row per image: id, model, prompt_id, prompt, seed, noise. Models come one after another.

    `noise` seeds the image's generator. It is the seed itself, or drawn for the prompt; the same
    for all models either way, so that they can be compared image by image.

    Args:
        prompts: all of a set, or some by their numbers in it.
        config: seeds.
        models: names.
    """
    released = config.seed_mode == "released"
    numbered = dict(prompts if isinstance(prompts, Mapping) else enumerate(prompts))
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
            for number, prompt in numbered.items()
            for seed in config.seeds
        ]
    )


class Call(NamedTuple):
    """One call of the pipeline: rows of whatever models."""

    models: list[str]
    noises: list[int]
    arguments: dict[str, Any]


class Generate:
    """Transform: model, prompt and seed to an image.

    The generator is seeded anew for every image with the row's `noise`, as the released code does:
    one seed gives all models (and, unless `seed_mode` is per_prompt, all prompts) the same start.

    Args:
        base: the model family and weights.
        config: steps, guidance, size, precision.
        loras: model name to the folder of its LoRA, or of its network where all weights were
            trained; `base` needs none.
    """

    name = "generate"
    reads: tuple[str, ...] = ("model", "prompt", "noise")
    writes = pa.schema([("image", pa.binary())])

    def __init__(
        self, base: BackboneConfig, config: GenerateConfig, *, loras: Mapping[str, str]
    ) -> None:
        self.base = base.in_precision(config.dtype)
        self.config = config
        self.loras = dict(loras)
        self.resources = batch_alone(base.family, config.resources)

    def setup(self) -> None:
        """Load the pipeline, every network that was trained whole, and every LoRA."""
        import torch

        device = pick_device(self.resources.num_gpus)
        self.pipeline = load_pipeline(self.base, device=device, vae_dtype=self.config.vae_dtype)
        self.noise_device = device if self.config.noise_device == "model" else torch.device("cpu")
        component = family(self.base.family).component
        whole = {n: ref for n, ref in self.loras.items() if holds_network(ref, component=component)}
        self.networks: WholeNetworks | None = None
        if whole:
            module = self.pipeline.components[component]
            self.networks = WholeNetworks(module, whole, component=component)
        self.adapters = {name: ref for name, ref in self.loras.items() if name not in whole}
        for model, ref in self.adapters.items():
            weights = pipeline_weights(ref, key=f"the LoRA of {model}", component=component)
            if self.base.quantise and any(MAGNITUDE in name for name in weights):
                raise InputError(
                    f"base.quantise={self.base.quantise}: the LoRA of {model} is a DoRA, which "
                    "reads the base's weights; leave base.quantise out"
                )
            self.pipeline.load_lora_weights(weights, adapter_name=_adapter(model))
        self.model = BASE  # that draws
        self.fused: Fused | None = None
        if self.config.fuse and self.adapters:
            precise = None
            if self.base.dtype in ("bfloat16", "float16"):
                exact = self.base.in_precision("float32")
                precise = load_denoiser(exact, device=torch.device("cpu")).module
            self.fused = Fused(self.pipeline, component=component, precise=precise)

    def prepare(self, rows: list[Row]) -> Call:
        """What the pipeline is called with."""
        models, noises = [row["model"] for row in rows], [row["noise"] for row in rows]
        return Call(models, noises, self.arguments(rows))

    def arguments(self, rows: list[Row]) -> dict[str, Any]:
        """What to draw."""
        prompts, config = [row["prompt"] for row in rows], self.config
        return family(self.base.family).arguments(prompts, config.guidance, config.size)

    def compute(self, batch: Call) -> list[np.ndarray]:
        """One image per row, 0..1: float32 [H, W, 3].

        Every model of the batch draws all of it, so that it always has one shape.
        """
        images: dict[str, np.ndarray] = {}
        models = dict.fromkeys(batch.models)
        # Rows come model by model. The one before goes on, so that none is merged twice.
        for model in sorted(models, key=lambda model: model != self.model):
            self.activate(model)
            images[model] = self._draw(batch)
        return [images[model][number] for number, model in enumerate(batch.models)]

    def finish(self, rows: list[Row], out: list[np.ndarray]) -> None:
        """Fill the column."""
        for row, pixels in zip(rows, out, strict=False):
            row["image"] = of_unit(pixels, rounding=self.config.rounding)

    def _draw(self, batch: Call) -> np.ndarray:
        """Images of the active model, float32 [B, H, W, 3]."""
        import torch

        # A copy: Z-Image's pipeline puts its chat template into the list that it is given.
        prompts = [*batch.arguments["prompt"]]
        images: np.ndarray = self.pipeline(
            **batch.arguments | {"prompt": prompts},
            num_inference_steps=self.config.steps,
            generator=[
                torch.Generator(self.noise_device).manual_seed(noise) for noise in batch.noises
            ],
            output_type="np",
        ).images
        return images

    def activate(self, model: str) -> None:
        """Draw with a model's LoRA or network from now on, or with the base."""
        self.model = model
        own = model in self.adapters
        if self.networks is not None:
            if self.fused is not None:
                self.fused.use("")  # what it takes out is the base's
            self.networks.use(model if model in self.networks.folders else "")
        if not self.adapters:
            return
        if self.fused is not None:
            self.fused.use(_adapter(model) if own else "")
        elif not own:
            self.pipeline.disable_lora()
        else:
            self.pipeline.enable_lora()
            self.pipeline.set_adapters(_adapter(model))
