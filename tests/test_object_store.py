"""Sources and ledgers in an object store: a real S3 protocol server, started here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from corpus import encode, scene
from layout_examples import EXAMPLES, FIRST, SECOND
from moto.server import ThreadedMotoServer
from pyarrow import fs as pafs
from test_shards import shard

from raypref.core.config import InputError
from raypref.core.ledger import Ledger, join, read_bytes, write_bytes
from raypref.judge.pairs import JudgeConfig, Judging, Load
from raypref.sources.index import SourceConfig, digest, entries, fetch
from raypref.sources.layouts import giving
from raypref.sources.prompt_files import read_prompts
from raypref.sources.store import SourceError

JPEG = encode(scene(), "JPEG")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URI of an empty bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        fs, name = pafs.FileSystem.from_uri("s3://photos?allow_bucket_creation=true")
        fs.create_dir(name)
        yield "s3://photos"
    server.stop()


def put(uri: str, name: str, data: bytes) -> None:
    write_bytes(join(uri, name), data)


def test_a_folder_of_photographs(bucket: str) -> None:
    root = join(bucket, "set")
    put(root, "a.jpg", JPEG)
    put(root, "sub/b.jpg", JPEG)
    put(root, "sub/b.txt", b"below")
    put(root, "captions.csv", b"file,caption\na.jpg,one\n../c.jpg,outside\ngone.jpg,gone\n")
    put(bucket, "c.jpg", JPEG)
    source = SourceConfig(path=root)
    rows = list(entries(source))
    assert [(row["id"], row["caption"], row["size"]) for row in rows] == [
        ("../c.jpg", "outside", None),
        ("a.jpg", "one", len(JPEG)),
        ("gone.jpg", "gone", None),
        ("sub/b.jpg", "below", len(JPEG)),
    ]
    store = source.store()
    assert fetch(rows[1], store, max_bytes=10**6) == JPEG
    for row, reason in ((rows[0], "outside_root"), (rows[2], "missing_file")):
        with pytest.raises(SourceError) as caught:
            fetch(row, store, max_bytes=10**6)
        assert caught.value.reason == reason
    before = digest(source)
    put(root, "a.jpg", JPEG + b"\0")
    assert digest(source) != before


def test_an_index_of_many_photographs_takes_few_requests(
    bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = join(bucket, "many")
    for number in range(20):
        put(root, f"images/{number}.jpg", JPEG + bytes(number))
    names = [*(f"images/{number}.jpg" for number in range(20)), "images/gone.jpg", "../set/a.jpg"]
    lines = [f'{{"file": "{name}", "caption": "x"}}' for name in names]
    put(root, "index.jsonl", "\n".join(lines).encode())
    source = SourceConfig(path=join(root, "index.jsonl"))
    caplog.clear()
    with caplog.at_level("INFO", "werkzeug"):
        rows = list(entries(source))
    assert [row["size"] for row in rows] == [len(JPEG) + n for n in range(20)] + [None, None]
    assert len(caplog.records) < 10


def test_shards_are_read_where_they_lie(bucket: str, tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", [("x.jpg", JPEG), ("x.txt", b"one"), ("y.jpg", JPEG + b"\0")])
    put(join(bucket, "shards"), "0.tar", (tmp_path / "0.tar").read_bytes())
    for path in (join(bucket, "shards"), join(bucket, "shards", "0.tar")):
        source = SourceConfig(path=path)
        rows = list(entries(source))
        assert [row["caption"] for row in rows] == ["one", None]
        store = source.store()
        assert [fetch(row, store, max_bytes=10**6) for row in rows] == [JPEG, JPEG + b"\0"]


def test_a_jsonl_index(bucket: str) -> None:
    root = join(bucket, "lines")
    put(root, "all.jsonl", b'{"file": "a.jpg", "caption": "one"}\n{"file": "b.jpg"}\n')
    put(root, "a.jpg", JPEG)
    source = SourceConfig(path=root, layout="jsonl")
    rows = list(entries(source))
    assert [(row["uri"], row["caption"]) for row in rows] == [("a.jpg", "one"), ("b.jpg", None)]
    assert fetch(rows[0], source.store(), max_bytes=10**6) == JPEG


def test_parquet(bucket: str) -> None:
    table = pa.table({"image": [JPEG, JPEG + b"\0"], "caption": ["one", "two"]})
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table, sink)
    put(join(bucket, "table"), "0.parquet", sink.getvalue().to_pybytes())
    source = SourceConfig(path=join(bucket, "table"))
    rows = list(entries(source))
    store = source.store()
    assert [fetch(row, store, max_bytes=10**6) for row in rows] == [JPEG, JPEG + b"\0"]


def test_what_is_not_there_is_named(bucket: str) -> None:
    with pytest.raises(InputError, match="there is no folder or file 's3://photos/none'"):
        SourceConfig(path=join(bucket, "none")).store()
    with pytest.raises(InputError, match="s3://no-such-bucket"):
        SourceConfig(path="s3://no-such-bucket/x").store()


def test_a_ledger(bucket: str) -> None:
    ledger = Ledger(join(bucket, "runs", "x", "pairs"), {"a": 1})
    assert ledger.state() == "absent" and ledger.parts() == []
    ledger.begin()
    name = ledger.write_part(pa.table({"id": ["a", "b"], "n": [1, 2]}))
    assert ledger.state() == "partial"
    ledger.commit(expected=2, counts={"ok": 2})
    assert ledger.state() == "complete" and ledger.parts() == [name]
    assert ledger.table(["n"]).to_pydict() == {"id": ["a", "b"], "n": [1, 2]}
    other = Ledger(ledger.path, {"a": 2})
    assert other.state() == "stale" and other.changes() == ["a: 1 -> 2"]
    other.clear()
    assert ledger.state() == "absent"
    assert read_bytes(join(ledger.path, ".manifest.json")) is None


def put_example(layout: str, bucket: str, folder: Path, *, pairs: bool = False) -> str:
    """The URI of the example's dataset."""
    write = (EXAMPLES[layout].pairs if pairs else None) or EXAMPLES[layout].write
    write(folder, SECOND, "b.png")
    root = join(bucket, f"examples/{layout}")
    for file in folder.rglob("*.*"):
        put(root, file.relative_to(folder).as_posix(), file.read_bytes())
    return root


