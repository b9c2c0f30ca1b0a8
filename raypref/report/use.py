"""Python code that loads what a run trained: runs as it is printed, with diffusers."""

from __future__ import annotations

import json
from pathlib import Path

from raypref.core.messages import without_secrets
from raypref.core.schemes import scheme_of
from raypref.models.backbone import BackboneConfig
from raypref.models.families.registry import family
from raypref.models.hub import file_address, hub_id

# Arguments of pipelines beside prompt, images and size.
GUIDING = ("guidance_scale", "true_cfg_scale", "negative_prompt", "strength")


def snippet(
    base: BackboneConfig,
    *,
    lora: str,
    prompt: str,
    side: int,
    steps: int,
    guidance: float,
    whole: bool = False,
) -> str:
    """The code.

    Args:
        base: the model that was aligned.
        lora: the folder of the LoRA, or of what holds the network, local or URI.
        prompt: one to try.
        side: of the image, pixels.
        steps: of denoising.
        guidance: classifier-free guidance scale.
        whole: whether all weights were trained: the network takes the place of the base's.
    """
    adding = [f"pipe.load_lora_weights({_quoted(_place(lora))}){_note(lora)}"]
    if whole:
        base = base.model_copy(update={"network": _place(lora)})
        adding = [f"# {_place(lora)}:{_note(lora)[3:]}"] if "://" in lora else []
    own = family(base.family)
    inpaints = own.inpaints
    given = own.arguments([prompt], guidance, side)
    guiding = [f"{name}={_literal(given[name])}" for name in GUIDING if name in given]
    call = [
        f"prompt={_quoted(prompt)}",  # the first argument is another in some pipelines
        f"height={side}, width={side}",
        ", ".join([f"num_inference_steps={steps}", *guiding]),
        "generator=torch.manual_seed(0)",
    ]
    if inpaints:
        call.insert(1, 'image=Image.open("photo.png"), mask_image=Image.open("mask.png")')
    return "\n".join(
        [
            "import torch",
            f"from diffusers import {', '.join(_classes(base))}",
            *(["from PIL import Image"] if inpaints else []),
            *_base(base),
            *adding,
            "image = pipe(",
            *(f"    {argument}," for argument in call),
            ").images[0]",
            'image.save("image.png")',
        ]
    )


def _classes(base: BackboneConfig) -> list[str]:
    own = family(base.family)
    return [own.pipeline, *([own.network] if base.network else [])]


def _base(base: BackboneConfig) -> list[str]:
    """Lines that load the pipeline onto the device there is."""
    own = family(base.family)
    lines, model = [], _arguments(base.model)
    if scheme_of(base.model):
        folder = f"BackboneConfig(model={_quoted(base.model)}).folder()"
        lines = ["from raypref.models.backbone import BackboneConfig", "", f"base = {folder}"]
        model = "base"
    options = ["dtype=dtype"]
    if base.variant:
        options.append(f"variant={_quoted(base.variant)}")
    if base.network:
        network = f'{_arguments(base.network)}, subfolder="{own.component}", dtype=dtype'
        options.append(f"{own.component}={own.network}.from_pretrained({network})")
    load = "from_pretrained"
    if base.in_one_file:
        load = "from_single_file"
        options += [f"config={_quoted(base.config)}"] if base.config else []
    return [
        *(lines or [""]),
        'device = "cuda" if torch.cuda.is_available() else "cpu"',
        'dtype = torch.float16 if device == "cuda" else torch.float32',
        f"pipe = {own.pipeline}.{load}({model}, {', '.join(options)}).to(device)",
    ]


def _arguments(ref: str) -> str:
    """A folder, file or hub id as `from_pretrained` or `from_single_file` takes it."""
    named = hub_id(ref)
    if named is None or Path(ref).exists():
        return _quoted(ref)
    if named.file:
        return _quoted(file_address(named))
    revision = f", revision={_quoted(named.revision)}" if named.revision else ""
    return _quoted(named.repo) + revision


def _quoted(text: str) -> str:
    """A Python literal."""
    return json.dumps(text)


def _literal(value: object) -> str:
    """The same of an argument for a prompt: of a list its only one."""
    return json.dumps(value[0] if isinstance(value, list) else value)


def _place(lora: str) -> str:
    return lora.rpartition("/")[2] if "://" in lora else lora


def _note(lora: str) -> str:
    return f"  # copied from {without_secrets(lora)}" if "://" in lora else ""
