"""Encoded images with bytes changed at random: decoded within the caps, or dropped."""

import io
import random
import warnings

import corpus
import pytest
from PIL import Image
from test_source_fuzz import changed

from raypref.images.decode import FORMATS, BadImage, ImageConfig, decode

TRIES = 120
CAPS = ImageConfig(max_pixels=128 * 128)
# fmt: off
REASONS = {
    "animated", "bad_aspect", "empty", "too_large", "too_small", "truncated", "unreadable",
    "unsupported_format", "unsupported_mode",
}
# fmt: on


@pytest.mark.parametrize("kind", sorted({*FORMATS} - {"HEIF"}))
def test_whatever_is_changed_an_image_is_within_its_caps_or_dropped(kind: str) -> None:
    buffer = io.BytesIO()
    corpus.scene().resize((64, 64)).save(buffer, kind)
    data, rng, seen = buffer.getvalue(), random.Random(kind), set()
    for _ in range(TRIES):
        damaged = changed(data, rng)
        if rng.random() < 0.3:  # in its head, where sizes and offsets stand
            place = rng.randrange(min(60, len(damaged)))
            damaged = damaged[:place] + rng.randbytes(4) + damaged[place + 4 :]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                image = decode(damaged, CAPS)
        except BadImage as bad:
            assert "\n" not in str(bad)
            seen.add(str(bad).split(":")[0])
        else:
            image.load()
            assert image.mode == "RGB"
            assert image.width * image.height <= CAPS.max_pixels
            seen.add("ok")
    assert seen - {"ok"}, "nothing was damaged"
    assert seen <= {"ok", *REASONS}
