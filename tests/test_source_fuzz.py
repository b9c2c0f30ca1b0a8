"""Sources with bytes changed at random: an input is used, dropped, or refused in a line."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from layout_examples import EXAMPLES, SECOND
from test_shards import JPEG, shard

from raypref.core.config import InputError
from raypref.curate.transforms import MeasurePhotograph
from raypref.images.decode import ImageConfig
from raypref.judge.pairs import JudgeConfig, Judging, Load
from raypref.sources.found import findings
from raypref.sources.index import SourceConfig, digest, entries, index_schema
from raypref.sources.layouts import giving
from raypref.sources.pairs import labelled_images, labelled_pairs
from raypref.sources.store import locate

TRIES = 200
BITS = [
    b"\0",
    b"\xff",
    b'"',
    b"\n",
    b",",
    b"{",
    b"..",
    b"/",
    b"\\",
    b"caption",
    b"file",
    b"\xcc\x81",
]


def changed(data: bytes, rng: random.Random) -> bytes:
    """Bytes with a few places overwritten, cut out, repeated or filled."""
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(data) + 1)
        length = rng.choice((0, 1, 3, 40))
        other = rng.choice([*BITS, rng.randbytes(3), data[start : start + 60], b""])
        data = data[:start] + other + data[start + length :]
    return data


def folder(root: Path, rng: random.Random) -> str:
    (root / "sub").mkdir()
    names = ["a.jpg", "sub/b.JPG", "cafe\u0301.png", "a.mask.png"]
    for name in names:
        (root / name).write_bytes(JPEG)
    table = "file,caption\n" + "".join(f'{name},"a, b"\n' for name in [*names, "gone.jpg"])
    target = rng.choice(["captions.csv", "sub/captions.csv", "metadata.csv", "sub/metadata.csv"])
    (root / target).write_bytes(changed(table.encode(), rng))
    (root / "a.txt").write_bytes(changed(b"a caption\n", rng))
    (root / "sub/b.json").write_bytes(changed(b'{"caption": "b", "id": 3}', rng))
    return "auto"


def jsonl(root: Path, rng: random.Random) -> str:
    (root / "a.jpg").write_bytes(JPEG)
    names = ["a.jpg", "A.JPG", "..", "/", "", "x\\a.jpg"]
    lines = [json.dumps({rng.choice(["file", "image"]): n, "text": "x"}) for n in names]
    for name in ("0.jsonl", "1.jsonl", "metadata.jsonl"):
        (root / name).write_bytes(changed("\n".join(lines).encode(), rng))
    return rng.choice(["jsonl", "auto"])


def tar(root: Path, rng: random.Random) -> str:
    members = [(f"{n}{end}", JPEG) for n in "abc" for end in (".jpg", ".mask.png")]
    members += [(f"{n}{end}", b'{"text": "x"}') for n in "abc" for end in (".txt", ".json")]
    rng.shuffle(members)
    write_shards(root, members, rng)
    return "webdataset"


def brushdata(root: Path, rng: random.Random) -> str:
    texts = {"caption": b"x", "segmentation": b'{"mask": ["1,2"]}', "height": b"9", "width": b"x"}
    parts = {"image": JPEG, **texts}
    members = [(f"{name}.{end}", data) for name in "abc" for end, data in parts.items()]
    write_shards(root, members, rng)
    return "brushdata"


def write_shards(root: Path, members: list[tuple[str, bytes]], rng: random.Random) -> None:
    for name in ("0.tar", "1.tar"):
        shard(root / name, members)
        data = (root / name).read_bytes()
        headers = bytearray(data)
        for _ in range(rng.randint(0, 3)):
            headers[rng.randrange(len(members)) * 1024 + rng.randrange(512)] = rng.randrange(256)
        (root / name).write_bytes(changed(bytes(headers), rng) if rng.random() < 0.5 else headers)


def parquet(root: Path, rng: random.Random) -> str:
    columns = [
        pa.array(["x", None, "z"]),
        pa.array([["x", "y"], [], None]),
        pa.array([{"a": 1}] * 3),
        pa.array([JPEG, None, b""]),
        pa.array([{"bytes": JPEG, "path": "../x"}] * 3),
        pa.array(["a.jpg", "../b.jpg", ""]),
        pa.array([1, 2, 3]),
        pa.array([None] * 3),
        pa.array(["x", "y", "x"]).dictionary_encode(),
    ]
    (root / "a.jpg").write_bytes(JPEG)
    for number in range(2):
        names = [rng.choice(["image", "path", "jpg"]), rng.choice(["caption", "text"])]
        table = pa.table(
            [rng.choice(columns) for _ in range(3)], [*names, rng.choice([*names, "n"])]
        )
        pq.write_table(table, root / f"{number}.parquet")
        if rng.random() < 0.5:
            file = root / f"{number}.parquet"
            file.write_bytes(changed(file.read_bytes(), rng))
    return rng.choice(["parquet", "pickapic"]) if rng.random() < 0.2 else "parquet"


@pytest.mark.parametrize(
    "make", [folder, jsonl, tar, brushdata, parquet], ids=lambda make: make.__name__
)
def test_whatever_is_changed_every_input_ends_somewhere(make, tmp_path):
    ends = set()
    for seed in range(TRIES):
        rng = random.Random(seed)
        root = tmp_path / str(seed)
        root.mkdir()
        source = SourceConfig(path=str(root), layout=make(root, rng))
        try:
            rows = list(entries(source))
            digest(source)
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000, seed
            ends.add("refused")
            continue
        assert len({row["id"] for row in rows}) == len(rows), seed
        assert pa.Table.from_pylist(rows, schema=index_schema(source)).to_pylist() == rows, seed
        list(findings(rows, source.store()))
        measure = MeasurePhotograph(source, ImageConfig(size=32))
        measure.setup()
        measure(rows)
        ends |= {row.get("reject_reason") or "used" for row in rows}
    assert "used" in ends and len(ends) > 2


@pytest.mark.parametrize("layout", giving("pairs"))
def test_whatever_is_changed_pairs_are_refused_in_a_line_or_their_images_end_somewhere(
    layout, tmp_path
):
    ends = set()
    for seed in range(TRIES):
        rng = random.Random(seed)
        root = tmp_path / str(seed)
        root.mkdir()
        write = EXAMPLES[layout].pairs or EXAMPLES[layout].write
        write(root, SECOND, rng.choice(["b.png", "gone.png", ".", "x.png/b"]))
        forms = (".json", ".parquet", ".csv", ".tar")
        file = next(file for file in root.iterdir() if file.suffix in forms)
        file.write_bytes(changed(file.read_bytes(), rng))
        config = JudgeConfig(pairs=str(rng.choice([root, file])), layout=layout)
        try:
            pairs = config.read()
            Judging(config, {}, folder=str(tmp_path))
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000, seed
            ends.add("refused")
            continue
        rows = [ref._asdict() for pair in pairs for ref in (pair.first, pair.second)]
        load = Load(config)
        load.setup()
        load(rows)
        ends |= {row.get("reject_reason") or "used" for row in rows}
    assert {"used", "refused"} < ends


LISTINGS = [
    *((name, "pairs", labelled_pairs) for name in giving("pairs")),
    *((name, "images", labelled_images) for name in giving("images")),
]


@pytest.mark.parametrize(("layout", "what", "listing"), LISTINGS)
def test_whatever_is_changed_labels_are_refused_in_a_line_or_each_ends_somewhere(
    layout, what, listing, tmp_path
):
    ends = set()
    for seed in range(TRIES):
        rng = random.Random(seed)
        root = tmp_path / str(seed)
        root.mkdir()
        write = getattr(EXAMPLES[layout], what) or EXAMPLES[layout].write
        write(root, SECOND, rng.choice(["b.png", "../b.png", "a.png", "x\\b.png", "http://b.png"]))
        forms = (".json", ".parquet", ".csv", ".tar")
        file = next(file for file in root.iterdir() if file.suffix in forms)
        file.write_bytes(changed(file.read_bytes(), rng))
        store = locate(str(rng.choice([root, file])))
        try:
            entries = list(listing(store, rng.choice(["auto", layout])))
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000, seed
            ends.add("refused")
            continue
        assert len({entry.id for entry in entries}) == len(entries), seed
        for entry in entries:
            assert "\n" not in entry.problem and entry.prompt.encode() is not None, seed
            ends.add(entry.problem.partition(":")[0] or "used")
    assert {"used", "refused"} <= ends
