"""Labelled pairs and images of WebDataset shards: members that share a key and follow one another.

Of a pair `000012.chosen.jpg`, `000012.rejected.jpg` and `000012.txt` or `000012.json`; or
`000012.0.jpg`, `000012.1.jpg` and a JSON file with the label. Of a single image `000012.jpg` and
a JSON file with its score.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import IO, Any, NamedTuple, TypeVar

from raypref.core.config import InputError
from raypref.sources import labels
from raypref.sources.base import LabelledImage, Pair, Ref
from raypref.sources.captions import SIDECAR_BYTES, parse_captions
from raypref.sources.reading import sound
from raypref.sources.store import Store
from raypref.sources.tar import contents, keyed

IMAGE_ENDS = frozenset(("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "avif", "heic"))
_PROMPTS = ("txt", "caption", "prompt")
_NAMES = {"": "image", "0": "image_0", "1": "image_1", "jpg_0": "image_0", "jpg_1": "image_1"}
_SHARD = ".tar"
Entry = TypeVar("Entry", Pair, LabelledImage)


class Sample(NamedTuple):
    """The members of a shard that share a key."""

    id: str
    where: str  # for people
    values: Mapping[str, Any]  # what its JSON file says, its prompt, and its images as references


def pairs(store: Store) -> Iterator[Pair]:
    """The pair of every sample of every shard, in order."""
    yield from _entries(store, _pair, labels.no_pair)


def images(store: Store) -> Iterator[LabelledImage]:
    """The labelled image of every sample of every shard, in order."""
    yield from _entries(store, _image, labels.no_image)


def parts_of(store: Store, shard: str) -> list[str]:
    """The names of what the first sample of a shard holds. SourceError if it cannot be read."""
    first = next(_samples(store, shard), None)
    return list(first.values) if isinstance(first, Sample) else []


def _pair(sample: Sample) -> Pair:
    columns = labels.pair_columns(list(sample.values), sample.where)
    if columns is None:
        return labels.no_pair(sample.id, f"bad_record: {sample.where} has no images of a pair")
    pair = labels.pair_of(sample.values, columns, id_=sample.id, where=sample.where)
    return pair if pair.problem or _inside(pair.first, pair.second) else _outside(sample, pair)


def _image(sample: Sample) -> LabelledImage:
    columns = labels.image_columns(list(sample.values), sample.where)
    if columns is None:
        said = f"bad_record: {sample.where} has no image with a score or label"
        return labels.no_image(sample.id, said)
    found = labels.labelled_of(sample.values, columns, id_=sample.id, where=sample.where)
    return found if found.problem or _inside(found.image) else _outside(sample, found)


def _inside(*images: Ref) -> bool:
    """Whether images lie in the shard: a name in a JSON file is not followed."""
    return all(image.size is not None for image in images)


def _outside(sample: Sample, entry: Entry) -> Entry:
    said = f"no_image: {sample.where} names an image and does not hold it"
    return entry._replace(problem=said)


def _entries(
    store: Store, entry: Callable[[Sample], Entry], dropped: Callable[[str, str], Entry]
) -> Iterator[Entry]:
    shards = (file.name for file in store.files() if file.name.endswith(_SHARD))

    def listed(shard: str) -> Iterator[Entry]:
        for sample in _samples(store, shard):
            try:
                yield entry(sample)
            except InputError as error:  # of one sample, not of the whole shard
                yield dropped(sample.id, f"bad_record: {error}")

    yield from sound(store, shards, listed, dropped)


def _samples(store: Store, shard: str) -> Iterator[Sample]:
    """The samples of a shard. SourceError where it cannot be read or is damaged."""
    for id_, name, values in keyed(store, shard, partial(_values, shard)):
        yield Sample(id_, f"sample {name} of {shard}", values)


def _values(shard: str, file: IO[bytes], members: Iterable[tarfile.TarInfo]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    said: dict[str, Any] = {}
    for member in members:
        # What follows the key: "chosen.jpg", "json".
        ending = posixpath.basename(member.name).partition(".")[2].lower()
        stem, _, form = ending.rpartition(".")
        if form in IMAGE_ENDS:
            place = Ref(shard, member.offset_data, "", member.size)
            found[_NAMES.get(stem, stem)] = place
        elif member.size <= SIDECAR_BYTES and ending in ("json", "cls", "score", *_PROMPTS):
            # Bytes that are not UTF-8 come as half characters: no text.
            text = contents(file, member).decode("utf-8-sig", "surrogateescape")
            if ending == "json":
                parsed = parse_captions(text)
                said |= parsed if isinstance(parsed, dict) else {}
            else:
                name = {"cls": "label", "score": "score"}.get(ending, "prompt")
                found[name] = text
    return {**said, **found}
