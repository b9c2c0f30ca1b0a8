"""The prompt sets of an evaluation: what they are called, what they hold, where their results lie.

The first set lies in `evaluation/`, others in `evaluation/NAME/`. A folder keeps the prompts that
it was begun with: other prompts under the same name get `evaluation/NAME-<hash>/`. So another file
never meets the results of an earlier one, and a set that is named again finds its own.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
from pyarrow import fs as pafs

from raypref.core.config import InputError
from raypref.core.ledger import Ledger, filesystem, join, read_bytes
from raypref.core.rows import Row, seed_of
from raypref.core.schemes import scheme_of
from raypref.evaluate.generate import BASE, GenerateConfig
from raypref.evaluate.plain_prompts import PLAIN
from raypref.sources.holes import HOLE, KEY, read_holes
from raypref.sources.index import remembered
from raypref.sources.prompt_files import read_prompts
from raypref.sources.prompts import Prompt
from raypref.sources.reading import file_digest, lookup
from raypref.sources.store import locate

ROOT = "evaluation"
DEFAULT = "held-out"  # the set that is taken where evaluate.prompts names none
DEFAULT_COUNT = 100
FEWEST = 8  # captions; of fewer no interval says anything
RESERVED = frozenset(("images", "scores", "reference", "samples", "photographs", "rubric"))
READERS = 8  # files of holes read side by side
ABOUT = "prompts.json"  # beside a table: the name of its set, where the prompts came from
# An image that repeats another has a caption that may be its pair's in other words.
UNUSABLE = frozenset(
    ("duplicate", "near_duplicate", "no_caption", "bad_caption", "caption_too_long")
)


class Holes(NamedTuple):
    """The holes that a set's prompts are for."""

    rows: Sequence[Row]  # of `read_holes`, one per prompt
    identity: str  # as `PromptSet.identity`


class PromptSet(NamedTuple):
    """The prompts that one table is about."""

    name: str
    origin: str  # where they come from, for people
    prompts: list[Prompt]
    at: str  # where its results lie, below the run's folder
    holes: Holes | None = None  # that are painted; None: the prompts alone are drawn

    @property
    def identity(self) -> str:
        """What tells these prompts from others; part of the fingerprint of their images."""
        return prompt_identity(self.prompts) if self.holes is None else self.holes.identity


class PromptSets:
    """The prompt sets of a run.

    Args:
        config: which files.
        folder: the run's.
        photos: what became of every photograph, for the set that is taken where no file is named.
        seed: of its draw.
        redo: whether earlier results are replaced: the default set then takes over its place.
    """

    def __init__(
        self,
        config: GenerateConfig,
        *,
        folder: str,
        photos: Ledger,
        seed: int,
        redo: bool = False,
    ) -> None:
        self.config = config
        self.folder = folder
        self.photos = photos
        self.seed = seed
        self.redo = redo

    @property
    def ready(self) -> bool:
        """Whether the prompts are known: held-out captions are when the photographs are."""
        named = self.config.hole_files or self.config.files
        return bool(named) or self.photos.state() == "complete"

    @cached_property
    def all(self) -> list[PromptSet]:
        """The sets, in the order of `evaluate.holes`, or of `evaluate.prompts` without holes.

        Raises:
            InputError: a file is missing or holds no prompt, two hold the same prompts, or no file
                is named and the photographs are not curated.
        """
        if self.config.hole_files:
            return self._of_holes()
        if not self.config.files:
            if not self.ready:
                raise InputError(
                    "evaluate.prompts is needed before there are pairs: add evaluate.prompts=FILE"
                )
            count = self.config.limit or DEFAULT_COUNT
            prompts, origin = held_out(self.photos, count=count, seed=self.seed)
            given = [(DEFAULT, origin, prompts)]
        else:
            given = [
                (name, file, read_set(file, limit=self.config.limit or None))
                for name, file in names_of(self.config.files).items()
            ]
        same: dict[str, str] = {}
        for _, file, prompts in given:
            if (other := same.setdefault(prompt_identity(prompts), file)) != file:
                raise InputError(f"evaluate.prompts: {other} and {file} hold the same prompts")
        wanted = {name: prompt_identity(prompts) for name, _, prompts in given}
        if self.redo and not self.config.files and _replaceable(join(self.folder, ROOT)):
            places = {DEFAULT: ROOT}
        else:
            places = located(self.folder, wanted)
        return [PromptSet(name, origin, own, places[name]) for name, origin, own in given]

    def _of_holes(self) -> list[PromptSet]:
        limit = self.config.limit or None
        files = names_of(self.config.hole_files)
        given = {name: read_holes(file, limit=limit) for name, file in files.items()}
        wanted = {
            name: remembered(
                ("holes", files[name], limit),
                # What comes with raypref does not change, and its earlier results stay.
                partial(hole_identity, rows, contents=scheme_of(files[name]) is None),
            )
            for name, rows in given.items()
        }
        if len({*wanted.values()}) < len(wanted):
            raise InputError(f"evaluate.holes: two of {', '.join(files.values())} are the same")
        places = located(self.folder, wanted)
        return [
            PromptSet(
                *(name, f"{len(rows)} holes of {files[name]}", _prompts(rows), places[name]),
                Holes(rows, wanted[name]),
            )
            for name, rows in given.items()
        ]


