"""What a study can be made from: images of the same prompts by several models."""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc

from raypref.align import plan
from raypref.core.config import InputError, build
from raypref.core.ledger import Ledger, join, read_bytes
from raypref.curate.select import SOUND
from raypref.evaluate.generate import BASE
from raypref.evaluate.sets import ROOT
from raypref.evaluate.written import SCORES
from raypref.run.config import RunConfig
from raypref.run.rubric import image_ledgers
from raypref.run.words import find_run
from raypref.sources.captions import CAPTION_KEYS, PATH_KEYS
from raypref.sources.labels import one_of
from raypref.sources.layouts.folder import IMAGE_SUFFIXES
from raypref.sources.prompts import GROUPINGS
from raypref.study.config import StudyConfig
from raypref.study.folder import DAMAGED

LONGEST_PROMPT = 4000  # characters that a page shows


class ShownPrompt(NamedTuple):
    """What is known of a prompt that all models have an image of."""

    prompt: str  # empty: raters see the images alone
    category: str  # empty: none


class Stock(NamedTuple):
    """Images of the same prompts by several models.

    `read(model, ids)` gives the id and the encoded bytes of each of these images, in any order.
    """

    models: tuple[str, ...]
    prompts: Mapping[str, ShownPrompt]  # by prompt_id
    read: Callable[[str, Collection[str]], Iterator[tuple[str, bytes]]]


def stock_of(named: Sequence[str], config: StudyConfig) -> Stock:
    """The images of runs, or of folders.

    Args:
        named: runs, by folder or name; or two or more folders of images of the same names.
        config: which models and seed.

    Raises:
        InputError: a run or folder is missing, or there are no two models with the same prompts.
    """
    is_run = [_names_run(name) for name in named]
    if named and all(is_run):
        return _of_runs(named, config)
    if any(is_run):
        raise InputError(
            f"'{named[is_run.index(False)]}' is no run and '{named[is_run.index(True)]}' is one; "
            "name runs, or folders of images"
        )
    if len(named) < 2:
        missing = f"'{named[0]}' is no run" if named else "nothing to compare"
        raise InputError(f"{missing}; name a run, or two or more folders of images")
    if config.images == "candidates":
        raise InputError(f"images=candidates: '{named[0]}' is no run, and only runs have them")
    return _of_folders(named, config)


def _names_run(name: str) -> bool:
    try:
        find_run(name)
    except InputError as error:
        if "there is no run" in str(error):
            return False
        raise
    return True


def _of_runs(named: Sequence[str], config: StudyConfig) -> Stock:
    ledgers: dict[str, Ledger] = {}
    usual: list[str] = []
    scores = ""
    for name in named:
        folder, settings = find_run(name)
        at = join(folder, ROOT, *filter(None, [config.prompt_set]))
        at = join(folder, "candidates") if config.images == "candidates" else at
        found = {posixpath.basename(ledger.path): ledger for ledger in image_ledgers(at)}
        if not found:
            command = "run" if config.images == "candidates" else "evaluate"
            raise InputError(f"{at} holds no finished images; raypref {command} makes them")
        prefix = f"{posixpath.basename(folder.rstrip('/'))}/" if len(named) > 1 else ""
        if any(f"{prefix}{model}" in ledgers for model in found):
            raise InputError(f"two runs are called '{prefix.rstrip('/')}'; rename a folder")
        ledgers |= {f"{prefix}{model}": ledger for model, ledger in found.items()}
        if config.images == "candidates":
            usual += [f"{prefix}{model}" for model in found]
        elif not config.models:
            final = _final(folder, settings)
            usual += [f"{prefix}{model}" for model in (final, BASE) if model in found]
            if final not in found:
                raise InputError(f"{at} has no images of {final}; {_naming(ledgers)}")
        scores = scores or join(at, SCORES)
    if not config.models and config.images == "evaluation":
        bases = [model for model in usual if posixpath.basename(model) == BASE]
        usual = [model for model in usual if model not in bases[1:]]  # one base is enough
    models = _chosen(config.models, usual, ledgers)
    seed = None if config.images == "candidates" else _seed(models, ledgers, config.image_seed)
    own = {model: _facts(ledgers[model], seed) for model in models}
    shared = set.intersection(*({*facts.items()} for facts in own.values()))
    categories = {} if seed is None else _categories(scores)
    prompts = {
        id_: ShownPrompt(prompt[:LONGEST_PROMPT], categories.get(id_, ""))
        for id_, prompt in own[models[0]].items()
        if (id_, prompt) in shared
    }
    if not prompts:
        raise InputError(f"{', '.join(models)} have no image of the same prompt")

    def read(model: str, ids: Collection[str]) -> Iterator[tuple[str, bytes]]:
        column = "id" if seed is None else "prompt_id"
        for row in ledgers[model].rows([column, "image"], where=_of_seed(seed)):
            if str(row[column]) in ids:
                yield str(row[column]), row["image"]

    return Stock(tuple(models), prompts, read)


