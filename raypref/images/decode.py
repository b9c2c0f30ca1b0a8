"""Untrusted image bytes in, a plain RGB image out, or `BadImage` with a reason; no third way.

What is refused is refused as early as can be told: by the number of bytes, then by the header, and
only then by the pixels. Embedded colour profiles are ignored, as they are in the released code,
unless `images.profiles` says otherwise.
"""

from __future__ import annotations

import logging
import warnings
from io import BytesIO
from typing import Any, Literal, Self

import numpy as np
from PIL import ExifTags, Image
from PIL.features import check
from pydantic import model_validator

from raypref.core.config import InputError, Section, setting
from raypref.images.buckets import Size, bucket_sizes, nearest_bucket
from raypref.images.icc import other_than_srgb

log = logging.getLogger(__name__)
# It logs an error for a damaged file besides raising one, which comes back as a BadImage.
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)

Reason = Literal[
    "empty",
    "too_many_bytes",
    "unreadable",
    "unsupported_format",
    "truncated",
    "too_large",
    "too_small",
    "bad_aspect",
    "animated",
    "unsupported_mode",
]

Rounding = Literal["nearest", "truncate"]


def _heif() -> tuple[str, ...]:
    """Pillow's name of the format, where pillow-heif is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return ()
    # A worker has one core for it; what else such a file holds is of no use.
    register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False)
    return ("HEIF",)


# The only decoders that untrusted bytes can reach; the file's name is never asked. JPEG includes
# the multi-picture files (MPO) of cameras and telephones.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(["AVIF"] if check("avif") else []))
FORMATS += _heif()

# What telephones and new programs write and no decoder here reads, by the bytes at the beginning.
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevx", b"mif1", b"msf1")
_JPEG_XL = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n")

# In `info` of a decoded image: the name of a colour profile other than sRGB that was ignored.
IGNORED_PROFILE = "ignored_profile"

# Formats whose further frames are an animation. Those of MPO and TIFF are previews, depth maps or
# pages: the first one is the photograph.
_ANIMATIONS = ("GIF", "PNG", "WEBP", "AVIF")

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_UNSUPPORTED = ("I", "F", "LAB", "HSV")  # Pillow's conversion clips the first two to nonsense

# EXIF orientation (1..8) -> the turn that brings the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageConfig(Section):
    """What counts as a usable photograph."""

    size: int = setting(512, "side of the square crop, pixels", ge=8)
    min_side: int = setting(64, "smallest side accepted, pixels", ge=1)
    max_aspect: float = setting(4.0, "largest ratio of the long to the short side", ge=1.0)
    max_pixels: int = setting(
        50_000_000, "most pixels accepted, checked in the header", ge=1, le=178_000_000
    )  # above 179 million Pillow refuses by itself
    max_bytes: int = setting(64 * 2**20, "most encoded bytes accepted", ge=1)
    near_duplicates: bool = setting(
        False, "drop photographs that look like another, found by a perceptual hash"
    )
    animated: Literal["reject", "first_frame"] = setting(
        "reject", "what to do with animated GIF, PNG, WebP and AVIF"
    )
    profiles: Literal["ignore", "convert"] = setting(
        "ignore", "what to do with embedded colour profiles: convert makes sRGB of them", later=True
    )
    bucket_step: int = setting(
        0,
        "photographs keep their shape: a crop has that of the nearest aspect-ratio bucket, whose "
        "sides are multiples of so many pixels (64 in most trainers) and whose area is at most the "
        "square's; 0: all are squares",
        later=True,
        ge=0,
    )
    bucket_ratio: float = setting(
        2.0, "largest ratio of the long to the short side of a bucket", later=True, ge=1.0
    )

    @model_validator(mode="after")
    def _square_is_a_bucket(self) -> Self:
        if self.bucket_step and self.size % self.bucket_step:
            raise InputError(
                f"images.bucket_step={self.bucket_step}: images.size={self.size} must be a "
                "multiple of it"
            )
        return self

    @property
    def crop_sizes(self) -> tuple[Size, ...]:
        """Width and height that crops may have, pixels: the square's alone without buckets."""
        if not self.bucket_step:
            return ((self.size, self.size),)
        return bucket_sizes(self.size, self.bucket_step, self.bucket_ratio)

    def crop_size(self, size: Size) -> Size:
        """Width and height of the crop of an image, pixels.

        Args:
            size: width and height of the image, pixels.
        """
        return nearest_bucket(size, self.crop_sizes)


