"""HEIC, the format of telephones, which needs a decoder that is not installed with the project."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import corpus
import numpy as np
import pytest

from raypref.images.decode import BadImage, ImageConfig, decode, encode_png, open_png

STAND_IN = """
from io import BytesIO
from PIL import Image, ImageFile

class Heif(ImageFile.ImageFile):
    format = "HEIF"

    def _open(self):
        self.inside = Image.open(BytesIO(self.fp.read()[100:]))
        self._size, self._mode = self.inside.size, self.inside.mode

    def load(self):
        self.im = self.inside.convert(self.mode).im

def register_heif_opener(**options):
    assert options == {"decode_threads": 1, "thumbnails": False, "depth_images": False}
    Image.register_open(Heif.format, Heif, lambda start: start[4:12] == b"ftypheic")
"""


def test_heic_is_read_where_its_decoder_is_installed(tmp_path):
    """A stand-in of pillow-heif, in a process of its own: Pillow never forgets a decoder."""
    (tmp_path / "pillow_heif.py").write_text(STAND_IN)
    scene = encode_png(corpus.scene(2))
    head = b"\x00\x00\x00\x18ftypheic".ljust(100, b"\0")
    (tmp_path / "sound.heic").write_bytes(head + scene)
    (tmp_path / "damaged.heic").write_bytes(head + scene[: len(scene) // 2])
    (tmp_path / "no.heic").write_bytes(head)
    code = """
import sys
from pathlib import Path
from raypref.images.decode import BadImage, ImageConfig, decode, encode_png
for name in ("sound", "damaged", "no"):
    try:
        image = decode(Path(sys.argv[1], name + ".heic").read_bytes(), ImageConfig())
        Path(sys.argv[1], name + ".png").write_bytes(encode_png(image))
        print("ok")
    except BadImage as bad:
        print(bad.reason)
"""
    paths = [str(Path(__file__).parents[1]), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["ok", "truncated", "unreadable"]
    seen = open_png((tmp_path / "sound.png").read_bytes())
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(corpus.scene(2)))


def test_heic_by_pillow_heif_itself():
    pillow_heif = pytest.importorskip("pillow_heif")
    scene, buffer = corpus.scene(2), io.BytesIO()
    pillow_heif.from_pillow(scene).save(buffer, quality=95)
    seen = decode(buffer.getvalue(), ImageConfig())
    assert seen.size == scene.size
    assert np.abs(np.asarray(seen).astype(int) - np.asarray(scene)).mean() < 4
    with pytest.raises(BadImage, match=r"truncated|unreadable"):
        decode(buffer.getvalue()[: len(buffer.getvalue()) // 2], ImageConfig())
