"""Bad images, and tricky good ones, made in code: no file is shipped.

Every sample is made around the same small photograph-like scene, so that a test can also compare
pixels with `scene()`.
"""

from __future__ import annotations

import csv
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 120, 80


@dataclass(frozen=True)
class Sample:
    """One file: its name (which may lie about its content), bytes and how `decode` must end."""

    name: str
    data: bytes
    expected: str  # a reason word, or "ok"


def scene(seed: int = 0, *, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """A sky, a ground and a bright thing: lopsided, so that a wrong turn shows. Mode RGB."""
    rng = np.random.default_rng(seed)
    width, height = size
    down = np.linspace(0, 1, height)[:, None, None]
    sky, ground = rng.integers(40, 220, (2, 3))
    pixels = np.broadcast_to(sky * (1 - down) + ground * down, (height, width, 3))
    pixels = pixels + rng.normal(0, 6, (height, width, 1))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    x, y, r = width // 5, height // 4, min(size) // 6
    thing, box = (tuple(int(c) for c in colour) for colour in (rng.integers(0, 255, 3), 255 - sky))
    draw = ImageDraw.Draw(image)
    draw.ellipse((x - r, y - r, x + r, y + r), fill=thing)
    draw.rectangle((width * 3 // 5, height // 2, width - 5, height - 5), fill=box)
    return image


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image's bytes in a format Pillow knows."""
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A valid PNG of some 70 bytes that claims any size and holds no such pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 10)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def flip_byte(data: bytes, position: int) -> bytes:
    """The same bytes with one of them inverted."""
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


def with_exif(exif: bytes) -> bytes:
    """The scene as JPEG with a raw APP1 EXIF segment, however broken."""
    jpeg = encode(scene(), "JPEG", quality=95)
    body = b"Exif\0\0" + exif
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def oriented(orientation: int) -> bytes:
    """The scene as lossless PNG, stored so that this EXIF orientation is said to turn it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(scene(), "PNG", exif=exif)


def ramp16(width: int = 256, height: int = 128) -> np.ndarray:
    """A grey ramp over all of 0..65535, uint16 (height, width)."""
    row = np.linspace(0, 65535, width).round().astype(np.uint16)
    return np.tile(row, (height, 1))


def translucent(mode: str) -> Image.Image:
    """RGBA or LA: red (or grey) on the left, opaque; wholly transparent on the right."""
    image = Image.new(mode, (WIDTH, HEIGHT), (200, 0, 0, 255) if mode == "RGBA" else (90, 255))
    clear = (0, 0, 255, 0) if mode == "RGBA" else (0, 0)
    image.paste(clear, (WIDTH // 2, 0, WIDTH, HEIGHT))
    return image


def see_through_palette() -> Image.Image:
    """Palette image whose entry 1, the right half, is transparent; entry 0 is (10, 120, 200)."""
    image = Image.new("P", (WIDTH, HEIGHT), 0)
    image.putpalette([10, 120, 200, 0, 0, 0])
    image.paste(1, (WIDTH // 2, 0, WIDTH, HEIGHT))
    image.info["transparency"] = 1
    return image


def _frames() -> list[Image.Image]:
    return [scene(seed) for seed in range(3)]


def _broken_pictures() -> list[Sample]:
    jpeg = encode(scene(), "JPEG", quality=95)
    png = encode(scene(), "PNG")
    return [
        Sample("zero.jpg", b"", "empty"),
        Sample("header_only.jpg", jpeg[:20], "unreadable"),
        Sample("signature_only.png", png[:8], "unreadable"),
        Sample("page.jpg", b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "unreadable"),
        Sample("notes.png", b"This is a text file.\n" * 40, "unreadable"),
        Sample("noise.jpg", np.random.default_rng(1).bytes(4096), "unreadable"),
        Sample("drawing.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "unreadable"),
        Sample("cut_half.jpg", jpeg[: len(jpeg) // 2], "truncated"),
        Sample("cut_16.jpg", jpeg[:-16], "truncated"),
        Sample("cut_half.png", png[: len(png) // 2], "truncated"),
        Sample("bad_crc.png", flip_byte(png, len(png) // 2), "truncated"),
        Sample("bad_header_crc.png", flip_byte(png, 30), "unreadable"),
        Sample("cut_half.webp", _half(encode(scene(), "WEBP")), "unreadable"),
        Sample("cut_half.gif", _half(encode(scene(), "GIF")), "truncated"),
        Sample("cut_half.tif", _half(encode(scene(), "TIFF")), "truncated"),
        Sample("cut_half.bmp", _half(encode(scene(), "BMP")), "truncated"),
    ]


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _unwanted_pictures() -> list[Sample]:
    first, *rest = _frames()
    more: dict[str, Any] = {"save_all": True, "append_images": rest, "duration": 80}
    floats = Image.fromarray(np.linspace(0, 1, WIDTH * HEIGHT, dtype=np.float32).reshape(80, 120))
    integers = Image.fromarray(np.arange(WIDTH * HEIGHT, dtype=np.int32).reshape(80, 120))
    return [
        Sample("bomb_12k.png", png_header(12_000, 12_000), "too_large"),
        Sample("bomb_20k.png", png_header(20_000, 20_000), "too_large"),
        Sample("bomb_65k.png", png_header(65_000, 65_000), "too_large"),
        Sample("dot.png", encode(Image.new("RGB", (1, 1)), "PNG"), "too_small"),
        Sample("thread.png", encode(Image.new("RGB", (1, 20_000)), "PNG"), "too_small"),
        Sample("banner.png", encode(Image.new("RGB", (640, 64)), "PNG"), "bad_aspect"),
        Sample("moving.gif", encode(first, "GIF", **more), "animated"),
        Sample("moving.webp", encode(first, "WEBP", **more), "animated"),
        Sample("moving.png", encode(first, "PNG", **more), "animated"),
        Sample("float.tif", encode(floats, "TIFF"), "unsupported_mode"),
        Sample("int32.tif", encode(integers, "TIFF"), "unsupported_mode"),
    ]


def _tricky_pictures() -> list[Sample]:
    image = scene()
    jpeg = encode(image, "JPEG", quality=95)
    first, *rest = _frames()
    more: dict[str, Any] = {"save_all": True, "append_images": rest}
    return [
        Sample("tail.jpg", jpeg + b"\0garbage" * 100, "ok"),
        Sample("really_png.jpg", encode(image, "PNG"), "ok"),
        Sample("no_extension", jpeg, "ok"),
        Sample("progressive.jpg", encode(image, "JPEG", quality=95, progressive=True), "ok"),
        Sample("cmyk.jpg", encode(image.convert("CMYK"), "JPEG", quality=95), "ok"),
        Sample("grey.jpg", encode(image.convert("L"), "JPEG", quality=95), "ok"),
        Sample("palette.png", encode(see_through_palette(), "PNG"), "ok"),
        Sample("one_bit.png", encode(image.convert("1"), "PNG"), "ok"),
        Sample("rgba.png", encode(translucent("RGBA"), "PNG"), "ok"),
        Sample("la.png", encode(translucent("LA"), "PNG"), "ok"),
        Sample("rgba.webp", encode(translucent("RGBA"), "WEBP", lossless=True), "ok"),
        Sample("sixteen.png", encode(Image.fromarray(ramp16()), "PNG"), "ok"),
        Sample("sixteen.tif", encode(Image.fromarray(ramp16()), "TIFF"), "ok"),
        Sample("still.gif", encode(image, "GIF"), "ok"),
        Sample("still.webp", encode(image, "WEBP", lossless=True), "ok"),
        Sample("photo.bmp", encode(image, "BMP"), "ok"),
        Sample("photo.tif", encode(image, "TIFF"), "ok"),
        Sample("pages.tif", encode(first, "TIFF", **more), "ok"),
        Sample("camera.mpo", encode(first, "MPO", quality=95, **more), "ok"),
        Sample("exif_garbage.jpg", with_exif(b"\xff" * 40), "ok"),
        Sample("exif_cut.jpg", with_exif(b"MM\0*\0\0\0\x08\0\x05\x01\x12"), "ok"),
        Sample("exif_zero_division.jpg", with_exif(_exif_entry(5, b"\0" * 8)), "ok"),
        Sample("exif_text.jpg", with_exif(_exif_entry(2, b"six\0\0\0\0\0")), "ok"),
        Sample("exif_loop.jpg", with_exif(b"II*\0\x08\0\0\0\x00\x00\x08\0\0\0"), "ok"),
        *(Sample(f"orientation_{i}.png", oriented(i), "ok") for i in range(1, 9)),
    ]


def _exif_entry(kind: int, value: bytes) -> bytes:
    """EXIF whose orientation is of a wrong type: 5 = a fraction (0/0 is possible), 2 = text."""
    count = 1 if kind == 5 else len(value)
    entry = struct.pack("<HHII", 0x0112, kind, count, 26)
    return b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0) + value


def images() -> dict[str, Sample]:
    """Every sample by name."""
    samples = [*_broken_pictures(), *_unwanted_pictures(), *_tricky_pictures()]
    return {sample.name: sample for sample in samples}


def write_folder(root: Path, good: int = 6) -> dict[str, str]:
    """Write a folder of captioned photographs in which many are not what they seem.

    Args:
        root: made if needed; gets the pictures and `captions.csv` (header `file,caption`).
        good: how many sound photographs of 160x120 to add, all different.

    Returns:
        File name to expected reason, or "ok"; includes tricky pictures that must pass.
    """
    root.mkdir(parents=True, exist_ok=True)
    bad = [s for s in images().values() if s.expected != "ok"]
    tricky = [images()[name] for name in ("cmyk.jpg", "sixteen.png", "orientation_6.png")]
    sound = [
        Sample(f"photo_{i:03d}.jpg", encode(scene(100 + i, size=(160, 120)), "JPEG"), "ok")
        for i in range(good)
    ]
    samples = [*sound, *tricky, *bad]
    for sample in samples:
        (root / sample.name).write_bytes(sample.data)
    with (root / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "caption"])
        writer.writerows([s.name, f"a photograph named {s.name}"] for s in samples)
    return {sample.name: sample.expected for sample in samples}
