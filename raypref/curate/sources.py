"""Sources of captioned photographs: a folder, or Parquet files with an image column.

`read_index` lists what there is without touching a pixel; `fetch` reads the bytes of one entry.
A photograph without a caption and a caption without a photograph are listed too: every input ends
somewhere.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raypref.config import InputError, Location, Section, setting
from raypref.rows import INDEX, Row
from raypref.tiny import world

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".mpo", ".heic")
)
CAPTION_KEYS = ("caption", "prompt", "text")
IMAGE_COLUMNS = ("image", "jpg", "png", "img")
SIDECAR_BYTES = 2**20  # a caption file larger than this is none


class SourceConfig(Section):
    """Where the photographs are."""

    path: Location = setting(
        ...,
        "folder with captions.csv (file,caption) or photo.txt/photo.json beside each photo; or "
        "Parquet file or folder with an image column; tiny:world for the embedded photographs",
        affects_result=False,  # the digest of what it lists does
    )
    limit: int = setting(0, "read only the first N entries; 0 reads all", ge=0)
    max_caption: int = setting(2000, "longest caption taken, in characters", ge=1)

    def root(self) -> Path:
        """The local folder or file.

        Raises:
            InputError: there is no such place.
        """
        if self.path == "tiny:world":
            return world.photos_folder(count=256, seed=0)
        root = Path(self.path).expanduser()
        if not root.exists():
            raise InputError(f"source.path: there is no folder or file '{self.path}'")
        return root


class SourceError(Exception):
    """An entry cannot be read; it becomes a reject.

    Attributes:
        reason: a short fixed word.
        message: a sentence for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def read_index(config: SourceConfig) -> pa.Table:
    """List the entries (schema `rows.INDEX`), sorted by id.

    Raises:
        InputError: nothing there, or no captions at all; says what was looked for.
    """
    root = config.root()
    entries = list(_parquet_entries(root) if _parquet_files(root) else _folder_entries(root))
    if not entries:
        raise InputError(
            f"source.path: no photographs in '{config.path}'; expected image files with a "
            "captions.csv or .txt/.json sidecars, or .parquet files"
        )
    if all(not entry["caption"] for entry in entries):
        raise InputError(
            f"source.path: {len(entries)} photographs in '{config.path}' but not one caption; add "
            "captions.csv with the columns file,caption or a photo.txt beside each photo"
        )
    entries.sort(key=lambda entry: entry["id"])
    table = pa.Table.from_pylist(entries, schema=INDEX)
    return table.slice(0, config.limit) if config.limit else table


def digest(index: pa.Table) -> str:
    """16 hex digits that change when an entry, a caption or a file's size changes."""
    total = hashlib.sha256()
    for row in index.to_pylist():
        total.update(json.dumps([row["id"], row["caption"], row["size"]]).encode())
    return total.hexdigest()[:16]


def fetch(row: Row, root: Path, *, max_bytes: int) -> bytes:
    """The encoded bytes of one entry.

    Args:
        row: the entry.
        root: the source's folder or file.
        max_bytes: a larger file is not read.

    Raises:
        SourceError: the file is missing, too large, unreadable or outside the source's folder.
    """
    base = root if root.is_dir() else root.parent
    path = base / row["uri"]
    if not _is_within(path, base):
        raise SourceError("outside_root", f"{row['uri']} points outside the source's folder")
    size = _size(path)
    if size is None:
        raise SourceError("missing_file", f"there is no file {row['uri']}")
    try:
        if row["member"] is not None:
            return _parquet_image(path, row["member"])
        if size > max_bytes:
            raise SourceError("too_many_bytes", f"{size} bytes, more than {max_bytes}")
        return path.read_bytes()
    except (OSError, pa.ArrowException) as error:
        raise SourceError("unreadable_file", f"{row['uri']}: {error}") from None


def _is_within(path: Path, base: Path) -> bool:
    """Whether a path stays below a folder when all links are followed."""
    try:
        return path.resolve().is_relative_to(base.resolve())
    except (OSError, ValueError, RuntimeError):  # a name no file can have; links in a circle
        return True  # there is no such file, here or elsewhere


def _size(path: Path) -> int | None:
    """Bytes of a file; None where there is none."""
    try:
        return path.stat().st_size if path.is_file() else None
    except (OSError, ValueError):  # no file can have such a name
        return None


