"""What training reads of prompts alone: their embeddings, and the shape of latents without any."""

from __future__ import annotations

from raypref.align.cache_config import CacheConfig
from raypref.align.latents import READS, UNCONDITIONAL, Encode, Encoded, Images
from raypref.core.rows import Row
from raypref.images.decode import ImageConfig
from raypref.models.backbone import BackboneConfig
from raypref.models.families.conditioning import to_row


def encoding(
    base: BackboneConfig, config: CacheConfig, crops: ImageConfig, *, images: bool
) -> Encode:
    """What encodes pairs, or prompts alone.

    Args:
        base: the model that encodes.
        config: precision, length of captions, resources.
        crops: size of the images that are stored, or of those that trainings make.
        images: whether pairs have images.
    """
    if not images:
        return EncodePrompts(base, config, side=crops.size)
    buckets = crops.crop_sizes if crops.bucket_step else ()
    return Encode(base, config, side=crops.size, buckets=buckets)


class EncodePrompts(Encode):
    """Transform: caption to its embedding; its moments are of no image, S = 0.

    Their shape [0, FLIPS, 2, C, h, w] says how large the images are that trainings make.

    Args:
        base: the model that encodes.
        config: precision, length of captions, resources.
        side: of the images that trainings make, in pixels.
    """

    def __init__(self, base: BackboneConfig, config: CacheConfig, *, side: int) -> None:
        super().__init__(base, config, side=side)
        self.reads = READS[:1]

    def setup(self) -> None:
        """Load VAE and text encoders."""
        super().setup()
        self.measure_square()

    def prepare(self, rows: list[Row]) -> Images:
        """Prompts alone."""
        return Images([row["prompt"] for row in rows], [], [])

    def finish(self, rows: list[Row], out: Encoded) -> None:
        """Fill the columns; the empty caption has no moments, as beside images."""
        assert self.no_moments is not None, "setup() comes first"
        for i, row in enumerate(rows):
            row.update(to_row(out.captions[i]))
            if row["id"] != UNCONDITIONAL:
                row["moments"], row["moments_shape"] = self.no_moments
