"""The ledger: a directory of Parquet parts that is resumed row by row and committed at once.

    <ledger>/.started.json         the settings this work was begun with
    <ledger>/part-<name>.parquet   finished rows; a part appears whole or not at all
    <ledger>/.manifest.json        written last: the ledger is complete

pandas and `datasets` open the directory as one table: they pass over files whose names begin with
a dot. Ledgers made before have `started.json` and `manifest.json`, which are read too.
Any pyarrow filesystem serves: a local path, `s3://`, `gs://`. A part is named by the ids in it, or
like the part of another ledger that it was made from, so writing it twice changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from raypref import __version__
from raypref.core.config import InputError
from raypref.core.exhausted import MAKE_ROOM, NoRoomError, full_disk
from raypref.core.fingerprints import changed_keys, fingerprint
from raypref.core.messages import without_secrets

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

Where: TypeAlias = "pc.Expression | None"  # a condition on rows
Place: TypeAlias = Callable[[str, str], str]  # name and fingerprint of a ledger -> its directory
State = Literal["absent", "partial", "complete", "stale"]

STARTED, MANIFEST = ".started.json", ".manifest.json"
OLD_NAMES = {STARTED: "started.json", MANIFEST: "manifest.json"}  # in ledgers made before
UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}")  # what `_whole` calls a file until it is written


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem of a local path or URI, and the path within it.

    Raises:
        InputError: the URI is invalid, or `~user` does not exist.
    """
    try:
        if "://" in path:
            return pafs.FileSystem.from_uri(path)
        return pafs.LocalFileSystem(), str(Path(path).expanduser().absolute())
    except (pa.ArrowInvalid, RuntimeError) as error:
        raise InputError(without_secrets(f"{path} cannot be used: {error}")) from None


def absolute(path: str) -> str:
    """A local path made independent of the working directory; a URI as it is."""
    return path if "://" in path else filesystem(path)[1]


def join(base: str, *names: str) -> str:
    """A path below a local path or URI."""
    return "/".join([base.rstrip("/"), *names])


def in_folder(folder: str) -> Place:
    """Ledgers of one run: its folder holds one of each name."""
    return lambda name, fingerprint: join(folder, name)


def by_content(folder: str) -> Place:
    """Ledgers of many runs side by side: those that would hold the same rows are one."""
    return lambda name, fingerprint: join(folder, f"{name}-{fingerprint[:12]}")


def placed(place: Place, name: str, settings: Mapping[str, Any]) -> Ledger:
    """The ledger of a name and settings, where `place` puts it."""
    return Ledger(place(name, fingerprint(settings)), settings)


def write_bytes(path: str, data: bytes) -> None:
    """Write a file that appears under its name only when it is whole.

    Raises:
        NoRoomError: the disk is full; nothing is left of the attempt.
    """
    write_chunks(path, len(data), [data])


def write_chunks(path: str, count: int, chunks: Iterable[Any]) -> None:
    """As `write_bytes`, of `count` bytes that are made while they are written: buffers in order."""
    with _whole(path, count) as (fs, temporary), fs.open_output_stream(temporary) as stream:
        for chunk in chunks:
            stream.write(chunk)


def copy_in(file: Path, path: str) -> None:
    """Copy a local file of any size to where it appears only when it is whole.

    Raises:
        NoRoomError: the disk is full; nothing is left of the attempt.
    """
    with _whole(path, file.stat().st_size) as (fs, temporary):
        pafs.copy_files(str(file), temporary, pafs.LocalFileSystem(), fs)


@contextmanager
def _whole(path: str, count: int) -> Iterator[tuple[pafs.FileSystem, str]]:
    """Where to write `count` bytes; at the end they are moved to their place, or gone."""
    fs, target = filesystem(path)
    folder, _, name = target.rpartition("/")
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}"
    try:
        fs.create_dir(folder, recursive=True)
        yield fs, temporary
        fs.move(temporary, target)
    except OSError as error:
        with suppress(OSError):  # there may be none
            fs.delete_file(temporary)
        if full_disk(error):
            raise NoRoomError(f"{path}: no space left for {count:,} bytes; {MAKE_ROOM}") from error
        raise


def read_bytes(path: str) -> bytes | None:
    """The content of a file, or None where there is none."""
    fs, target = filesystem(path)
    if fs.get_file_info(target).type != pafs.FileType.File:
        return None
    with fs.open_input_stream(target) as stream:
        return bytes(stream.read())


