"""A checkpoint in one `.safetensors` file, as ComfyUI and A1111 read it, to a diffusers folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raypref.core.config import InputError
from raypref.core.disk_cache import made_once
from raypref.core.messages import first_line
from raypref.core.progress import waiting
from raypref.models.families.registry import family
from raypref.models.hub import hub_id, model_folder, weight_file
from raypref.models.original_layout import SD15_TEXT, SDXL_TEXT, UNET, VAE

KEY, CONFIG_KEY = "base.model", "base.config"
# The published repository of a family: its configuration and tokenizers are not in a file.
PUBLISHED = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd15_inpaint": "stable-diffusion-v1-5/stable-diffusion-inpainting",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sdxl_inpaint": "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
}
_PARTS = {UNET: "UNet", VAE: "autoencoder"}
_TEXT = {
    **dict.fromkeys(("sd15", "sd15_inpaint"), SD15_TEXT),
    **dict.fromkeys(("sdxl", "sdxl_inpaint"), SDXL_TEXT),
}
_FLOATS = ("F64", "F32", "F16", "BF16")
_INTEGERS = ("I64", "I32")  # positions of tokens


def converted(ref: str, *, name: str, config: str) -> str:
    """The folder in diffusers layout, in the disk cache: made once per file and machine.

    Args:
        ref: a local file, or `OWNER/REPO/FILE.safetensors` on the hub.
        name: of the family.
        config: a hub id or folder in diffusers layout with configuration and tokenizers; empty:
            the family's published repository.

    Raises:
        InputError: there is no such file, or it is no whole checkpoint of the family in 16 or 32
            bits.
    """
    if name not in PUBLISHED:
        raise InputError(
            f"{KEY}: one file is taken for {', '.join(PUBLISHED)}; {name} needs a hub id or a "
            "folder in diffusers layout"
        )
    path = weight_file(ref, key=KEY, origin="where it is published")
    dtype = _checked(path, ref, name=name)
    source = model_folder(config or PUBLISHED[name], key=CONFIG_KEY, probe="model_index.json")
    seen = path.stat()
    facts = f"{path.absolute()} {seen.st_size} {seen.st_mtime_ns} {name} {source}"
    entry = f"checkpoints/{path.stem}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
    with waiting(f"bringing {path.name} into diffusers layout, once"):
        return str(made_once(entry, _maker(path, ref, name=name, source=source, dtype=dtype)))


def _checked(path: Path, ref: str, *, name: str) -> str:
    """Torch's name for the precision of the weights, from the file's header alone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            types = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{KEY}: '{ref}' is not a safetensors file ({error})") from None
    if any(key.startswith("lora_") or ".lora_" in key for key in types):
        raise InputError(
            f"{KEY}: '{ref}' is a LoRA; it goes into train.NAME.start or evaluate.loras, and "
            "the checkpoint it was trained on here"
        )
    needed = {**_PARTS, _TEXT[name]: "text encoder"}
    absent = [p for start, p in needed.items() if not any(k.startswith(start) for k in types)]
    if absent:
        others = [n for n, start in _TEXT.items() if any(k.startswith(start) for k in types)]
        fix = f"; set base.family={others[0]}" if others and name not in others else ""
        raise InputError(f"{KEY}: '{ref}' has no {', '.join(absent)} of {name}{fix}")
    if odd := sorted({*types.values()} - {*_FLOATS, *_INTEGERS}):
        raise InputError(
            f"{KEY}: '{ref}' has weights of type {', '.join(odd)}, which are quantised; take the "
            "file with 16 or 32 bits"
        )
    floats = {kind for kind in types.values() if kind in _FLOATS}
    return {("F16",): "float16", ("BF16",): "bfloat16"}.get(tuple(floats), "float32")


def _maker(path: Path, ref: str, *, name: str, source: str, dtype: str) -> Callable[[Path], None]:
    """What writes the folder."""

    def write(folder: Path) -> None:
        import diffusers
        import torch

        own = family(name)
        named = None if Path(source).is_dir() else hub_id(source)
        options: dict[str, Any] = {"config": source, **own.options}
        if named is not None:
            options |= {"config": named.repo, "revision": named.revision}
        kind = getattr(diffusers, own.pipeline)
        try:
            pipeline = kind.from_single_file(str(path), dtype=getattr(torch, dtype), **options)
        except Exception as error:  # of many kinds, by what does not fit
            raise InputError(
                f"{KEY}: '{ref}' is no checkpoint of {name} that fits {CONFIG_KEY}="
                f"{options['config']} ({first_line(error)})"
            ) from None
        pipeline.save_pretrained(folder)

    return write
