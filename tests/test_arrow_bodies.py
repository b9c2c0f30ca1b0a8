"""Arrow files from strangers: what would not fit in memory is refused before it is unpacked."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest

from raypref.core.config import InputError
from raypref.sources import arrow, arrow_bodies, cells
from raypref.sources.pairs import image_bytes, labelled_pairs
from raypref.sources.store import SourceError, locate

NAMES = ("prompt", "chosen", "rejected")


def written(file: Path, batches: list[pa.RecordBatch], codec: str | None) -> Path:
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with (
        pa.OSFile(str(file), "wb") as sink,
        pa.ipc.new_stream(sink, batches[0].schema, options=options) as stream,
    ):
        for batch in batches:
            stream.write_batch(batch)
    return file


def batch(*rows: tuple[str, bytes, bytes]) -> pa.RecordBatch:
    return pa.record_batch([list(column) for column in zip(*rows, strict=True)], names=NAMES)


def rows(start: int) -> list[tuple[str, bytes, bytes]]:
    return [(f"p {n}", bytes([n]) * 999, bytes([n + 1]) * 777) for n in range(start, start + 9)]


@pytest.mark.parametrize("codec", ["zstd", "lz4", None])
def test_a_file_of_any_compression_is_read_whole(codec: str | None, tmp_path: Path) -> None:
    written(tmp_path / "0.arrow", [batch(*rows(0)), batch(*rows(9))], codec)
    store = locate(str(tmp_path))
    pairs = list(labelled_pairs(store, "labelled"))
    assert [pair.prompt for pair in pairs] == [f"p {n}" for n in range(18)]
    for pair, (_, chosen, rejected) in zip(pairs, rows(0) + rows(9), strict=True):
        assert image_bytes(pair.first, store, store, max_bytes=10**4) == chosen
        assert image_bytes(pair.second, store, store, max_bytes=10**4) == rejected


def test_dictionaries_are_read(tmp_path: Path) -> None:
    column = pa.array(["a", "b", "a"]).dictionary_encode()
    written(tmp_path / "0.arrow", [pa.record_batch([column], names=["prompt"])], "zstd")
    store = locate(str(tmp_path))
    assert [row[0].as_py() for row in arrow.saved_rows(store, "0.arrow", ["prompt"])] == [
        *("a", "b", "a"),
    ]


def test_a_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "0.arrow", [batch(("p", bytes(2**26), b"x"))], "zstd")
    assert file.stat().st_size < 10_000
    monkeypatch.setattr(arrow_bodies, "UNPACKED", 2**20)
    store = locate(str(tmp_path))
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    for read in (
        lambda: list(arrow.saved_rows(store, "0.arrow", ["prompt"])),
        lambda: arrow.cell(store, "0.arrow", file.stat().st_size, "chosen", 0),
    ):
        with pytest.raises(SourceError, match=r"a batch unpacks from \d+ bytes to 67") as e:
            read()
        assert e.value.reason == "too_many_bytes"
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert pa.total_allocated_bytes() - before < 2**24
    with pytest.raises(InputError, match="unpacks from"):
        list(labelled_pairs(store, "labelled"))


@pytest.mark.parametrize("codec", ["zstd", None])
def test_no_batch_is_larger_than_a_row_group_may_be(
    codec: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = batch(*rows(0)), batch(*[("p", bytes(4000), b"x")] * 9)
    written(tmp_path / "0.arrow", [small, large], codec)
    monkeypatch.setattr(cells, "GROUP_BYTES", 20_000)
    found = arrow.saved_rows(locate(str(tmp_path)), "0.arrow", ["prompt"])
    assert [next(found)[0].as_py() for _ in range(9)] == [f"p {n}" for n in range(9)]
    with pytest.raises(SourceError, match="too many; write it anew"):
        next(found)


def test_dictionaries_count_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [pa.array([str(n) * 3000]).dictionary_encode() for n in range(9)]
    named = pa.record_batch(columns, names=[str(n) for n in range(9)])
    written(tmp_path / "0.arrow", [named], "zstd")
    monkeypatch.setattr(cells, "GROUP_BYTES", 20_000)
    with pytest.raises(SourceError, match="too many"):
        list(arrow.saved_rows(locate(str(tmp_path)), "0.arrow", ["0"]))


def test_what_is_no_message_is_no_crash() -> None:
    whole = io.BytesIO()
    with pa.ipc.new_stream(whole, batch(*rows(0)).schema) as stream:
        stream.write_batch(batch(*rows(0)))
    for place in range(len(whole.getvalue()) // 2):
        data = bytearray(whole.getvalue())
        data[place] ^= 0xFF
        opened = io.BufferedReader(io.BytesIO(bytes(data)))  # type: ignore[arg-type]
        checked = arrow_bodies.CheckedStream(opened, "f")
        try:
            assert checked.read() == data
        except (ValueError, SourceError):
            continue