def _final(folder: str, settings: Mapping[str, Any]) -> str:
    """The model that a run is about; the base where nothing was trained."""
    try:
        config = build(RunConfig, settings)
        return plan.final(plan.in_order(config.trainings, config.train)) or BASE
    except InputError as error:  # of another version
        raise InputError(f"{join(folder, 'config.toml')}: {error}; add models=A,B") from None


def _naming(ledgers: Collection[str]) -> str:
    return f"name models=A,B of {', '.join(ledgers)}"


def _chosen(asked: Sequence[str], usual: Sequence[str], there: Collection[str]) -> list[str]:
    """The models that are compared. InputError where one is missing, or there is only one."""
    models = list(dict.fromkeys(asked or usual))
    for model in models:
        if model not in there:
            raise InputError(f"models: there is no '{model}'; there are {', '.join(there)}")
    if DAMAGED in models:
        raise InputError(f"models: '{DAMAGED}' is the word for attention checks; rename the folder")
    if len(models) < 2:
        raise InputError(f"one model cannot be compared; {_naming(there)}")
    return models


def _of_seed(seed: int | None) -> pc.Expression:
    return SOUND if seed is None else SOUND & (pc.field("seed") == seed)


def _seed(models: Sequence[str], ledgers: Mapping[str, Ledger], asked: int) -> int:
    """The seed whose images are shown."""
    found = [{*ledgers[model].table(["seed"], where=SOUND)["seed"].to_pylist()} for model in models]
    shared = set.intersection(*found)
    if asked >= 0 and asked not in shared:
        raise InputError(f"image_seed={asked}: all models have {sorted(shared) or 'none'}")
    if not shared:
        raise InputError(f"{', '.join(models)} have no image of the same seed")
    return asked if asked >= 0 else min(shared)


def _facts(ledger: Ledger, seed: int | None) -> dict[str, str]:
    """The prompts of a ledger's images, by prompt_id; of candidates by the photograph's id."""
    column = "id" if seed is None else "prompt_id"
    table = ledger.table([column, "prompt"], where=_of_seed(seed))
    rows = sorted(zip(table[column].to_pylist(), table["prompt"].to_pylist(), strict=True))
    return {str(id_): prompt or "" for id_, prompt in rows}


def _categories(scores: str) -> dict[str, str]:
    """The categories of an evaluation's prompts, where its tables were written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = read_bytes(scores)
    if data is None:
        return {}
    source = pa.BufferReader(data)
    if "category" not in pq.read_schema(source).names:  # of an earlier version
        return {}
    table = pq.read_table(source, columns=["prompt_id", "category"]).to_pylist()
    return {str(row["prompt_id"]): row["category"] or "" for row in table}


def _of_folders(named: Sequence[str], config: StudyConfig) -> Stock:
    files: dict[str, dict[str, Path]] = {}
    for folder in named:
        root = Path(folder).expanduser()
        if not root.is_dir():
            raise InputError(f"'{folder}' is no run and no folder of images")
        name = root.resolve().name
        if name in files:
            raise InputError(f"two folders are called '{name}'; rename one: it is the model's name")
        files[name] = {}
        for path in sorted(root.rglob("*")):
            inside = path.relative_to(root)
            if path.suffix.lower() in IMAGE_SUFFIXES and not inside.name.startswith("."):
                files[name][inside.with_suffix("").as_posix()] = path
    models = _chosen(config.models, [*files], files)
    shared = set.intersection(*({*files[model]} for model in models))
    if not shared:
        raise InputError(f"{', '.join(models)} have no image of the same name")
    told = _captions(config.captions) if config.captions else {}
    prompts = {}
    for id_ in sorted(shared):
        beside = (files[model][id_].with_suffix(".txt") for model in models)
        known = told.get(id_) or ShownPrompt(next(filter(None, map(_text, beside)), ""), "")
        category = known.category or posixpath.dirname(id_)
        prompts[id_] = ShownPrompt(known.prompt[:LONGEST_PROMPT], category)

    def read(model: str, ids: Collection[str]) -> Iterator[tuple[str, bytes]]:
        for id_ in ids:
            yield id_, files[model][id_].read_bytes()

    return Stock(tuple(models), prompts, read)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""


def _captions(file: str) -> dict[str, ShownPrompt]:
    """Prompt and category by the name of the image, without its suffix."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"captions={file} cannot be read: {error}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    names = list(reader.fieldnames or ())
    path, caption, category = (
        one_of(names, wanted, file) for wanted in (PATH_KEYS, CAPTION_KEYS, GROUPINGS)
    )
    if not (path and caption):
        raise InputError(f"{file}: the columns are file, caption and, if known, category")
    return {
        posixpath.splitext((row[path] or "").strip())[0]: ShownPrompt(
            (row[caption] or "").strip(), (row[category] or "").strip() if category else ""
        )
        for row in reader
    }
