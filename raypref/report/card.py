"""The model card beside the final weights, as the hub reads it: README.md with a YAML header."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from huggingface_hub import ModelCardData
from PIL import Image

from raypref.core.messages import public_name
from raypref.core.schemes import is_embedded
from raypref.evaluate.generate import GenerateConfig
from raypref.evaluate.labels import plain_label
from raypref.models.backbone import BackboneConfig
from raypref.models.families.registry import family
from raypref.models.hub import LOCAL, file_address, hub_id
from raypref.models.lora_config import FILE_NAME
from raypref.pairs.config import TWINS
from raypref.pairs.kinds import KINDS
from raypref.pairs.maker import Kind

PROMPT = "a photo of a red ball"
EMBEDDED = (
    "The base is a toy model of 64x64 pictures that comes with `raypref`. It knows its rendered "
    "world only: the scores below mean nothing for photographs of your own."
)
_CITATION = ("", "## Citation", "", "```bibtex")


def model_card(
    *,
    name: str,
    base: BackboneConfig,
    draw: GenerateConfig,
    shared: str,
    licence: str,
    photographs: str,
    counts: Mapping[str, int],
    starts_from: str,
    trainings: Mapping[str, Mapping[str, Any]],
    lora: Mapping[str, Any],
    table: str,
    fused: bool,
    commits: Mapping[str, str],
    banner: str = "",
    kind: Kind = KINDS[TWINS],
) -> str:
    """The card's text.

    Args:
        name: the run's name.
        base: the model that was aligned.
        draw: how the example draws its image: steps, guidance, side, first seed.
        shared: name of the LoRA's second file, for ComfyUI and others.
        licence: of the LoRA.
        photographs: the licence of the photographs, or of the labelled images.
        counts: what became of every input, by reason; "pair" for the pairs.
        starts_from: LoRA weights that training went on from; empty for the base.
        trainings: those that made this LoRA, in order, with their settings.
        lora: settings of the adapter; with rank 0 all weights were trained.
        table: the evaluation's table as Markdown; empty where nothing was evaluated.
        fused: whether the merged pipeline is in the run's folder too.
        commits: of models of the hub, by their references.
        banner: what a reader must know before any number; empty for nothing.
        kind: of the pairs.
    """
    whole, component = not lora["rank"], family(base.family).component
    model, replaced, began_from = (
        _origin(ref, commits) for ref in (base.model, base.network, starts_from)
    )
    header = ModelCardData(
        # A local folder is no repository: the hub would refuse its name, or link to a stranger's.
        base_model=(replaced if replaced.name else model).repo or None,
        library_name="diffusers",
        license=licence,
        pipeline_tag="text-to-image",
        tags=[
            *([] if whole else ["lora"]),
            *("text-to-image", "diffusers", "preference-alignment", *kind.tags),
        ],
    )
    embedded = EMBEDDED.replace("photographs", kind.terms.images)
    on = f"{replaced.text} in {model.text}" if replaced.name else model.text
    on += f" with its linear layers in {base.quantise}" if base.quantise else ""
    began = f", going on from the LoRA {began_from.text}" if starts_from else ""
    local = [each.name for each in (model, replaced) if each.name and not each.repo]
    path = [f"`{name}` was a local folder: put its path there." for name in local]
    merged = ["The same merged into the weights is in `fused/` of the run."] if fused else []
    if whole and fused:
        merged = ["The whole pipeline with it is in `fused/` of the run."]
    elsewhere = (
        f"`{shared}` is the same LoRA for ComfyUI and programs like it: put it where they look "
        "for LoRAs."
    )
    if whole:
        elsewhere = f"`{component}/` holds the network alone; the other parts are the base's."
    if base.quantise:
        merged.append(
            f"The code loads the base as published; the evaluation drew with it in {base.quantise}."
        )
    return "\n".join(
        [
            "---",
            header.to_yaml(),
            "---",
            "",
            f"# {name}: a {component if whole else 'LoRA'} aligned from {kind.terms.data}",
            "",
            *([f"> **{banner}**", ""] if banner else []),
            f"Trained on {on}{began}, by {', then '.join(trainings)}, with `raypref`.",
            "",
            *([embedded, ""] if is_embedded(base.model) else []),
            "## Use",
            "",
            "```python",
            *_loading(base, draw, model, replaced, whole=whole),
            *_drawing(base, draw),
            "```",
            "",
            *([] if is_embedded(base.model) else path),
            elsewhere,
            *merged,
            "",
            "## Data",
            "",
            *_funnel(counts, kind),
            "",
            f"Licence of the {kind.terms.images}: {photographs}.",
            "",
            "## Training",
            "",
            *_rewards(trainings),
            *_settings(trainings, lora),
            "",
            "## Evaluation",
            "",
            table.strip() or "Not run.",
            "",
            "## Licence",
            "",
            f"`{licence}`. The base model's licence holds for what is made from it.",
            *([*_CITATION, kind.citation, "```"] if kind.citation else []),
            "",
        ]
    )


class Origin(NamedTuple):
    """Where weights come from, as others may know it."""

    name: str  # hub id without its revision, or the last name of a local path; empty for none
    revision: str  # commit, or what the reference names; empty for neither
    repo: str = ""  # the hub's repository; empty for a local path

    @property
    def text(self) -> str:
        """Name and commit for people."""
        return f"`{self.name}` at `{self.revision}`" if self.revision else f"`{self.name}`"

    @property
    def arguments(self) -> str:
        """Of `from_pretrained`."""
        return f'"{self.name}"' + (f', revision="{self.revision}"' if self.revision else "")


def _origin(ref: str, commits: Mapping[str, str]) -> Origin:
    named, known = hub_id(ref), commits.get(ref, "")
    if named is None or "://" in ref or known == LOCAL:
        return Origin(public_name(ref), "")
    return Origin(f"{named.repo}/{named.file}".rstrip("/"), known or named.revision, named.repo)


def _loading(
    base: BackboneConfig, draw: GenerateConfig, model: Origin, replaced: Origin, *, whole: bool
) -> list[str]:
    """The lines of the example that make the pipeline."""
    own = family(base.family)
    kind, component = own.pipeline, own.component
    names, more, where, load = [kind], "", model.arguments, "from_pretrained"
    dtype = (
        f"dtype=torch.{draw.dtype or base.dtype}"  # parts of a pipeline may be stored in several
    )
    embedded = is_embedded(base.model)
    if embedded:  # its folder is where the package is installed
        where = "folder"
    if base.variant:
        more = f', variant="{base.variant}"'
    if base.in_one_file:
        load = "from_single_file"
        named = hub_id(model.name) if model.repo else None
        if named is not None:
            where = f'"{file_address(named._replace(revision=model.revision))}"'
        more += f', config="{public_name(base.config)}"' if base.config else ""
    if whole:
        replaced = Origin(".", "")  # instead of what it began as
    if replaced.name:
        names.append(own.network)
        of = f'{replaced.arguments}, subfolder="{component}", {dtype}'
        more += f", {component}={own.network}.from_pretrained({of})"
    return [
        "import torch",
        f"from diffusers import {', '.join(sorted(names))}",
        *(["from PIL import Image"] if own.inpaints else []),
        *(["from raypref.models.backbone import BackboneConfig"] if embedded else []),
        "",
        *([f'folder = BackboneConfig(model="{base.model}").folder()'] if embedded else []),
        *(["# From this folder; or the id of the repository that holds it."] if whole else []),
        f"pipe = {kind}.{load}({where}, {dtype}{more})",
        *([] if whole else _adding_the_lora()),
        'pipe.to("cuda" if torch.cuda.is_available() else "cpu")',
    ]


def _adding_the_lora() -> list[str]:
    return [
        "# From this folder; or the id of the repository that holds it.",
        f'pipe.load_lora_weights(".", weight_name="{FILE_NAME}")',
    ]


def _drawing(base: BackboneConfig, draw: GenerateConfig) -> list[str]:
    """The lines of the example that draw an image, as the evaluation does."""
    given = family(base.family).arguments([PROMPT], draw.guidance, draw.size)
    device = "pipe.device" if draw.noise_device == "model" else ""
    arguments = {name: _literal(value) for name, value in given.items()} | {
        "num_inference_steps": str(draw.steps),
        "generator": f"torch.Generator({device}).manual_seed({draw.seeds[0]})",
    }
    return [
        "image = pipe(",
        *(f"    {name}={value}," for name, value in arguments.items()),
        ").images[0]",
        'image.save("image.png")',
    ]


def _literal(value: Any) -> str:
    """An argument of a pipeline's call as Python's text; of a list its first."""
    if isinstance(value, list):
        return _literal(value[0])
    if isinstance(value, Image.Image):  # of one colour
        return f'Image.new("{value.mode}", {value.size}, {value.getpixel((0, 0))})'
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _funnel(counts: Mapping[str, int], kind: Kind) -> list[str]:
    """How many inputs were left after each filter."""
    known = {reason for _, reasons in kind.filters for reason in reasons}
    left = sum(counts.values())
    unusable = sum(n for reason, n in counts.items() if reason not in known and reason != "pair")
    rows = [(f"{kind.terms.input}s found", left), ("usable", left := left - unusable)]
    for name, reasons in kind.filters:
        dropped = sum(counts.get(reason, 0) for reason in reasons)
        left -= dropped
        if dropped:
            rows.append((name, left))
    rows.append((f"{kind.terms.made_whole}s", counts.get("pair", 0)))
    return ["| step | left |", "|---|---:|", *(f"| {name} | {n} |" for name, n in rows)]


def _rewards(trainings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What trainings on rewards are trained on, and what is only measured."""
    lines = []
    for name, settings in trainings.items():
        if weights := settings.get("rewards"):
            named = ", ".join(f"{plain_label(n)} (weight {w:g})" for n, w in weights.items())
            lines.append(f"{name} learned from rewards of images that it made itself: {named}.")
    return [*lines, ""] if lines else []


def _settings(trainings: Mapping[str, Mapping[str, Any]], lora: Mapping[str, Any]) -> list[str]:
    """One row per setting, one column per training."""
    keys = dict.fromkeys(key for settings in trainings.values() for key in settings)
    rows = [
        f"| {key} | {' | '.join(_text(settings.get(key, '')) for settings in trainings.values())} |"
        for key in keys
    ]
    shape = ", ".join(f"{key} {_text(value)}" for key, value in lora.items())
    what = f"LoRA: {shape}." if lora["rank"] else "All weights of the network were trained."
    return [
        f"| setting | {' | '.join(trainings)} |",
        f"|---|{'---|' * len(trainings)}",
        *rows,
        "",
        f"{what} AdamW (0.9, 0.999), eps 1e-8; gradients averaged over the batch.",
    ]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={_text(own)}" for name, own in value.items())
    if isinstance(value, str) and "/" in value:
        return public_name(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(str, value))
    return str(value)
