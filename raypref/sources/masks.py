"""Masks, depth maps and other pictures made of a photograph, told by their names.

None of them is a photograph: `a.mask.png`, `a_depth.png` and `masks/a.png` belong to `a.jpg`.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

from raypref.core.rows import Row
from raypref.sources.names import one_form

REASON = "not_a_photograph"
_KINDS = (
    *("masks?", "mattes?", "alphas?", "trimaps?", "segs?", "segmentations?", "parsing", "labels?"),
    *("annotations?", "gt", "ground ?truths?", "instances?", "(label|instance) ?ids?"),
    *("saliency", "depths?", "depth ?maps?", "normals?", "edges?", "canny"),
    *("poses?", "controls?", "conditioning", "conditioning ?images?"),
    *("segmentation ?(class|object)",),  # Pascal VOC
)
_KIND = "(" + "|".join(_KINDS).replace(" ", "[._ -]") + ")"
_END = re.compile(rf"(?P<stem>.+?)[._ -]{_KIND}([._ -]?\d+)?", re.IGNORECASE)
_BEGIN = re.compile(rf"{_KIND}[._ -](?P<stem>.+)", re.IGNORECASE)
_FOLDER = re.compile(rf"(.*[._ -])?{_KIND}", re.IGNORECASE)
_IMAGE_END = re.compile(r"\.(jpe?g|png|webp|tiff?|bmp)", re.IGNORECASE)
_ANY = "*"  # stands for one folder, whatever its name


def made_of(pictures: Iterable[str], images: Collection[str]) -> dict[str, str]:
    """Of some pictures those that belong to a photograph, with the photograph's name.

    The name says the kind before or after the photograph's own (`a_mask.png`, `mask_a.png`,
    `a.jpg.mask.png`), or a folder does: one below the photograph's folder or beside it
    (`masks/train/a.png` for `images/train/a.jpg`).

    Args:
        pictures: those without a caption of their own.
        images: all, these too.
    """
    wanted: dict[str, list[str]] = defaultdict(list)
    bare = set(pictures)
    for picture in sorted(bare):
        for place in _photographs_of(picture):
            wanted[place].append(picture)
    if not wanted:
        return {}
    marked = {picture for found in wanted.values() for picture in found}
    found: dict[str, str] = {}
    # Those with a caption come first: they are the photographs.
    for image in sorted(set(images) - marked, key=lambda image: (image in bare, image)):
        for place in _places(image):
            for picture in wanted.get(place, ()):
                found.setdefault(picture, image)
    return found


def masks_of(rows: Iterable[Row]) -> dict[str, str]:
    """The masks among the images of a folder, in order, with the photograph of each.

    Depth maps and other pictures are none: the name says `mask`, or the picture's folder does.

    Args:
        rows: of an index. Those without a caption may be masks.
    """
    rows = list(rows)
    images = [row["uri"] for row in rows]
    with_caption = {row["uri"] for row in rows if row["caption"]}
    made = made_of([name for name in images if name not in with_caption], images)
    return {mask: photo for mask, photo in sorted(made.items()) if _says_mask(mask, photo)}


def _says_mask(mask: str, photograph: str) -> bool:
    folder, file = posixpath.split(mask)
    beside, plain = posixpath.split(photograph)
    stem, plain = posixpath.splitext(file)[0], posixpath.splitext(plain)[0]
    own = stem.removeprefix(plain) if stem.startswith(plain) else stem.removesuffix(plain)
    parts = [own, *({*folder.split("/")} - {*beside.split("/")})]
    return any("mask" in part.lower() for part in parts)


def problem(picture: str, photograph: str) -> str:
    """What is wrong with such a picture."""
    return f"{REASON}: {picture} belongs to {photograph} and has no caption of its own"


def _photographs_of(picture: str) -> Iterator[str]:
    """Names without suffix that the photograph may have; none where nothing says a kind."""
    folder, file = posixpath.split(one_form(picture))
    stem = posixpath.splitext(file)[0]
    match = _END.fullmatch(stem) or _BEGIN.fullmatch(stem)
    stems = [stem]
    if match:
        stems.append(_plain(match["stem"]))
        yield posixpath.join(folder, stems[1])
    folders = folder.split("/")
    for number, name in enumerate(folders):
        if _FOLDER.fullmatch(name):
            for each in stems:
                yield posixpath.join(*folders[:number], *folders[number + 1 :], each)
                yield posixpath.join(*folders[:number], _ANY, *folders[number + 1 :], each)


def _places(photograph: str) -> Iterator[str]:
    """The names under which a photograph can be meant."""
    folder, file = posixpath.split(one_form(photograph))
    stem = posixpath.splitext(file)[0]
    yield posixpath.join(folder, stem)
    folders = folder.split("/") if folder else []
    for number in range(len(folders)):
        yield posixpath.join(*folders[:number], _ANY, *folders[number + 1 :], stem)


def _plain(stem: str) -> str:
    """A stem without the suffix of an image: `a` of `a.jpg.mask.png`."""
    plain, end = posixpath.splitext(stem)
    return plain if _IMAGE_END.fullmatch(end) else stem