def remove_file(path: str) -> None:
    """Remove a file, if it is there."""
    fs, target = filesystem(path)
    if fs.get_file_info(target).is_file:
        fs.delete_file(target)


def remove_unfinished(path: str) -> None:
    """Remove the half-written files of killed writers in a directory and those below it.

    Call it when nothing writes there: a write that is under way would fail.
    """
    fs, root = filesystem(path)
    for found in fs.get_file_info(pafs.FileSelector(root, allow_not_found=True, recursive=True)):
        if found.is_file and UNFINISHED.fullmatch(found.base_name):
            with suppress(OSError):  # a worker that outlived its driver may move it just now
                fs.delete_file(found.path)


def size(path: str) -> int:
    """Bytes in all files of a directory; 0 where there is none."""
    fs, root = filesystem(path)
    found = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True, recursive=True))
    return sum(f.size or 0 for f in found)


def write_table(path: str, table: pa.Table) -> None:
    """Write one Parquet file that appears under its name only when it is whole."""
    sink = pa.BufferOutputStream()
    # Row groups small enough that a reader of a few images does not load a whole part.
    pq.write_table(table, sink, compression="zstd", row_group_size=256)
    write_bytes(path, sink.getvalue().to_pybytes())


def part_name(stem: str) -> str:
    """File name of a part."""
    return f"part-{stem}.parquet"