class BadImage(Exception):  # noqa: N818  (it is data, not an error of the program)
    """The bytes are no usable photograph.

    Attributes:
        reason: one of the words of `Reason`, counted in the funnel.
        message: a sentence for people.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


def decode(data: bytes, config: ImageConfig) -> Image.Image:
    """Decode untrusted bytes.

    Args:
        data: an encoded image of one of `FORMATS`.
        config: the limits.

    Returns:
        An upright image of mode RGB without metadata but `IGNORED_PROFILE`: EXIF orientation
        applied, transparency on white, 16-bit grey scaled by 1/257.

    Raises:
        BadImage: with the reason; nothing else is raised for whatever the bytes are.
    """
    if not data:
        raise BadImage("empty", "the file has no bytes")
    if len(data) > config.max_bytes:
        raise BadImage("too_many_bytes", f"{len(data)} bytes, more than {config.max_bytes}")
    # Pillow warns about odd metadata and large sizes; the first is harmless, the second decided
    # by our own bounds.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _open(data)
        _check_header(image, config)
        _load(image)
        turn = _UPRIGHT.get(_orientation(image))
        ignored = "" if config.profiles == "convert" else _other_profile(image)
        if config.profiles == "convert":
            image = _to_srgb(image)
        rgb = _to_rgb(image)
    if turn is not None:
        rgb = rgb.transpose(turn)
    # A profile or comment of the source must not travel into our own files.
    rgb.info = {IGNORED_PROFILE: ignored} if ignored else {}
    return rgb


def center_crop(
    image: Image.Image, size: Size, *, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """Scale until the image covers `size`, keeping its aspect ratio, and cut the centre.

    The rounding is that of torchvision's `Resize` and `CenterCrop`, which the released code uses.

    Args:
        image: any size.
        size: width and height of the result, pixels.
        resample: how pixels are made; masks take the nearest.
    """
    (width, height), (wide, high) = image.size, size
    if width * high >= wide * height:
        scaled = high * width // height, high
    else:
        scaled = wide, wide * height // width
    left, top = round((scaled[0] - wide) / 2), round((scaled[1] - high) / 2)
    resized = image.resize(scaled, resample)
    return resized.crop((left, top, left + wide, top + high))


def center_square(image: Image.Image, size: int) -> Image.Image:
    """The `center_crop` to a square of `size` pixels a side."""
    return center_crop(image, (size, size))


def cropped(image: Image.Image, config: ImageConfig) -> Image.Image:
    """The crop of a photograph, as pairs show it: a square, or the bucket nearest to it."""
    return center_crop(image, config.crop_size(image.size))


def encode_png(image: Image.Image) -> bytes:
    """Lossless PNG bytes of an RGB or L image; the least compression, as it is quick."""
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def open_png(data: bytes) -> Image.Image:
    """Decode bytes that `encode_png` made. Not for foreign bytes: those go through `decode`."""
    image = Image.open(BytesIO(data), formats=("PNG",))
    image.load()
    return image


def as_image(value: bytes | Image.Image) -> Image.Image:
    """The image of a row's column: PNG bytes of ours, or decoded as transforms hand it on."""
    return value if isinstance(value, Image.Image) else open_png(value)


def image_size(value: bytes | Image.Image) -> Size:
    """Width and height of `as_image`, in pixels; of PNG bytes the header alone is read."""
    image = value if isinstance(value, Image.Image) else Image.open(BytesIO(value), formats=["PNG"])
    return image.size


def as_png(value: Any) -> Any:
    """What a ledger holds of a column's value: PNG bytes of a decoded image, else the value."""
    return encode_png(value) if isinstance(value, Image.Image) else value


def of_unit(pixels_HWC: np.ndarray, *, rounding: Rounding = "nearest") -> Image.Image:
    """The image of pixels 0..1.

    Args:
        pixels_HWC: RGB.
        rounding: to 8 bits: `nearest`, as diffusers' pipelines do; `truncate` cuts off fractions.
    """
    levels = pixels_HWC * 255
    return Image.fromarray((levels.round() if rounding == "nearest" else levels).astype(np.uint8))


