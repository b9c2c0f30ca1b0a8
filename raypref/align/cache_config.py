"""Settings of the encoding of pairs to latents."""

from __future__ import annotations

from raypref.core.config import Resources, Section, setting
from raypref.core.device import OtherDType
from raypref.models.families.registry import READ_BY_T5


class CacheConfig(Section):
    """Encoding of the pairs."""

    vae_dtype: OtherDType = setting(
        "",
        "precision of the autoencoder that encodes images; empty: base.dtype; the released code's "
        "is float32 for SD-3.5-Medium",
        later=True,
    )
    t5_tokens: int = setting(
        0,
        "tokens of a caption that T5 reads in trainings; 0: as the base's pipeline reads (256 of "
        "SD-3.5-Medium, 512 of FLUX.1 Fill); the released code's are 128 of SD-3.5-Medium; nothing "
        "for a base without T5",
        later=True,
        ge=0,
        le=512,
    )
    resources: Resources = Resources(batch=4)

    def of_family(self, name: str) -> CacheConfig:
        """Without what does nothing for a model family."""
        return self if name in READ_BY_T5 else self.model_copy(update={"t5_tokens": 0})