@dataclass(frozen=True)
class Ledger:
    """One step's output.

    Args:
        path: the directory, local or URI.
        settings: every setting and input that decides the rows, flat. Their fingerprint is the
            ledger's identity: work done under other settings is never taken for this one's.
    """

    path: str
    settings: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the settings."""
        return fingerprint(self.settings)

    def state(self) -> State:
        """Whether the work is not begun, half done, done, or done under other settings."""
        started = self._json(STARTED)
        if started is None:
            return "absent"
        if started["fingerprint"] != self.fingerprint:
            return "stale"
        return "partial" if self._json(MANIFEST) is None else "complete"

    def committed(self) -> bool:
        """Whether it was declared complete, under whatever settings."""
        return self._json(MANIFEST) is not None

    def begun(self) -> dict[str, Any]:
        """With what it was begun: `fingerprint` and `settings`; empty when it was not."""
        return self._json(STARTED) or {}

    def changes(self) -> list[str]:
        """For a stale ledger: which settings differ, as `key: old -> new`."""
        started = self._json(STARTED) or {"settings": {}}
        now = json.loads(json.dumps(dict(self.settings), default=str))
        return changed_keys(started["settings"], now)

    def begin(self) -> None:
        """Record the settings. Does nothing when the work was begun before."""
        assert self.state() != "stale", f"{self.path} holds other work"
        if self.state() == "absent":
            self._write_json(STARTED, {"settings": dict(self.settings)})

    def clear(self) -> None:
        """Remove everything in the ledger."""
        fs, root = filesystem(self.path)
        # In this order: a kill in between must leave neither a complete ledger nor a new one.
        for name in (MANIFEST, OLD_NAMES[MANIFEST], *self.parts()):
            if fs.get_file_info(f"{root}/{name}").is_file:
                fs.delete_file(f"{root}/{name}")
        if fs.get_file_info(root).type == pafs.FileType.Directory:
            fs.delete_dir(root)

    def write_part(self, table: pa.Table, name: str | None = None) -> str:
        """Add finished rows; returns the part's name.

        Args:
            table: column `id` is required.
            name: one that belongs to these rows alone, as `part_name` makes; by default the ids
                make one.
        """
        if name is None:
            digest = hashlib.sha256("\0".join(table["id"].to_pylist()).encode()).hexdigest()
            name = part_name(digest[:20])
        write_table(join(self.path, name), table)
        return name

    def parts(self) -> list[str]:
        """Names of the parts, sorted."""
        fs, root = filesystem(self.path)
        found = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))
        return sorted(f.base_name for f in found if f.base_name.startswith("part-"))

    def has_part(self, name: str) -> bool:
        """Whether a part is there."""
        fs, root = filesystem(self.path)
        return bool(fs.get_file_info(f"{root}/{name}").is_file)

    def part(
        self, name: str, columns: Sequence[str] | None = None, *, where: Where = None
    ) -> pa.Table:
        """Rows of one part; `columns` and `where` limit what is read."""
        fs, root = filesystem(self.path)
        names = None if columns is None else list(columns)
        return pq.read_table(f"{root}/{name}", filesystem=fs, columns=names, filters=where)

    def count(self, where: Where = None) -> int:
        """How many rows are finished, or how many of them fulfil a condition."""
        return self._dataset().count_rows(filter=where) if self.parts() else 0

    def reasons(self) -> Counter[str]:
        """Finished rows by the reason of their reject; "ok" for the others."""
        counts: Counter[str] = Counter()
        for batch in self._dataset().to_batches(columns=["reject_reason"]):
            for entry in pc.value_counts(batch["reject_reason"]).to_pylist():
                counts[entry["values"] or "ok"] += entry["counts"]
        return counts

    def schema(self) -> pa.Schema:
        """Columns of the rows. There must be a part."""
        return self._dataset().schema

    def table(self, columns: Sequence[str] | None = None, *, where: Where = None) -> pa.Table:
        """All rows, sorted by `id`; `columns` and `where` limit what is read."""
        wanted = None if columns is None else list(dict.fromkeys(["id", *columns]))
        return self._dataset().to_table(columns=wanted, filter=where).sort_by("id")

    def batches(self, columns: Sequence[str], *, where: Where = None) -> Iterator[pa.RecordBatch]:
        """Rows in the order of the parts, many at a time."""
        if self.parts():
            yield from self._dataset().to_batches(columns=list(columns), filter=where)

    def rows(
        self,
        columns: Sequence[str] | None = None,
        *,
        where: Where = None,
        batch_size: int = 64,
    ) -> Iterator[dict[str, Any]]:
        """Rows in the order of the parts, a few in memory at a time."""
        for batch in self._dataset().to_batches(
            columns=columns, filter=where, batch_size=batch_size
        ):
            yield from batch.to_pylist()

    def done_ids(self) -> set[str]:
        """Ids of the rows that are finished."""
        if not self.parts():
            return set()
        return set(self._dataset().to_table(columns=["id"])["id"].to_pylist())

    def commit(self, *, expected: int, counts: Mapping[str, int]) -> None:
        """Declare the ledger complete; what killed writers left unfinished is removed.

        Args:
            expected: how many rows there must be.
            counts: what became of them, by reason; kept in the manifest.
        """
        total = self.count()
        assert total == expected, f"{self.path}: {total} rows finished, {expected} expected"
        manifest = {
            "rows": total,
            "counts": dict(counts),
            "parts": self.parts(),
            "versions": {"raypref": __version__, "pyarrow": pa.__version__},
            "settings": dict(self.settings),
        }
        self._write_json(MANIFEST, manifest)
        remove_unfinished(self.path)

    def manifest(self) -> dict[str, Any]:
        """What `commit` wrote. The ledger must be complete."""
        manifest = self._json(MANIFEST)
        assert manifest is not None, f"{self.path} is not complete"
        return manifest

    def drop_repeated_rows(self) -> None:
        """Keep one of rows that two parts have: a worker can outlive its driver and write on."""
        seen: set[str] = set()
        rewritten: set[str] = set()
        fs, root = filesystem(self.path)
        for part in self.parts():
            if part in rewritten:
                continue  # what was left of an earlier part has the very rows of this one
            ids = self.part(part, ["id"])["id"].to_pylist()
            fresh = [id_ not in seen and not seen.add(id_) for id_ in ids]  # type: ignore[func-returns-value]
            if not all(fresh):
                table = self.part(part).filter(pa.array(fresh))
                if table.num_rows:
                    rewritten.add(self.write_part(table))
                fs.delete_file(f"{root}/{part}")

    def _dataset(self) -> Dataset:
        from pyarrow.dataset import dataset  # brings pandas along

        fs, root = filesystem(self.path)
        files = [f"{root}/{part}" for part in self.parts()]
        return dataset(files, format="parquet", filesystem=fs)

    def _json(self, name: str) -> dict[str, Any] | None:
        data = read_bytes(join(self.path, name))
        if data is None:
            data = read_bytes(join(self.path, OLD_NAMES[name]))
        return None if data is None else json.loads(data)

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        content = {"fingerprint": self.fingerprint, **content}
        text = json.dumps(content, indent=1, sort_keys=True, default=str)
        write_bytes(join(self.path, name), text.encode())