def hole_identity(holes: Sequence[Row], *, contents: bool = True) -> str:
    """How many holes, and a hash of their prompts, masks, and the names, sizes and bytes of files.

    Where the files lie is no part of it: the same folder elsewhere holds the same holes.

    Args:
        holes: of `read_holes`.
        contents: whether to read the files: an edited mask often keeps its size.

    Raises:
        OSError: an object store failed.
    """
    stores = {root: locate(root, key=KEY) for root in {hole["root"] for hole in holes}}
    looks = {root: lookup(store) for root, store in stores.items()}
    listed = [
        [(hole["root"], file) for name in ("photo_file", "mask_file") if (file := hole[name])]
        for hole in holes
    ]
    digests: dict[tuple[str, str], str] = {}
    if contents:
        each = sorted({at for own in listed for at in own})
        with ThreadPoolExecutor(READERS) as pool:
            found = pool.map(lambda at: file_digest(stores[at[0]], at[1]), each)
            digests = dict(zip(each, found, strict=True))
    told = []
    for hole, own in zip(holes, listed, strict=True):
        look = looks[hole["root"]]
        files = (hole[name] for name in ("photo_file", "mask_file"))
        sizes = [None if file is None else look(file)[1] for file in files]
        facts = (hole[name] for name in HOLE.names if name != "root")
        told.append([hole["prompt"], *facts, *sizes, *(digests[at] for at in own if contents)])
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    return f"{len(holes)} holes, sha256 {digest}"


def _prompts(holes: Sequence[Row]) -> list[Prompt]:
    return [Prompt(hole["prompt"], {}, hole["id"]) for hole in holes]


def prompt_identity(prompts: Sequence[Prompt]) -> str:
    """How many prompts, and a hash of their texts in order."""
    texts = json.dumps([prompt.text for prompt in prompts]).encode()
    return f"{len(prompts)}, sha256 {hashlib.sha256(texts).hexdigest()[:16]}"


def read_set(file: str, *, limit: int | None) -> list[Prompt]:
    """The prompts of a file, a folder, or of a scheme as `tiny:prompts`.

    Raises:
        InputError: it is missing or holds none.
    """
    if embedded := scheme_of(file):
        scheme, name = embedded
        prompts: list[Prompt] = scheme.prompts(name, limit=limit)
        return prompts
    return read_prompts(file, limit=limit)


def names_of(files: Sequence[str]) -> dict[str, str]:
    """A name per file or folder, from its own name; with its folder's where two are alike."""
    names: dict[str, str] = {}
    for file in files:
        folder, _, last = file.rstrip("/").replace(":", "/").rpartition("/")
        stem = _plain(posixpath.splitext(last)[0]) or "prompts"
        name = f"{stem}-prompts" if stem in RESERVED else stem
        if name in names:
            name = _plain(f"{folder.rpartition('/')[2]}-{stem}")
        number = 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names[name] = file
    return names


def _plain(name: str) -> str:
    return re.sub(r"[^\w-]+", "-", name).strip("-")


def located(folder: str, wanted: Mapping[str, str]) -> dict[str, str]:
    """Where the results of each set lie or will lie, below the run's folder.

    Args:
        folder: the run's.
        wanted: the sets' identities by name, the first set first.
    """
    places: dict[str, str] = {}
    candidates = {
        name: (ROOT, f"{ROOT}/{name}", f"{ROOT}/{name}-{_short(own)}")
        for name, own in wanted.items()
    }
    held = {at: _held(join(folder, at)) for own in candidates.values() for at in own}
    for name, own in wanted.items():
        if here := [at for at in candidates[name] if held[at] == own]:
            places[name] = here[0]
    for name, own in wanted.items():
        if name not in places:
            free = (at for at in candidates[name] if held[at] is None)
            places[name] = next(free, candidates[name][-1])
            held[places[name]] = own
    return places


