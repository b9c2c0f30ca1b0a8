"""The model card beside the final LoRA, as the hub reads it: README.md with a YAML header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import ModelCardData

from raypref.models.backbone import BackboneConfig
from raypref.models.families.registry import family
from raypref.models.hub import LOCAL, hub_id
from raypref.report.collect import FILTERS

METHOD = """\
@article{realalign2026,
  title   = {When Preference Labels Fall Short: Aligning Diffusion Models from Real Data},
  author  = {Chen, Weiyan and Deng, Weijian and Xiao, Yao and Tu, Weijie and Dong, Ziyi and
             Radwan, Ibrahim and Lin, Liang and Wei, Pengxu},
  journal = {arXiv preprint arXiv:2605.19839},
  year    = {2026}
}"""


def model_card(
    *,
    name: str,
    base: BackboneConfig,
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
) -> str:
    """The card's text.

    Args:
        name: the run's name.
        base: the model that was aligned.
        licence: of the LoRA.
        photographs: the photographs' licence.
        counts: what became of every input of the curation, by reason; "pair" for the pairs.
        starts_from: LoRA weights that training went on from; empty for the base.
        trainings: those that made this LoRA, in order, with their settings.
        lora: settings of the adapter.
        table: the evaluation's table as Markdown; empty where nothing was evaluated.
        fused: whether the merged pipeline is in the run's folder too.
        commits: of models of the hub, by their references.
        banner: what a reader must know before any number; empty for nothing.
    """
    model, replaced, began_from = (
        _origin(ref, commits) for ref in (base.model, base.network, starts_from)
    )
    header = ModelCardData(
        base_model=replaced.name or model.name,
        library_name="diffusers",
        license=licence,
        pipeline_tag="text-to-image",
        tags=["lora", "text-to-image", "diffusers", "preference-alignment", "real-images"],
    )
    on = f"{replaced.text} in {model.text}" if replaced.name else model.text
    began = f", going on from the LoRA {began_from.text}" if starts_from else ""
    merged = ["", "The same merged into the weights is in `fused/` of the run."] if fused else []
    return "\n".join(
        [
            "---",
            header.to_yaml(),
            "---",
            "",
            f"# {name}: a LoRA aligned from real photographs",
            "",
            *([f"> **{banner}**", ""] if banner else []),
            f"Trained on {on}{began}, by {', then '.join(trainings)}, with `raypref`.",
            "",
            "## Use",
            "",
            "```python",
            *_loading(base, model, replaced),
            "```",
            *merged,
            "",
            "## Data",
            "",
            *_funnel(counts),
            "",
            f"Licence of the photographs: {photographs}.",
            "",
            "## Training",
            "",
            *_settings(trainings, lora),
            "",
            "## Evaluation",
            "",
            table.strip() or "Not run.",
            "",
            "## Licence",
            "",
            f"`{licence}`. The base model's licence holds for what is made from it.",
            "",
            "## Citation",
            "",
            "```bibtex",
            METHOD,
            "```",
            "",
        ]
    )


class Origin(NamedTuple):
    """Where weights come from, as others may know it."""

    name: str  # hub id without its revision, or the last name of a local path; empty for none
    revision: str  # commit, or what the reference names; empty for neither

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
        return Origin(_public(ref), "")
    return Origin(f"{named.repo}/{named.file}".rstrip("/"), known or named.revision)


def _public(ref: str) -> str:
    """A hub id as it is; of a local path the last name, which is all that is anyone's business."""
    return Path(ref).name if ref.startswith(("/", "~", ".")) or "://" in ref else ref


def _loading(base: BackboneConfig, model: Origin, replaced: Origin) -> list[str]:
    own = family(base.family)
    kind, component = own.pipeline, own.component
    names, more = [kind], ""
    if replaced.name:
        names.append(own.network)
        where = f'{replaced.arguments}, subfolder="{component}"'
        more = f", {component}={own.network}.from_pretrained({where})"
    return [
        f"from diffusers import {', '.join(names)}",
        "",
        f"pipe = {kind}.from_pretrained({model.arguments}{more})",
        'pipe.load_lora_weights("path/to/this/folder")',
        'image = pipe("a photo of a red ball").images[0]',
    ]


def _funnel(counts: Mapping[str, int]) -> list[str]:
    """How many photographs were left after each filter."""
    known = {reason for _, reasons in FILTERS for reason in reasons}
    left = sum(counts.values())
    unusable = sum(n for reason, n in counts.items() if reason not in known and reason != "pair")
    rows = [("photographs found", left), ("usable", left := left - unusable)]
    for name, reasons in FILTERS:
        dropped = sum(counts.get(reason, 0) for reason in reasons)
        left -= dropped
        if dropped:
            rows.append((name, left))
    rows.append(("preference pairs", counts.get("pair", 0)))
    return ["| step | left |", "|---|---:|", *(f"| {name} | {n} |" for name, n in rows)]


def _settings(trainings: Mapping[str, Mapping[str, Any]], lora: Mapping[str, Any]) -> list[str]:
    """One row per setting, one column per training."""
    keys = dict.fromkeys(key for settings in trainings.values() for key in settings)
    rows = [
        f"| {key} | {' | '.join(_text(settings.get(key, '')) for settings in trainings.values())} |"
        for key in keys
    ]
    shape = ", ".join(f"{key} {_text(value)}" for key, value in lora.items())
    return [
        f"| setting | {' | '.join(trainings)} |",
        f"|---|{'---|' * len(trainings)}",
        *rows,
        "",
        f"LoRA: {shape}. AdamW (0.9, 0.999), eps 1e-8; gradients averaged over the batch.",
    ]


def _text(value: Any) -> str:
    if isinstance(value, str) and "/" in value:
        return _public(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(str, value))
    return str(value)
