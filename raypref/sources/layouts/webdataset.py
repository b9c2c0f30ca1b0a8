"""WebDataset shards: tar files whose members share a key, such as 000012.jpg and 000012.txt.

Members are read where they lie, never extracted, and their names are never used as paths.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections import Counter, defaultdict
from collections.abc import Container, Iterator
from functools import partial
from typing import IO

from raypref.core.rows import Row, index_row
from raypref.sources import labels, masks
from raypref.sources.base import Layout
from raypref.sources.captions import (
    ENDS,
    SIDECAR_BYTES,
    Columns,
    caption_in,
    first_caption,
    sidecar_names,
)
from raypref.sources.layouts.folder import IMAGE_SUFFIXES
from raypref.sources.leftout import left_out_by
from raypref.sources.names import one_form
from raypref.sources.reading import damage, scan
from raypref.sources.samples import images, pairs
from raypref.sources.store import RemoteStore, SourceError, Store
from raypref.sources.tar import Member, check_end, escaped, key_of, side_by_side

WAITING = 2**28  # characters of captions kept for images that come later in their shard
Text = tuple[str | None, str | None]  # a caption, or what is wrong with it


def photographs(store: Store, columns: Columns) -> Iterator[Row]:
    """The images of every shard, in order; captions come from the text of the same name.

    That is `photo.0001.txt`, `.json` or `.caption` for `photo.0001.jpg`, or else that of the key,
    `photo.txt`; it may lie anywhere in the shard. `photo.mask.png` without a text of its own, in a
    sample that has `photo.jpg`, is no photograph; nor is a mask of another name (`masks`).
    """
    yield from side_by_side(store, partial(_listed, store, columns))


def _listed(store: Store, columns: Columns, shard: str) -> Iterator[Row]:
    try:
        file = scan(store, shard)
    except (OSError, SourceError) as error:
        if isinstance(store, RemoteStore):
            raise
        yield _damaged(shard, f"{shard} cannot be read: {error}")
        return
    with file:
        yield from _Shard(store, columns, shard, file).rows()


def _damaged(shard: str, message: str) -> Row:
    return index_row(f"{shard}#//damaged", shard, None, problem=f"unreadable_archive: {message}")


class _Shard:
    """One pass over a shard. Rows wait from the first image on whose text has not come yet."""

    def __init__(self, store: Store, columns: Columns, shard: str, file: IO[bytes]) -> None:
        self.store = store
        self.columns = columns
        self.shard = shard
        self.file = file
        self.seen: Counter[str] = Counter()
        self.plain: dict[str, str] = {}  # from a key to its image that has one suffix only
        self.texts: dict[str, list[Text]] = defaultdict(list)  # that no image has taken
        self.room = WAITING
        self.waiting: list[tuple[Row, str | None]] = []  # and the image's name, if it has no text

    def rows(self) -> Iterator[Row]:
        """The images in order, and a last row where the shard is damaged."""
        sample: list[tarfile.TarInfo] = []
        damaged: Row | None = None
        try:
            # "r:" takes no compression: of a compressed shard no member could be read by itself.
            with tarfile.open(fileobj=self.file, mode="r:", tarinfo=Member) as tar:
                for member in tar:
                    # Else all headers of the shard stay in memory.
                    tar.members = []  # type: ignore[attr-defined]
                    if member.isdir() or left_out_by(member.name):
                        continue
                    if sample and key_of(member.name) != key_of(sample[0].name):
                        yield from self._images(sample)
                        sample = []
                    sample.append(member)
                check_end(self.file, tar)
            yield from self._images(sample)
        except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
            if isinstance(self.store, RemoteStore) and isinstance(error, OSError):
                raise  # the network, not the shard; tarfile's own errors are no OSErrors
            yield from self._images(sample)
            said = f"{self.shard} is damaged after {sum(self.seen.values())} images: {error}"
            damaged = _damaged(self.shard, damage(self.store, self.shard, said).message)
        late = [name for _, name in self.waiting if name is not None]
        made = masks.made_of(late, self.seen)
        for row, name in self.waiting:
            yield row if name is None else self._late(row, name, made.get(name))
        if damaged is not None:
            yield damaged

    def _images(self, sample: list[tarfile.TarInfo]) -> Iterator[Row]:
        texts = {name: m for m in sample if (name := _name(m.name)).endswith(ENDS)}
        images = [m for m in sample if _split(m.name)[1] in IMAGE_SUFFIXES]
        taken = False
        for member in images:
            if _is_plain(member.name):
                self.plain.setdefault(key_of(member.name), member.name)
        for member in images:
            own, shared = _text_names(member.name, texts)
            made = None if own else self._made_of(member.name)
            names = [] if made else [*own, *shared]
            taken = taken or bool(names)
            caption, problem = first_caption(self._caption(texts[name]) for name in names)
            row = self._row(member, caption, made or problem)
            waits = not names and row["problem"] is None
            if waits or self.waiting:
                self.waiting.append((row, member.name if waits else None))
            else:
                yield row
        for name in () if taken else texts:
            text = self._caption(texts[name])
            self.room -= len(text[0] or "")
            if any(text) and self.room > 0:
                self.texts[name].append(text)

    def _row(self, member: tarfile.TarInfo, caption: str | None, problem: str | None) -> Row:
        name = escaped(member.name)
        again = f"//{self.seen[name]}" if self.seen[name] else ""  # a tar may hold a name twice
        self.seen[name] += 1
        # Links would read what lies elsewhere; sparse files are not stored as they are.
        plain = member.isreg() and not member.issparse()
        if not plain:
            problem = f"not_a_file: {name} in {self.shard} is a link, device or sparse file"
        return index_row(
            f"{self.shard}#{name}{again}",
            self.shard,
            caption,
            size=member.size if plain else None,
            member=member.offset_data if plain else None,
            problem=problem,
        )

    def _late(self, row: Row, image: str, of: str | None) -> Row:
        """The row of an image with the text that stood elsewhere in the shard.

        Args:
            row: its row so far.
            image: the member's name.
            of: the photograph that its name says it was made of.
        """
        own, shared = _text_names(image, self.texts)
        if not own and (made := self._made_of(image)):
            return row | {"problem": made}
        if of is not None and not own and not shared:
            return row | {"problem": escaped(masks.problem(image, of))}
        caption, problem = first_caption(self._next(name) for name in [*own, *shared])
        return row | {"caption": caption, "problem": problem}

    def _next(self, name: str) -> Text:
        """A text; of several with one name each image of that name takes the next."""
        texts = self.texts[name]
        return texts.pop(0) if len(texts) > 1 else texts[0]

    def _made_of(self, image: str) -> str | None:
        """What is wrong with a picture that only belongs to a photograph of the same key."""
        of = self.plain.get(key_of(image))
        if of is None or _is_plain(image):
            return None
        return escaped(masks.problem(image, of))

    def _caption(self, member: tarfile.TarInfo) -> Text:
        """What a text member says, or the problem with it."""
        if not member.isreg() or member.issparse() or member.size > SIDECAR_BYTES:
            return None, None
        position = self.file.tell()
        self.file.seek(member.offset_data)
        data = self.file.read(member.size)
        self.file.seek(position)  # where the archive's reader left it
        return caption_in(data, member.name, self.columns)


def _split(name: str) -> tuple[str, str]:
    """Folder and name up to the last dot, and what follows in lower case."""
    stem, suffix = posixpath.splitext(one_form(name))
    return stem, suffix.lower()


def _name(name: str) -> str:
    """The name with its last suffix in lower case."""
    return "".join(_split(name))


def _is_plain(image: str) -> bool:
    """Whether the name has one suffix only."""
    return _split(image)[0] == key_of(image)


def _text_names(image: str, texts: Container[str]) -> tuple[list[str], list[str]]:
    """Of some texts, those of an image alone and those of its key, which all its images share."""
    own = sidecar_names(one_form(image))
    shared = [key_of(image) + end for end in ENDS]
    return [n for n in own if n in texts], [n for n in shared if n in texts and n not in own]


LAYOUT = Layout(
    photographs=photographs,
    pairs=pairs,
    images=images,
    pairs_in=labels.names_pairs,
    images_in=labels.names_images,
    suffixes=(".tar",),
    sampled=True,
    advice="add a photo.txt for each photo.jpg to the shards",
)