def _folder_entries(root: Path) -> Iterator[Row]:
    if root.is_file():
        raise InputError(f"source.path: '{root}' is a file, and not a .parquet file")
    listed: Counter[str] = Counter()
    table = root / "captions.csv"
    if table.is_file():
        for file, caption in _read_captions(table):
            # One photograph may have several captions: each is an input of its own.
            # No file's name contains "//", so the id is no other file's.
            suffix = f"//{listed[file]}" if listed[file] else ""
            listed[file] += 1
            yield _entry(root, file, caption, id_=f"{file}{suffix}")
    for path in sorted(root.rglob("*")):
        # A name that is not UTF-8 is listed in escaped form, under which no file will be found.
        name = os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")
        if path.suffix.lower() in IMAGE_SUFFIXES and name not in listed and path.is_file():
            yield _entry(root, name, _read_sidecar(path, root), id_=name)


def _entry(root: Path, file: str, caption: str | None, *, id_: str) -> Row:
    size = _size(root / file)
    return {"id": id_, "uri": file, "member": None, "caption": caption, "size": size}


def _read_captions(table: Path) -> Iterator[tuple[str, str]]:
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{table} is not UTF-8 text: {error}") from None
    # A quote left open would silently swallow the lines after it; strict parsing reports it.
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = reader.fieldnames or []
        if "file" not in columns or "caption" not in columns:
            raise InputError(
                f"{table}: the first line must name the columns file and caption, it is {columns}"
            )
        for record in reader:
            if None in record:
                raise InputError(
                    f"{table}, line {reader.line_num}: more fields than the first line has; a "
                    "caption with a comma must stand in double quotes"
                )
            if record["file"] or record["caption"]:
                yield posixpath.normpath(record["file"] or ""), record["caption"] or ""
    except csv.Error as error:
        # The reader counts whole records: the broken one begins after them.
        raise InputError(f"{table}, line {reader.line_num + 1}: {error}") from None


def _read_sidecar(photo: Path, root: Path) -> str | None:
    """The caption beside a photograph; None where there is none or it cannot be read."""
    for file in (photo.with_suffix(".txt"), photo.with_suffix(".json")):
        size = _size(file)
        if size is None:
            continue
        if size > SIDECAR_BYTES or not _is_within(file, root):
            return None
        try:
            text: Any = file.read_text(encoding="utf-8-sig")
            if file.suffix == ".json":
                content = json.loads(text)
                text = next((content[key] for key in CAPTION_KEYS if key in content), None)
            text.encode()  # JSON can hold what is no text
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return None
        return text.strip()
    return None


def _parquet_files(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if root.suffix == ".parquet" else []
    return sorted(root.glob("*.parquet"))


def _parquet_entries(root: Path) -> Iterator[Row]:
    for file in _parquet_files(root):
        try:
            schema = pq.read_schema(file)
            caption = _pick(schema, CAPTION_KEYS, file, "caption")
            _pick(schema, IMAGE_COLUMNS, file, "image")
            captions = pq.read_table(file, columns=[caption])[caption]
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file} is not a sound Parquet file: {error}") from None
        size = file.stat().st_size
        for i, text in enumerate(map(_text, captions)):
            yield {
                "id": f"{file.name}#{i:09d}",
                "uri": file.name,
                "member": i,
                "caption": text,
                "size": size,
            }


def _text(value: pa.Scalar) -> str | None:
    """A caption, or None for what is none."""
    try:
        text = value.as_py()
    except UnicodeDecodeError:
        return None
    return text if isinstance(text, str) else None


def _parquet_image(path: Path, member: int) -> bytes:
    """One row's image; only its row group is read, and only the image column."""
    metadata = pq.read_metadata(path)
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if member < rows:
            value = _image_column(path, path.stat().st_mtime_ns, group)[member].as_py()
            # Hugging Face's image struct may hold a path instead of bytes: never followed, a
            # foreign file could then name any file of this machine.
            data = value.get("bytes") if isinstance(value, dict) else value
            if not isinstance(data, bytes):
                raise SourceError("no_image", f"{path.name}, row {member} holds no image bytes")
            return data
        member -= rows
    raise SourceError("no_image", f"{path.name} has no such row")


@lru_cache(maxsize=1)
def _image_column(path: Path, modified: int, group: int) -> pa.ChunkedArray:
    """The images of one row group. Kept, because the rows of a block follow one another in it."""
    del modified  # part of the key: a file written anew is read anew
    file = pq.ParquetFile(path)
    column = _pick(file.schema_arrow, IMAGE_COLUMNS, path, "image")
    return file.read_row_group(group, columns=[column])[column]


def _pick(schema: pa.Schema, names: tuple[str, ...], file: Path, what: str) -> str:
    found = [name for name in names if name in schema.names]
    if not found:
        raise InputError(
            f"{file}: no {what} column; looked for {', '.join(names)}, found "
            f"{', '.join(schema.names)}"
        )
    return found[0]
