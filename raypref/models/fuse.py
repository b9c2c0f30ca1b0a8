"""A pipeline folder with what was trained: the LoRA merged into its weights, or the network."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pydantic import model_validator

from raypref.core.config import InputError, Section, setting
from raypref.core.device import DType, torch_dtype
from raypref.core.ledger import copy_in, join, read_bytes
from raypref.models import original_layout
from raypref.models.backbone import BackboneConfig, load_denoiser, load_pipeline
from raypref.models.families.registry import family
from raypref.models.lora_config import FILE_NAME
from raypref.models.network import WholeNetworks, holds_network


class ModelConfig(Section):
    """How the trained model is handed on."""

    fused: bool = setting(
        False, "also write the whole pipeline with the LoRA merged", affects_result=False
    )
    fused_dtype: DType = setting(
        "float32", "precision of the merged pipeline", affects_result=False
    )
    fused_file: bool = setting(
        False,
        "also write the merged pipeline as one file for ComfyUI and A1111 (SD-1.5, SDXL)",
        affects_result=False,
    )
    license: str = setting(
        "other", "licence of the LoRA, for its card: the base's", affects_result=False
    )

    @model_validator(mode="after")
    def _of_the_merged(self) -> ModelConfig:
        if self.fused_file and not self.fused:
            raise ValueError("fused_file is the merged pipeline in one file: set fused=true too")
        return self


def fuse(base: BackboneConfig, *, lora: str, dtype: DType, folder: str, file: str = "") -> None:
    """Write `base` with what was trained, in hub layout: `from_pretrained(folder)` loads it.

    The merge is done in float32 or better, then cast: weights that are in half precision already
    would swallow small updates. A base that is quantised for the training is merged with as it was
    published. Like the evaluation's pipeline it is without a safety checker.

    Args:
        base: the model that was aligned.
        lora: folder with its LoRA, or with the network where all weights were trained.
        dtype: precision of the weights that are written.
        folder: where to, local or URI; `model_index.json` comes last.
        file: name of a file in it with all weights, as ComfyUI and A1111 load them; empty: none.

    Raises:
        InputError: there are no weights.
    """
    import torch
    from safetensors.torch import load, save_file

    cpu, component, base = torch.device("cpu"), family(base.family).component, base.unquantised
    pipeline = load_pipeline(base.model_copy(update={"dtype": dtype}), device=cpu)
    if holds_network(lora, component=component):
        networks = WholeNetworks(pipeline.components[component], {"own": lora}, component=component)
        networks.use("own")
    else:
        data = read_bytes(join(lora, FILE_NAME))
        if data is None:
            raise InputError(f"no LoRA weights in {lora}")
        precise = "float64" if dtype == "float64" else "float32"
        denoiser = load_denoiser(base.model_copy(update={"dtype": precise}), device=cpu)
        pipeline.register_modules(**{component: denoiser.module})
        pipeline.load_lora_weights(load(data))
        pipeline.fuse_lora(components=[component])
        pipeline.unload_lora_weights()
        pipeline.to(dtype=torch_dtype(dtype))
    with tempfile.TemporaryDirectory() as scratch:
        pipeline.save_pretrained(scratch)
        if file:
            save_file(original_layout.checkpoint(pipeline), Path(scratch) / file)
        _move(Path(scratch), folder)


def _move(scratch: Path, folder: str) -> None:
    """Copy a folder, file by file, each atomically.

    `model_index.json` comes last, so a partial copy never loads as a pipeline.
    """
    files = sorted(path for path in scratch.rglob("*") if path.is_file())
    for path in sorted(files, key=lambda path: path.name == "model_index.json"):
        copy_in(path, join(folder, str(path.relative_to(scratch))))
