"""Pairs of images that people have judged, as published, and what rewards say of them."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import field_validator

from raypref.config import InputError, Location, Resources, Section, results_of, setting
from raypref.evaluate.metrics import PROPERTIES, properties
from raypref.images import BadImage, ImageConfig, decode, encode_png, open_png
from raypref.ledger import Ledger, join
from raypref.messages import first_line
from raypref.rewards.base import RewardConfig, Score
from raypref.rewards.rewards import reward_names, runtime_env
from raypref.rows import Row, Stage, reject
from raypref.streaming import StreamConfig, stream

if TYPE_CHECKING:
    import pandas as pd


class Ref(NamedTuple):
    """Where an image is: a file, or a cell of a Parquet file."""

    file: str
    row: int = 0
    column: str = ""  # empty: the file is the image


class Pair(NamedTuple):
    """Two images of one prompt and what people said."""

    prompt: str
    first: Ref
    second: Ref
    label: float  # 1 the first is preferred, 0 the second, 0.5 neither


class JudgeConfig(Section):
    """The labelled pairs that rewards are judged by."""

    pairs: Location = setting(
        "", "Parquet file or folder (pickapic), or JSON file (hpdv2, hpdv3, imagereward)"
    )
    layout: Literal["pickapic", "hpdv2", "hpdv3", "imagereward"] = setting(
        "pickapic", "how it is kept there"
    )
    images: Location = setting("", "folder that image paths are relative to; empty: the file's")
    limit: int = setting(0, "use only the first N pairs; 0 uses all", ge=0)
    min_confidence: float = setting(0.0, "HPDv3: leave out pairs below it", ge=0)
    rewards: tuple[str, ...] = setting(
        ("pickscore",), "rewards that are judged", affects_result=False
    )

    @field_validator("rewards")
    @classmethod
    def _known(cls, chosen: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(chosen) & set(reward_names())) < len(chosen):
            raise ValueError(f"each is named once and is one of: {', '.join(reward_names())}")
        return chosen

    def read(self) -> list[Pair]:
        """The pairs.

        Raises:
            InputError: the file is missing, is of another layout, or holds no pair.
        """
        if not self.pairs:
            raise InputError("judge.pairs is required: add judge.pairs=FILE")
        place = Path(self.pairs)
        if not place.exists():
            raise InputError(f"judge.pairs: no file or folder '{self.pairs}'")
        try:
            found = LAYOUTS[self.layout](place, self)
            pairs = list(itertools.islice(found, self.limit or None))
        except (KeyError, TypeError, ValueError, pa.ArrowInvalid) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"judge.pairs: '{self.pairs}' is not of the layout {self.layout} "
                f"({type(error).__name__}: {error})"
            ) from None
        if not pairs:
            raise InputError(f"judge.pairs: '{self.pairs}' holds no pair")
        return pairs


def pickapic(place: Path, config: JudgeConfig) -> Iterator[Pair]:
    """Pick-a-Pic: `caption`, `jpg_0`, `jpg_1`, `label_0`; rows without a human choice are none."""
    for file in sorted(place.glob("*.parquet")) if place.is_dir() else [place]:
        with pq.ParquetFile(file) as table:
            there = set(table.schema_arrow.names)
            optional = [name for name in ("has_label",) if name in there]
            rows = table.read(columns=["caption", "label_0", *optional]).to_pylist()
        for number, row in enumerate(rows):
            if row.get("has_label", True):
                first, second = (Ref(str(file), number, f"jpg_{side}") for side in (0, 1))
                yield Pair(row["caption"], first, second, float(row["label_0"]))


def hpdv2(place: Path, config: JudgeConfig) -> Iterator[Pair]:
    """HPDv2: `test.json` (image_path, rank) or `train.json` (file_path, human_preference)."""
    for record in _records(place):
        if "rank" in record:
            yield from _ranked(record, "image_path", "rank", place, config)
        else:
            preferred = [-int(liked) for liked in record["human_preference"]]
            yield from _ranked({**record, "rank": preferred}, "file_path", "rank", place, config)


def hpdv3(place: Path, config: JudgeConfig) -> Iterator[Pair]:
    """HPDv3: `path1` is preferred to `path2`; the sides are swapped in every second pair.

    Otherwise a reward that always prefers the first would be right.
    """
    for number, record in enumerate(_records(place)):
        confidence = record.get("confidence")
        if confidence is None or float(confidence) >= config.min_confidence:
            paths = [_path(record[f"path{side}"], place, config) for side in (1, 2)]
            first, second = paths[:: -1 if number % 2 else 1]
            yield Pair(record["prompt"], first, second, float(number % 2 == 0))


def imagereward(place: Path, config: JudgeConfig) -> Iterator[Pair]:
    """ImageRewardDB: `generations` with `ranking`, lower is better; equal ranks are no pair."""
    for record in _records(place):
        yield from _ranked(record, "generations", "ranking", place, config)


LAYOUTS: dict[str, Callable[[Path, JudgeConfig], Iterator[Pair]]] = {
    "pickapic": pickapic,
    "hpdv2": hpdv2,
    "hpdv3": hpdv3,
    "imagereward": imagereward,
}


class Judging:
    """Scores of labelled pairs: one ledger a reward, filled once.

    Args:
        config: the pairs.
        rewards: settings of the rewards that are judged, by name.
        folder: where the ledgers are kept, local or URI.
    """

    def __init__(
        self, config: JudgeConfig, rewards: dict[str, RewardConfig], *, folder: str
    ) -> None:
        self.config = config
        self.rewards = rewards
        self.folder = folder
        self.pairs = config.read()
        text = json.dumps(self.pairs).encode()
        self.digest = hashlib.sha256(text).hexdigest()[:16]

    def run(self, streaming: StreamConfig) -> pd.DataFrame:
        """Score what is not scored yet.

        Returns:
            The pairs as `judge.accuracy` and `judge.bias` take them.
        """
        import pandas as pd

        images = dict.fromkeys(
            (ref, pair.prompt) for pair in self.pairs for ref in (pair.first, pair.second)
        )
        rows = pa.table(
            {
                "id": [_id(ref, prompt) for ref, prompt in images],
                "file": [ref.file for ref, _ in images],
                "row": [ref.row for ref, _ in images],
                "column": [ref.column for ref, _ in images],
                "prompt": [prompt for _, prompt in images],
            }
        )
        stages: dict[str, tuple[Stage, RewardConfig | str]] = {"properties": (Properties(), "")}
        for name, config in self.rewards.items():
            stages[name] = (Score(config, columns={"image": name}, prompt="prompt"), config)
        frame = pd.DataFrame(self.pairs)
        for name, (stage, settings) in stages.items():
            parts = {"pairs": self.digest, name: settings}
            ledger = Ledger(join(self.folder, name), results_of(parts))
            if ledger.state() == "stale":
                ledger.clear()
            if ledger.state() != "complete":
                columns = stage.writes.names
                stream(
                    rows,
                    stages=[Load(), stage],
                    ledger=ledger,
                    keep=columns,
                    config=streaming,
                    runtime_env=None if isinstance(settings, str) else runtime_env(settings),
                )
            known = ledger.table(stage.writes.names).to_pandas().set_index("id")
            for column in stage.writes.names:
                first, second = (
                    known.loc[ids, column].to_numpy()
                    for ids in (
                        [_id(pair.first, pair.prompt) for pair in self.pairs],
                        [_id(pair.second, pair.prompt) for pair in self.pairs],
                    )
                )
                frame[column] = first - second
        return frame


class Load:
    """Stage: the image that a reference names, as PNG bytes; broken ones are rejected."""

    name = "load"
    reads: tuple[str, ...] = Ref._fields
    writes = pa.schema([("image", pa.binary())])
    resources = Resources(workers=0, batch=8)

    def setup(self) -> None:
        """Nothing to load."""
        self.limits = ImageConfig()

    def __call__(self, rows: list[Row]) -> None:
        """Fill the column."""
        for row in rows:
            ref = Ref(row["file"], row["row"], row["column"])
            try:
                row["image"] = encode_png(decode(_bytes(ref), self.limits))
            except FileNotFoundError:
                reject(row, self.name, "missing", f"no image '{ref.file}'")
            except BadImage as error:
                reject(row, self.name, error.reason, str(error))
            except (OSError, pa.ArrowException) as error:
                message = f"'{ref.file}' cannot be read: {first_line(error)}"
                reject(row, self.name, "unreadable_file", message)


class Properties:
    """Stage: what an image looks like, whatever it shows (`metrics.properties`)."""

    name = "properties"
    reads: tuple[str, ...] = ("image",)
    writes = pa.schema([(name, pa.float64()) for name in PROPERTIES])
    resources = Resources(workers=0, batch=8)

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, rows: list[Row]) -> None:
        """Fill the columns."""
        for row in rows:
            row.update(properties(open_png(row["image"])))


def _records(place: Path) -> Iterator[dict[str, Any]]:
    try:
        records = json.loads(place.read_text(encoding="utf-8"))
    except IsADirectoryError:
        raise InputError(f"judge.pairs: '{place}' is a folder; name its JSON file") from None
    yield from records


def _ranked(
    record: dict[str, Any], paths: str, ranks: str, place: Path, config: JudgeConfig
) -> Iterator[Pair]:
    ranked: Sequence[tuple[str, float]] = list(zip(record[paths], record[ranks], strict=True))
    for (one, own), (two, other) in itertools.combinations(ranked, 2):
        if own != other:
            first, second = (_path(path, place, config) for path in (one, two))
            yield Pair(record["prompt"], first, second, float(own < other))


def _id(ref: Ref, prompt: str) -> str:
    return json.dumps([*ref, prompt])


def _path(name: str, place: Path, config: JudgeConfig) -> Ref:
    root = Path(config.images or place.parent).resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise InputError(f"judge.pairs: the image '{name}' lies outside of '{root}'")
    return Ref(str(path))


def _bytes(ref: Ref) -> bytes:
    if not ref.column:
        return Path(ref.file).read_bytes()
    first, group = _group_of(ref.file, ref.row)
    value = _cells(ref.file, ref.column, group).at(ref.row - first)
    return bytes(value["bytes"] if isinstance(value, dict) else value or b"")


@lru_cache(maxsize=64)
def _groups(file: str) -> list[int]:
    """The first row of each row group, and the number of rows."""
    metadata = pq.read_metadata(file)
    rows = (metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
    return list(itertools.accumulate(rows, initial=0))


def _group_of(file: str, row: int) -> tuple[int, int]:
    """The first row of the group that a row is in, and the group's number."""
    number = bisect.bisect_right(_groups(file), row) - 1
    return _groups(file)[number], number


class _Cells:
    """One column of one row group, a row at a time: a small file can unpack to any size."""

    def __init__(self, file: str, column: str, group: int) -> None:
        self.file, self.column, self.group = file, column, group
        self.last = -1  # the row that was read last
        self.cell: pa.Array | None = None
        self.rows: Iterator[pa.RecordBatch] | None = None
        self.lock = threading.Lock()  # a worker may read two blocks at a time

    def at(self, row: int) -> Any:
        """The cell of a row of the group. Rows are asked for in order, or it begins anew."""
        with self.lock:
            rows, self.rows = self.rows, None  # after an error in between it begins anew
            if rows is None or row < self.last:
                table = pq.ParquetFile(self.file)
                rows = table.iter_batches(1, row_groups=[self.group], columns=[self.column])
                self.last = -1
            for batch in itertools.islice(rows, row - self.last):
                self.cell = batch[self.column]
                self.last += 1
            assert self.cell is not None and self.last == row, f"{self.file} has no such row"
            self.rows = rows
            return self.cell[0].as_py()


@lru_cache(maxsize=4)  # both images of a row, of two blocks at a time
def _cells(file: str, column: str, group: int) -> _Cells:
    return _Cells(file, column, group)
