"""One cell of a Parquet file: the right one in any order, and no more of the file in memory."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypref.sources import cells
from raypref.sources.store import SourceError, locate


def cell(file: Path, row: int, column: str = "jpg_0") -> bytes:
    return cells.image(locate(str(file)), file.name, column, row, max_bytes=2**30)


def test_a_small_file_that_unpacks_to_much_is_read_a_row_at_a_time(tmp_path):
    """Two MiB that a dictionary names a hundred times: 200 MiB as one column."""
    file = tmp_path / "pairs.parquet"
    data = np.random.default_rng(0).bytes(2**21)
    named = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array([data]))
    pq.write_table(
        pa.table({"jpg_0": named}), file, store_schema=False, dictionary_pagesize_limit=2**26
    )
    before = pa.total_allocated_bytes()
    for row in range(100):
        assert cell(file, row) == data
        assert pa.total_allocated_bytes() - before < 2**25


@contextmanager
def most_allocated() -> Iterator[list[int]]:
    """Bytes that Arrow and Python held at most within, put into the list at its end."""
    before, most = pa.default_memory_pool(), []
    pool = pa.proxy_memory_pool(before)  # which counts from here on
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        yield most
    finally:
        cells._cursors.clear()  # a pool must not go before what came from it
        pa.set_memory_pool(before)
        most.append(pool.max_memory() + tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()


@pytest.mark.parametrize("compression", ["none", "snappy"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_row_group_that_is_larger_than_the_cap_is_read_in_bounded_memory(
    nested, compression, tmp_path, monkeypatch
):
    """As other writers cut them: one row group for all, in pages of some megabytes."""
    images = [np.random.default_rng(i).bytes(2**18) for i in range(256)]  # 64 MiB
    values = [{"bytes": image, "path": None} for image in images] if nested else images
    file = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"jpg_0": values}), file, compression=compression, write_batch_size=8)
    assert pq.read_metadata(file).num_row_groups == 1
    monkeypatch.setattr(cells, "GROUP_BYTES", 2**23)
    monkeypatch.setattr(cells, "KEPT_BYTES", 2**21)
    with most_allocated() as most:
        for row, image in enumerate(images):
            assert cell(file, row) == image
        for row in (250, 3, 4, 255, 0):  # in any order too, at a price
            assert cell(file, row) == images[row]
    assert most[0] < 2**24, "the buffers, pages and rows of two cursors"


def test_a_small_row_group_that_unpacks_to_gigabytes_is_dropped_with_the_fix(tmp_path, monkeypatch):
    file = tmp_path / "pairs.parquet"
    pq.write_table(
        pa.table({"jpg_0": [bytes(2**20)] * 8}), file, compression="zstd", use_dictionary=False
    )
    assert file.stat().st_size < 2**16
    monkeypatch.setattr(cells, "GROUP_BYTES", 2**22)
    with pytest.raises(SourceError, match=r"row group 0 unpacks .* row_group_size=100") as caught:
        cell(file, 0)
    assert caught.value.reason == "too_many_bytes"


def test_every_cell_is_that_of_its_row_in_any_order(tmp_path):
    file = tmp_path / "pairs.parquet"
    cells = [f"image {row}".encode() for row in range(23)]
    table = pa.table({"jpg_0": cells, "jpg_1": [{"bytes": c, "path": None} for c in cells[::-1]]})
    pq.write_table(table, file, row_group_size=5)
    order = [*range(23), *range(22, -1, -1), 7, 7, 3, 19]
    for row in order:
        assert cell(file, row) == cells[row]
        assert cell(file, row, "jpg_1") == cells[22 - row]


def test_a_damaged_row_is_never_another_rows_image(tmp_path):
    """After an error in the middle, what follows fails too or is right; it is no earlier image."""
    file = tmp_path / "pairs.parquet"
    cells = [bytes([row]) * 3000 for row in range(40)]
    pq.write_table(
        pa.table({"jpg_0": cells}),
        file,
        use_dictionary=False,
        data_page_size=6000,
        compression="zstd",
        write_page_checksum=True,
    )
    data = bytearray(file.read_bytes())
    whole = {row: cell(file, row) for row in range(40)}
    assert whole == dict(enumerate(cells))
    seen = set()
    for place in range(8, len(data) - 2000, 97):
        bad = bytearray(data)
        bad[place] ^= 0xFF
        damaged = tmp_path / f"{place}.parquet"
        damaged.write_bytes(bad)
        for row in range(40):
            try:
                got = cell(damaged, row)
            except SourceError as error:
                seen.add(error.reason)
            else:
                assert len(got) != 3000 or got == cells[row] or got[0] not in range(row)
    assert seen == {"unreadable_file"}


@pytest.mark.parametrize("kept", [2**28, 0], ids=["kept", "too large to keep"])
def test_readers_side_by_side_get_their_own_rows(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "KEPT_BYTES", kept)
    file = tmp_path / "pairs.parquet"
    images = [f"image {row}".encode() for row in range(300)]
    pq.write_table(pa.table({"jpg_0": images}), file, row_group_size=150)
    wrong = []

    def read(seed: int) -> None:
        for row in np.random.default_rng(seed).permutation(300)[:100].tolist():
            if cell(file, row) != images[row]:
                wrong.append(row)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(cells._cursors) <= cells.CURSORS


def test_a_file_written_anew_is_read_anew(tmp_path):
    file = tmp_path / "pairs.parquet"
    for images in ([b"one", b"two"], [b"three", b"four"]):
        pq.write_table(pa.table({"jpg_0": images}), file)
        assert [cell(file, row) for row in (1, 0)] == images[::-1]


@pytest.mark.parametrize("row", [-1, 2])
def test_a_row_or_column_that_is_not_there(row, tmp_path):
    file = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"jpg_0": [b"one", b"two"]}), file)
    with pytest.raises(SourceError) as caught:
        cell(file, row)
    assert caught.value.reason == "no_image"
    with pytest.raises(SourceError) as caught:
        cell(file, 0, "jpg_7")
    assert caught.value.reason == "unreadable_file"