@pytest.mark.parametrize("layout", giving("photographs"))
def test_photographs_of_every_layout(layout: str, bucket: str, tmp_path: Path) -> None:
    source = SourceConfig(path=put_example(layout, bucket, tmp_path), layout=layout)
    rows = list(entries(source))
    assert rows == list(entries(SourceConfig(path=str(tmp_path), layout=layout)))
    store = source.store()
    assert [fetch(row, store, max_bytes=10**6) for row in rows] == [FIRST, SECOND]


@pytest.mark.parametrize("layout", giving("pairs"))
def test_pairs_of_every_layout(layout: str, bucket: str, tmp_path: Path) -> None:
    root = put_example(layout, bucket, tmp_path, pairs=True)
    ends = (".json", ".parquet", ".csv", ".tar")
    file = next(file for file in tmp_path.iterdir() if file.suffix in ends)
    local = JudgeConfig(pairs=str(tmp_path), layout=layout).read()
    for pairs in (root, join(root, file.name)):
        judging = Judging(JudgeConfig(pairs=pairs, layout=layout), {}, folder=str(tmp_path))
        assert judging.pairs == local and judging.id(local[0].first, "x").startswith(f'["{root}/')
        rows = [ref._asdict() for pair in local for ref in (pair.first, pair.second)]
        load = Load(judging.config)
        load.setup()
        load(rows)
        assert all("image" in row for row in rows)


@pytest.mark.parametrize("layout", giving("prompts"))
def test_prompts_of_every_layout(layout: str, bucket: str, tmp_path: Path) -> None:
    file = join(put_example(layout, bucket, tmp_path), EXAMPLES[layout].prompts)
    assert [prompt.text for prompt in read_prompts(file, limit=None)] == ["one", "two"]
    with pytest.raises(InputError, match=r"evaluate\.prompts: there is no folder or file 's3://"):
        read_prompts(join(bucket, "none.txt"), limit=None)
