"""What several families load alike: the text encoders of a pipeline, without the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raypref.models.hub import from_pretrained

if TYPE_CHECKING:
    import torch


def text_encoders(
    kind: str,
    model: str,
    *,
    network: str = "transformer",
    variant: str,
    device: torch.device,
    dtype: torch.dtype,
    **options: Any,
) -> Any:
    """A pipeline whose network and autoencoder are left out: it encodes captions alone.

    Args:
        kind: the pipeline's class in diffusers.
        model: of `hub.model_folder`, in diffusers layout.
        network: the component that is trained, `unet` or `transformer`.
        variant: file variant such as "fp16"; empty for the plain files.
        device: where it runs.
        dtype: of weights and results.
        options: of the pipeline.
    """
    import diffusers

    left_out = {network: None, "vae": None}
    pipeline = from_pretrained(
        getattr(diffusers, kind), model, variant=variant or None, dtype=dtype, **left_out, **options
    )
    return pipeline.to(device)
