"""Pictures of the page: small ones to look over, full ones as files beside it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import cached_property

from PIL import Image, UnidentifiedImageError
from pyarrow import fs as pafs

from raypref.core.ledger import filesystem, join, read_bytes, write_bytes
from raypref.report.views import Picture

PIXELATED = 128  # px; up to this side an image is enlarged with hard pixels and kept as it is
SMALL = 192  # px; the longer side of a small picture
FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
TINT = (255, 0, 110)  # of the salient region: a colour photographs seldom have


@dataclass(frozen=True)
class Folder:
    """A folder of pictures beside the page. What is in it is not written again.

    Args:
        report: the folder of the page, local or URI.
        name: path within it; names what decides the pictures, so that old ones are never shown.
    """

    report: str
    name: str

    @cached_property
    def before(self) -> frozenset[str]:
        """Names of the files that were there at first."""
        return frozenset(list_files(join(self.report, self.name)))

    def write(self, file: str, data: bytes) -> None:
        """Add a file."""
        if file not in self.before:
            write_bytes(join(self.report, self.name, file), data)

    def read(self, file: str) -> bytes:
        """Content of a file that is there."""
        data = read_bytes(join(self.report, self.name, file))
        assert data is not None, f"{file} is not in {self.name}"
        return data

    def remove_others(self, *, prefix: str) -> None:
        """Remove the folders beside this one whose name begins with `prefix`: results of before."""
        parent, _, own = self.name.rpartition("/")
        fs, root = filesystem(join(self.report, parent))
        for entry in fs.get_file_info(pafs.FileSelector(root, allow_not_found=True)):
            if entry.base_name.startswith(prefix) and entry.base_name != own:
                fs.delete_dir(entry.path)


def list_files(folder: str) -> list[str]:
    """Names of the files in a folder, sorted; none where there is no folder."""
    fs, root = filesystem(folder)
    found = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    # A name with a dot before it is a file that is being written.
    names = (entry.base_name for entry in found if entry.type == pafs.FileType.File)
    return sorted(name for name in names if not name.startswith("."))


def picture(encoded: bytes, *, full: str = "", side: int = SMALL) -> Picture:
    """An image as a picture whose small one lies within the page.

    Args:
        encoded: PNG, JPEG or WebP.
        full: path of the full one beside the page, if there is one.
        side: longest side of the small one; a strip is as high as this at most, and any width.

    Raises:
        ValueError: the image is of another format.
    """
    data, mime, size, pixelated = _small(encoded, side)
    return Picture(data_uri(data, mime), full, *size, pixelated)


def strip(encoded: bytes, *, full: str) -> Picture:
    """The same for several square images side by side: the height counts."""
    width, height = open_image(encoded).size
    side = PIXELATED if height > PIXELATED else height
    return picture(encoded, full=full, side=side * width // height)


def small_file(encoded: bytes) -> bytes:
    """The small one of an image, to be written beside the page."""
    return _small(encoded, SMALL)[0]


def is_pixelated(size: tuple[int, int]) -> bool:
    """Whether an image, or every one of a strip, is so small that its pixels are to be seen."""
    return size[1] <= PIXELATED


def data_uri(data: bytes, mime: str | None = None) -> str:
    """Image bytes as a `data:` URI."""
    known = mime or FORMATS[str(open_image(data).format)]
    return f"data:{known};base64,{base64.b64encode(data).decode('ascii')}"


def overlay(photograph: bytes, mask: bytes) -> bytes:
    """The photograph with the salient region tinted, at full size.

    Args:
        photograph: the encoded photograph.
        mask: of the same size, white where the region is.
    """
    photo = open_image(photograph).convert("RGB")
    # Grey beneath the tint, or a colourful photograph would hide it.
    tint = Image.new("RGB", photo.size, TINT)
    tinted = Image.blend(photo.convert("L").convert("RGB"), tint, 0.5)
    mixed = Image.composite(tinted, photo, open_image(mask).convert("L"))
    return encode(mixed, "PNG" if is_pixelated(photo.size) else "JPEG")


def open_image(encoded: bytes) -> Image.Image:
    """The image, its pixels not yet decoded.

    Raises:
        ValueError: it is not PNG, JPEG or WebP.
    """
    try:
        return Image.open(io.BytesIO(encoded), formats=list(FORMATS))
    except UnidentifiedImageError:
        raise ValueError(f"an image of the report is not {', '.join(FORMATS)}") from None


def encode(image: Image.Image, kind: str) -> bytes:
    """The image as PNG, or as JPEG of the page's quality."""
    buffer = io.BytesIO()
    options = {"compress_level": 1} if kind == "PNG" else {"quality": 85}
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _small(encoded: bytes, side: int) -> tuple[bytes, str, tuple[int, int], bool]:
    """Bytes, MIME type, size and whether to enlarge with hard pixels."""
    image = open_image(encoded)
    if is_pixelated(image.size):
        return encoded, FORMATS[str(image.format)], image.size, True
    small = image.convert("RGB")
    # The gap lets Pillow halve a large image cheaply before it resamples with care.
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return encode(small, "JPEG"), FORMATS["JPEG"], small.size, False
