"""Names of colour profiles, as the colour engine reads them; whatever the bytes are."""

from __future__ import annotations

import io
import random
import struct

import pytest
from PIL import ImageCms

from raypref.images.icc import other_than_srgb, profile_name


def made(kind: str) -> bytes:
    """One of the profiles that the engine makes itself."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(kind)).tobytes()


def named(name: str, *, version: int) -> bytes:
    """The smallest profile that has a name, laid out as version 2 and 4 of the standard say."""
    if version == 2:
        text = name.encode() + b"\0"
        tag = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text
    else:
        text = name.encode("utf-16-be")
        tag = b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28)
        tag += text
    head = bytearray(128)
    head[36:40] = b"acsp"
    table = struct.pack(">I4sII4sII", 2, b"cprt", 0, 0, b"desc", 128 + 28, len(tag))
    return bytes(head) + table + tag


@pytest.mark.parametrize("kind", ["sRGB", "LAB", "XYZ"])
def test_the_name_is_the_one_that_the_engine_reads(kind):
    engine = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(made(kind))))
    assert profile_name(made(kind)) == engine.strip() != ""


@pytest.mark.parametrize("version", [2, 4])
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("Display P3", True),
        ("Adobe RGB (1998)", True),
        ("Dot Gain 20%", True),
        ("sRGB IEC61966-2.1", False),
        ("c2", False),
        ("", False),  # of which nobody knows
    ],
)
def test_profiles_of_srgb_are_told_from_others(name, other, version):
    profile = named(name, version=version)
    assert profile_name(profile) == name
    assert other_than_srgb(profile) == (name if other else "")


def test_no_bytes_are_too_strange():
    rng = random.Random(0)
    for profile in (named("Display P3", version=2), named("Display P3", version=4), made("sRGB")):
        for _ in range(2000):
            data = bytearray(profile[: rng.randrange(len(profile) + 1)])
            for _ in range(min(len(data), 8)):
                data[rng.randrange(len(data))] = rng.choice((0, 1, 127, 255, rng.randrange(256)))
            assert len(profile_name(bytes(data))) <= 200