def _replaceable(folder: str) -> bool:
    """Whether the default set may take over a folder: it holds no table of a file's prompts."""
    about = read_bytes(join(folder, ABOUT))
    if about is None:  # half made; or of an older version, whose table is kept
        return read_bytes(join(folder, "table.csv")) is None
    return bool(json.loads(about)["name"] == DEFAULT)


def _short(own: str) -> str:
    return own.rpartition(" ")[2][:8]


def _held(folder: str) -> str | None:
    """The identity of the prompts whose images lie in a folder; None where there are none."""
    return _settings(folder, BASE).get("prompts")


def _settings(folder: str, model: str) -> dict[str, str]:
    """The settings that a model's images were begun with."""
    return dict(Ledger(join(folder, "images", model), {}).begun().get("settings", {}))


def earlier(folder: str, *, known: Sequence[str], loras: Mapping[str, str]) -> dict[str, str]:
    """The sets of earlier commands, whose tables are still about the same models.

    Args:
        folder: the run's.
        known: the places that this command's sets have.
        loras: the fingerprint of each model's LoRA.

    Returns:
        Place to name, in the order of the places.
    """
    fs, root = filesystem(join(folder, ROOT))
    found = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    below = sorted(f"{ROOT}/{f.base_name}" for f in found if f.type == pafs.FileType.Directory)
    sets = {}
    for at in (ROOT, *below):
        about = read_bytes(join(folder, at, ABOUT))
        if at in known or read_bytes(join(folder, at, "table.csv")) is None:
            continue
        if about is None and at != ROOT:
            continue
        drawn = {model: _settings(join(folder, at), model).get("lora") for model in loras}
        if all(own in (None, loras[model]) for model, own in drawn.items()):
            # Of an older version, which had one set and no name for it.
            sets[at] = "first" if about is None else str(json.loads(about)["name"])
    return sets


def held_out(photos: Ledger, *, count: int, seed: int) -> tuple[list[Prompt], str]:
    """Captions of inputs that are in no pair, drawn by the seed; and what they are, in words.

    They show what the person's own photographs show, and no training saw them. Where fewer than
    `FEWEST` are left, the embedded plain prompts are taken instead. In memory are 8 bytes per
    input, which is read twice.

    Args:
        photos: the complete ledger of all inputs.
        count: how many, at most.
        seed: decides which; neither the order of the photographs nor the rest of them does.
    """
    used, others = array("q"), array("q")
    for text, in_pair in _texts(photos):
        (used if in_pair else others).append(_draw(seed, text))
    left = np.setdiff1d(np.frombuffer(others, np.int64), np.frombuffer(used, np.int64))
    column = _text_column(photos)
    if len(left) < FEWEST:
        prompts = [Prompt(text) for text in PLAIN[:count]]
        return prompts, (
            f"{len(prompts)} plain prompts that come with raypref, since "
            f"{len(left) or 'no'} {column}s are left that are in no pair"
        )
    taken = set(left[:count].tolist())
    texts = {text for text, in_pair in _texts(photos) if _draw(seed, text) in taken}
    drawn = sorted(texts, key=lambda text: (_draw(seed, text), text))[:count]
    return [Prompt(text) for text in drawn], (
        f"{len(drawn)} {column}s of the {len(left):,} that are in no pair, drawn by the seed"
    )


def _draw(seed: int, text: str) -> int:
    return seed_of(seed, "held-out", text)


def _text_column(photos: Ledger) -> str:
    return "caption" if "caption" in photos.schema().names else "prompt"  # of labelled pairs


def _texts(photos: Ledger) -> Iterator[tuple[str, bool]]:
    """The texts that can be drawn, and those in pairs; whether each is in one."""
    column = _text_column(photos)
    for batch in photos.batches([column, "status", "reason"]):
        for row in batch.to_pylist():
            text = (row[column] or "").strip()
            # Of a label that was dropped nothing is known to be right.
            bad = row["status"] == "dropped" or row["reason"] in UNUSABLE
            if row["status"] == "pair" or (text and not bad):
                yield text, row["status"] == "pair"
