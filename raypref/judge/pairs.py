"""Pairs of images that people have judged, as published, and what rewards say of them."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import posixpath
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated

import pyarrow as pa
from pydantic import AfterValidator

from raypref.core.config import InputError, Location, Resources, Section, results_of, setting
from raypref.core.ledger import Ledger, join
from raypref.core.rows import Row, Transform, reject
from raypref.engine.stream import StreamConfig, stream
from raypref.images.decode import BadImage, ImageConfig, decode, encode_png, open_png
from raypref.images.looks import LOOKS, looks
from raypref.rewards.base import Score
from raypref.rewards.config import RewardConfig
from raypref.sources.base import Pair, Ref
from raypref.sources.layouts import REGISTRY, known
from raypref.sources.pairs import image_bytes, images_beside, labelled_pairs
from raypref.sources.reading import shown
from raypref.sources.store import RemoteStore, SourceError, Store, locate

if TYPE_CHECKING:
    import pandas as pd

# Those of `images.looks` that are compared with people's: ledgers made before hold these alone.
PROPERTIES = tuple(name for name in LOOKS if name != "texture")
# A source's reasons that this ledger knows by another word.
_REASONS = {"missing_file": "missing", "no_image": "empty"}
# Of a reward these ask no less than other pairs.
_USED = ("same_image:", "no_caption:", "bad_caption:")


class JudgeConfig(Section):
    """The labelled pairs that rewards are judged by."""

    pairs: Location = setting(
        "",
        "Parquet file (pickapic), JSON file (hpdv2, hpdv3, imagereward), label file, shards, or "
        "the folder of such (docs/labels.md); local or a URI (s3://, gs://)",
    )
    layout: Annotated[str, AfterValidator(known("pairs"))] = setting(
        "pickapic",
        "layout of judge.pairs: pickapic, hpdv2, hpdv3, imagereward, labelled, webdataset, or one "
        "of your own (docs/extending.md)",
    )
    images: Location = setting("", "folder that image paths are relative to; empty: the file's")
    limit: int = setting(0, "use only the first N pairs; 0 uses all", ge=0)
    min_confidence: float = setting(0.0, "HPDv3: leave out pairs with less confidence", ge=0)
    rewards: tuple[str, ...] = setting(
        ("pickscore",),
        "rewards that are judged, as metrics.rewards names them",
        affects_result=False,
    )

    def stores(self) -> tuple[Store, Store]:
        """Where the pairs are read from, and images that are files of their own.

        Raises:
            InputError: there is nothing at `pairs` or `images`.
        """
        pairs = locate(self.pairs, key="judge.pairs")
        return pairs, images_beside(pairs, self.images, key="judge.images")

    def read(self) -> list[Pair]:
        """The pairs.

        Raises:
            InputError: the file is missing, is of another layout, holds no pair, or names an image
                outside its folder.
        """
        if not self.pairs:
            raise InputError("judge.pairs is required: add judge.pairs=FILE")
        store, images = self.stores()
        confined = _confined(images)
        pairs = []
        for pair in itertools.islice(self._sure(store), self.limit or None):
            for ref in (pair.first, pair.second):
                if not _held(ref):
                    confined(ref.file)
            pairs.append(pair)
        if not pairs:
            raise InputError(f"judge.pairs: '{self.pairs}' holds no pair")
        return pairs

    def _sure(self, store: Store) -> Iterator[Pair]:
        """Pairs as the layout lists them, but those that people were not sure of or did not judge.

        Of a ranking, equal ranks are no pair: so the benchmarks count.
        """
        ties = not REGISTRY[self.layout].tied_ranks
        try:
            for pair in labelled_pairs(store, self.layout):
                if pair.problem and not pair.problem.startswith(_USED):
                    raise InputError(pair.problem)
                judged = pair.label is not None and (ties or pair.label != 0.5)
                if judged and (pair.confidence is None or pair.confidence >= self.min_confidence):
                    yield pair
        except InputError as error:
            said = str(error).removeprefix("source.path: ")
            name = f"'{self.pairs}' is not of the layout {self.layout}"
            said = said if said.startswith(name) else f"{name} ({said})"
            raise InputError(f"judge.pairs: {said}") from None


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
        stores = config.stores()
        refs = dict.fromkeys(ref for pair in self.pairs for ref in (pair.first, pair.second))
        self._names = {ref: full_name(ref, *stores) for ref in refs}
        text = json.dumps(
            [
                [pair.prompt, self._named(pair.first), self._named(pair.second), pair.label]
                for pair in self.pairs
            ]
        )
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]

    def _named(self, ref: Ref) -> list[str | int]:
        """File with its full name, row and column, as ids and the digest have them."""
        stretch = [] if ref.size is None else [ref.size]
        return [self._names[ref], ref.row, ref.column, *stretch]

    def id(self, ref: Ref, prompt: str) -> str:
        """The id of an image of a prompt."""
        return json.dumps([*self._named(ref), prompt])

    def run(self, streaming: StreamConfig) -> pd.DataFrame:
        """Score what is not scored yet.

        Returns:
            The pairs as `judge.accuracy` and `judge.bias` take them.
        """
        import pandas as pd

        images: dict[str, tuple[Ref, str]] = {}
        for pair in self.pairs:
            for ref in (pair.first, pair.second):  # a file may have two names in its dataset
                images.setdefault(self.id(ref, pair.prompt), (ref, pair.prompt))
        rows = pa.table(
            {
                "id": list(images),
                "file": [ref.file for ref, _ in images.values()],
                "row": [ref.row for ref, _ in images.values()],
                "column": [ref.column for ref, _ in images.values()],
                "size": pa.array([ref.size for ref, _ in images.values()], pa.int64()),
                "prompt": [prompt for _, prompt in images.values()],
            }
        )
        stages: dict[str, tuple[Transform, RewardConfig | str]] = {"properties": (Properties(), "")}
        for name, config in self.rewards.items():
            stages[name] = (Score(config, columns={"image": name}, prompt="prompt"), config)
        frame = pd.DataFrame(self.pairs)[["prompt", "label"]]
        sides = (
            [self.id(pair.first, pair.prompt) for pair in self.pairs],
            [self.id(pair.second, pair.prompt) for pair in self.pairs],
        )
        for name, (stage, settings) in stages.items():
            parts = {"pairs": self.digest, name: settings}
            ledger = Ledger(join(self.folder, name), results_of(parts))
            if ledger.state() == "stale":
                ledger.clear()
            if ledger.state() != "complete":
                columns = stage.writes.names
                stream(
                    rows,
                    stages=[Load(self.config), stage],
                    ledger=ledger,
                    keep=columns,
                    config=streaming,
                    runtime_env=None if isinstance(settings, str) else settings.runtime_env,
                )
            known = ledger.table(stage.writes.names).to_pandas().set_index("id")
            for column in stage.writes.names:
                first, second = (known.loc[ids, column].to_numpy() for ids in sides)
                less = isinstance(settings, RewardConfig) and settings.lower_is_better
                frame[column] = second - first if less else first - second
        return frame


class Load:
    """Transform: the image that a reference names, as PNG bytes; broken ones are dropped.

    Args:
        config: where the pairs and their images lie.
    """

    name = "load"
    reads: tuple[str, ...] = Ref._fields
    writes = pa.schema([("image", pa.binary())])
    resources = Resources(workers=0, batch=8)

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config

    def setup(self) -> None:
        """Find the stores."""
        self.limits = ImageConfig()
        self.stores = self.config.stores()

    def __call__(self, rows: list[Row]) -> None:
        """Fill the column."""
        for row in rows:
            ref = Ref(row["file"], row["row"], row["column"], row.get("size"))
            try:
                data = image_bytes(ref, *self.stores, max_bytes=self.limits.max_bytes)
                row["image"] = encode_png(decode(data, self.limits))
            except BadImage as error:
                reject(row, self.name, error.reason, str(error))
            except SourceError as error:
                file = full_name(ref, *self.stores)
                missing = error.reason == "missing_file"
                said = f"no image '{file}'" if missing else f"'{file}' cannot be read: {error}"
                reject(row, self.name, _REASONS.get(error.reason, error.reason), said)


class Properties:
    """Transform: what an image looks like, whatever it shows."""

    name = "properties"
    reads: tuple[str, ...] = ("image",)
    writes = pa.schema([(name, pa.float64()) for name in PROPERTIES])
    resources = Resources(workers=0, batch=8)

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, rows: list[Row]) -> None:
        """Fill the columns."""
        for row in rows:
            found = looks(open_png(row["image"]))
            row.update((name, found[name]) for name in PROPERTIES)


def full_name(ref: Ref, pairs: Store, images: Store) -> str:
    """The file of a reference as one name on this machine, or as a URI: it is part of ids.

    Args:
        ref: of a pair.
        pairs: where cells are read from.
        images: where images that are files are read from; links are followed.
    """
    store = pairs if _held(ref) else images
    if isinstance(store, RemoteStore):
        return shown(store, ref.file)
    path = posixpath.join(store.base, ref.file)
    try:
        return path if _held(ref) else os.path.realpath(path)
    except ValueError:  # no file can have this name
        return path


def _confined(images: Store) -> Callable[[str], None]:
    """A check of image names, made once for each: InputError for one that escapes the root."""

    @lru_cache(None)
    def check(name: str) -> None:
        try:
            images.check(name)
        except SourceError:
            root = images.path if isinstance(images, RemoteStore) else os.path.realpath(images.base)
            said = f"the image '{name}' lies outside of '{root}'"
            raise InputError(f"judge.pairs: {said}") from None

    return check


def _held(ref: Ref) -> bool:
    """Whether a file of the dataset holds the image; else the image is a file of its own."""
    return bool(ref.column) or ref.size is not None