def _open(data: bytes) -> Image.Image:
    """Read the header; no pixel is decoded."""
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage("too_large", str(error)) from None
    except Image.UnidentifiedImageError:
        if name := _named(data):
            message = f"{name} is not read here, whatever its suffix: convert it to JPEG or PNG"
            if name == "HEIC":
                message += ", or install pillow-heif (pip install 'raypref[heic]')"
            raise BadImage("unsupported_format", message) from None
        message = f"not an image of a known format ({', '.join(FORMATS)})"
        raise BadImage("unreadable", message) from None
    except Exception as error:
        raise BadImage("unreadable", f"damaged header: {_one_line(error)}") from None


def _named(data: bytes) -> str:
    """The format of bytes that no decoder takes but that are no damage; empty for others."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
        return "HEIC" if "HEIF" not in FORMATS else ""
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis"):
        return "AVIF" if "AVIF" not in FORMATS else ""
    return "JPEG XL" if data.startswith(_JPEG_XL) else ""


def _check_header(image: Image.Image, config: ImageConfig) -> None:
    width, height = image.size
    size = f"{width}x{height} pixels"
    if width * height > config.max_pixels:
        raise BadImage("too_large", f"{size}, more than {config.max_pixels} in all")
    if min(width, height) < config.min_side:
        raise BadImage("too_small", f"{size}, the smallest side accepted is {config.min_side}")
    if max(width, height) > config.max_aspect * min(width, height):
        raise BadImage("bad_aspect", f"{size}, the largest ratio accepted is {config.max_aspect}")
    if image.mode in _UNSUPPORTED:
        raise BadImage("unsupported_mode", f"pixels of kind '{image.mode}' have no known white")
    if config.animated == "reject" and _is_animated(image):
        raise BadImage("animated", f"an animated {image.format}; animated=first_frame takes it")


def _is_animated(image: Image.Image) -> bool:
    if image.format not in _ANIMATIONS:
        return False
    try:
        return bool(
            getattr(image, "is_animated", False)
        )  # a GIF is walked to its second frame here
    except Exception as error:
        raise BadImage("truncated", _one_line(error)) from None


def _load(image: Image.Image) -> None:
    # Every decoder has its own exceptions for damaged data, down to IndexError and MemoryError.
    try:
        image.load()
    except Image.DecompressionBombError as error:
        raise BadImage("too_large", str(error)) from None
    except Exception as error:
        raise BadImage("truncated", f"cut or damaged: {_one_line(error)}") from None


def _other_profile(image: Image.Image) -> str:
    """The name of an embedded profile that `_to_srgb` would convert from; empty for sRGB."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or image.mode in _SIXTEEN_BIT:
        return ""
    return other_than_srgb(profile)


def _to_srgb(image: Image.Image) -> Image.Image:
    """The image in sRGB by its embedded profile; as it is where that is missing or broken."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode in _SIXTEEN_BIT:
        return image
    try:
        from PIL import ImageCms

        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if image.has_transparency_data:
            image = image.convert("RGBA")
        elif image.mode == "P":
            image = image.convert("RGB")
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, srgb, outputMode=mode) or image
    except Exception as error:  # a broken profile is no reason to lose the picture
        log.debug("colour profile dropped: %s", _one_line(error))
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    try:
        if image.mode in _SIXTEEN_BIT:
            # Pillow's own conversion clips at 255, which turns nearly all of the picture white.
            wide = np.asarray(image).astype(np.uint32)
            return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
        if image.has_transparency_data:
            # Dropping alpha would show whatever colour lies under the transparent parts.
            layer = image.convert("RGBA")
            white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, layer).convert("RGB")
        return image.convert("RGB")
    except Exception as error:
        raise BadImage("unsupported_mode", f"'{image.mode}' to RGB: {_one_line(error)}") from None


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where there is none or it cannot be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception as error:  # broken metadata is no reason to lose the picture
        log.debug("EXIF dropped: %s", _one_line(error))
        return 1


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
