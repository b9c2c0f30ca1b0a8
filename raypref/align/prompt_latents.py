"""What training reads of prompts alone: their embeddings, and the shape of latents without any."""

from __future__ import annotations

from PIL import Image

from raypref.align.cache_config import CacheConfig
from raypref.align.latents import FLIPS, READS, UNCONDITIONAL, Encode, Encoded, Images
from raypref.core.rows import Row
from raypref.models.backbone import BackboneConfig
from raypref.models.families.conditioning import packed, to_row


def encoding(base: BackboneConfig, config: CacheConfig, *, side: int, images: bool) -> Encode:
    """What encodes pairs, or prompts alone.

    Args:
        base: the model that encodes.
        config: precision, length of captions, resources.
        side: of the images in pixels: of those stored, or of those that trainings make.
        images: whether pairs have images.
    """
    return (Encode if images else EncodePrompts)(base, config, side=side)


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
        self.blank = Image.new("RGB", (side, side))
        self.reads = READS[:1]

    def setup(self) -> None:
        """Load VAE and text encoders; the family's own VAE says what shape latents have."""
        super().setup()
        of_one = self.encoder.image_moments([self.blank])
        self.no_moments = packed(of_one.new_empty((0, FLIPS, *of_one.shape[1:])))

    def prepare(self, rows: list[Row]) -> Images:
        """Prompts alone."""
        return Images([row["prompt"] for row in rows], [], [])

    def finish(self, rows: list[Row], out: Encoded) -> None:
        """Fill the columns; the empty caption has no moments, as beside images."""
        for i, row in enumerate(rows):
            row.update(to_row(out.captions[i]))
            if row["id"] != UNCONDITIONAL:
                row["moments"], row["moments_shape"] = self.no_moments
