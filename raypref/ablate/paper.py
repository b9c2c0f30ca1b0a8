"""`raypref paper`: per table and figure of the paper the command, what it needs, what came out.

All of it is read from the tables themselves, `paper.toml` and the storage; nothing runs.
"""

from __future__ import annotations

import csv
import io
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import fs as pafs

from raypref.ablate.plan import AblateConfig, PlannedRow, load_config, planned_rows
from raypref.ablate.predicted import predicted_hours
from raypref.ablate.table import Table, labelled, model_rows, names, read_table
from raypref.core.command_line import sorted_words
from raypref.core.config import InputError, flatten, load, presets
from raypref.core.ledger import absolute, filesystem, join, read_bytes
from raypref.core.messages import without_secrets
from raypref.core.terminal import say
from raypref.evaluate import tables
from raypref.evaluate.labels import plain_label, score_text
from raypref.rewards.registry import REWARDS

DONE = 0
FACTS = Path(__file__).with_name("paper.toml")
FAMILIES = ("sd15", "sd35m")  # the paper's base models, and the presets of the same names
PUBLISHED = "--published"
HELP = """\
usage: {program} [TABLE ...] [PRESET|FILE.toml] [key=value ...] [--published]

What repeats each table and figure of the paper: the command, the weights and data it needs, the GPU
hours that are predicted for it, and whether it was run in this storage. Nothing is run.

  TABLE        one of: {tables}; without one, all
  PRESET       sd15 or sd35m, or FILE.toml: of this base model alone
  key=value    a setting that the commands shall have, e.g. source.path=photos/ storage=/data/runs
  --published  the published values beside ours
  --help       this text

Exit status: 0 done, 2 wrong words.
"""


class Entry(NamedTuple):
    """A table or figure of the paper for one base model."""

    name: str  # of the table
    table: Table
    config: AblateConfig  # of its command
    words: list[str]  # the command
    needs: dict[str, list[str]]  # "weights" and "data"


def show_paper(words: Sequence[str], program: str) -> int:
    """Do what a command line says; returns the exit status.

    Raises:
        InputError: an unknown table, preset, key or flag.
    """
    every = {name: table for name in names() if (table := read_table(name)).paper}
    if {"--help", "-h"} & {*words}:
        say(HELP.format(program=program, tables=", ".join(sorted(every))).rstrip())
        return DONE
    keys = [*flatten(load(AblateConfig, "tiny"))]
    given = sorted_words(words, keys=keys, flags=(PUBLISHED,), options={})
    sources = [word for word in given.bare if word in presets() or word.endswith(".toml")]
    asked = [word for word in given.bare if word not in sources]
    if unknown := [word for word in asked if word not in every]:
        raise InputError(f"'{unknown[0]}' is no table or figure of the paper: {', '.join(every)}")
    if len(sources) > 1:
        raise InputError(f"'{sources[1]}' is a second preset or file; name one, or none for both")
    shown = {name: table for name, table in every.items() if not asked or name in asked}
    facts = tomllib.loads(FACTS.read_text(encoding="utf-8"))
    for paper in sorted({table.paper for table in shown.values()}, key=_number):
        for name, table in shown.items():
            if table.paper == paper:
                say(table.title)
                for entry in paper_entries(
                    name, table, facts, sources=sources, given=given.overrides
                ):
                    said = _described(entry, facts, published=PUBLISHED in given.flags)
                    say("\n".join(f"  {line}".rstrip() for line in said))
        say()
    return DONE


def _number(paper: str) -> tuple[bool, int, str]:
    """Tables before figures, by their numbers."""
    number, letter = re.findall(r"(\d+)(\w*)", paper)[0]
    return paper.startswith("Figure"), int(number), letter


def paper_entries(
    name: str,
    table: Table,
    facts: Mapping[str, Any],
    *,
    sources: Sequence[str] = (),
    given: Sequence[str] = (),
) -> Iterator[Entry]:
    """What the paper shows of a table, per base model.

    Args:
        name: of the table.
        table: the table.
        facts: `paper.toml`.
        sources: the preset or file to take; none: those of the paper's base models.
        given: settings that take the place of those in `paper.toml`, as `key=value`.
    """
    own = [word.split("=", 1)[0] for word in given]
    for source in sources or [f for f in FAMILIES if _is_of(table, f)]:
        family = source
        if source not in FAMILIES:
            family = load_config(source, ["source.path=x", *given]).base.family
        known = {**facts["given"]["all"], **facts["given"].get(family, {})}
        needed = _keys(table, family)
        words = [f"{k}={known[k]['value']}" for k in needed if k in known and k not in own]
        scored = ",".join(metric for metric in table.columns if metric in REWARDS)
        if scored and table.shows == "runs" and "metrics.rewards" not in {*table.set_, *own}:
            words.append(f"metrics.rewards={scored}")
        if "run" not in own:
            words.append(f"run=paper-{family}")
        config = load_config(source, [*words, *given])
        needs: dict[str, list[str]] = {"weights": _models(table, config), "data": []}
        for key in needed:
            beside = table.shows != "runs" and not key.startswith("ablate.")
            if beside or key in own or not known.get(key, {}).get("is"):
                continue
            told = f" ({known[key]['says']})" if known[key]["says"] else ""
            needs[known[key]["is"]].append(f"{key}={known[key]['value']}{told}")
        if table.shows == "costs":
            needs["data"].append("a run in the storage that made its pairs, as the tables above do")
        yield Entry(name, table, config, ["raypref", "ablate", name, source, *words, *given], needs)


def _is_of(table: Table, family: str) -> bool:
    if table.shows == "models":
        return family in table.models
    return bool(tables.published(table.published, family))


def _keys(table: Table, family: str) -> list[str]:
    """The settings that a table's command must give, in a fixed order."""
    keys = ["source.path", "source.layout"]
    if table.shows == "votes":
        return [*keys, "ablate.votes"]
    if table.shows != "runs":
        return keys
    keys.append("evaluate.prompts")
    for row in table.all_rows():
        if not row.families or family in row.families:
            keys += [source for source in row.copy_.values() if source.startswith("ablate.")]
    keys += ["ablate.stylization"] if "stylization" in table.columns else []
    return [*dict.fromkeys(keys)]


def _models(table: Table, config: AblateConfig) -> list[str]:
    """The weights that every run of a table needs."""
    if table.shows != "runs":
        return []
    rewards = table.set_.get("metrics.rewards", config.metrics.rewards)
    keys = ["base.model", "perturb.model", "saliency.weights", "pickscore.model"]
    keys += [f"rewards.{name}.model" for name in rewards if name != "pickscore"]
    keys += ["rewards.vqascore.model"] if "dpg" in table.columns else []
    settings = flatten(config)
    return [*dict.fromkeys(str(settings[key]) for key in keys if settings.get(key))]


def _described(entry: Entry, facts: Mapping[str, Any], *, published: bool) -> Iterator[str]:
    """The lines of an entry."""
    table, config = entry.table, entry.config
    yield shlex.join(map(without_secrets, entry.words))
    for kind, told in entry.needs.items():
        if told:
            yield f"  {kind:<8} {'; '.join(told)}"
    rows = planned_rows(entry.name, table, config, read=False)
    if rows:
        yield f"  GPU      {_hours(rows, facts, config)}"
    place, ours, count = _ours(entry)
    where = without_secrets(config.storage)
    total = f" of {len(rows)}" if rows else ""
    made = f"{count}{total} rows in {without_secrets(place)}" if place else f"not run in {where}"
    yield f"  here     {made}"
    if published:
        yield from (f"    {line}" for line in _beside(entry, rows, ours))


def _hours(rows: Sequence[PlannedRow], facts: Mapping[str, Any], config: AblateConfig) -> str:
    """The predicted GPU hours in words; rows that nothing is known of are left out."""
    family = config.base.family
    if family not in facts["h100"]:
        return "not predicted for this base model"
    prompts: dict[str, int] = {}
    settings = flatten(config)
    for key, number in facts["prompts"].items():
        files = config.evaluate.files if key == "evaluate.prompts" else (str(settings[key]),)
        count = number[family] if isinstance(number, dict) else number
        for file in files:
            prompts |= {file: count, str(Path(file).absolute()): count}
    try:
        hours = predicted_hours(rows, facts, prompts=prompts)
    except KeyError as error:
        return f"not predicted: {error.args[0]} is not among the paper's trainings"
    return (
        f"about {hours.all:.1f} h of one H100, predicted: pairs {hours.pairs:.1f}, trainings "
        f"{hours.trainings:.1f}, images {hours.images:.1f}; rewards not counted, and less where "
        "tables share steps"
    )


def _ours(entry: Entry) -> tuple[str, dict[tuple[str, str], float], int]:
    """Where the table was made with this base model, its means, rows with numbers; most of them."""
    storage = absolute(entry.config.storage)
    fs, root = filesystem(storage)
    best: tuple[str, dict[tuple[str, str], float], int] = ("", {}, 0)
    for found in fs.get_file_info(pafs.FileSelector(root, allow_not_found=True)):
        folder = join(storage, found.base_name, entry.name)
        settings, data = (read_bytes(join(folder, n)) for n in ("config.toml", "table.csv"))
        if settings is None or data is None:
            continue
        base = tomllib.loads(settings.decode()).get("base", {})
        if base.get("model") != entry.config.base.model:
            continue
        lines = csv.DictReader(io.StringIO(data.decode()))
        means = {(r["model"], r["metric"]): float(r["mean"]) for r in lines if r.get("mean")}
        if count := len({row for row, _ in means} & {row.name for row in entry.table.all_rows()}):
            best = max(best, (folder, means, count), key=lambda made: made[2])
    return best


def _beside(
    entry: Entry, rows: Sequence[PlannedRow], ours: Mapping[tuple[str, str], float]
) -> Iterator[str]:
    """The published values, and ours or "not run" under each."""
    table, family = entry.table, entry.config.base.family
    if table.shows == "models":
        models = model_rows(table, entry.config, family=family)
        yield from _columns([("", "paper", "these settings"), *models])
        return
    paper = tables.published(table.published, family)
    labels = {row.row.name: row.label for row in rows}
    labels |= {r.name: labelled(r, entry.config) for r in table.all_rows() if r.name not in labels}
    metrics = [*dict.fromkeys([*table.columns, *(metric for _, metric in paper)])]
    lines: list[Sequence[str]] = [("", *map(plain_label, metrics))]
    for name, label in labels.items():
        if any(row == name for row, _ in paper):
            lines.append((label, *(_value(paper, name, metric, "") for metric in metrics)))
            told = "not run"
            lines.append(("  here", *(_value(ours, name, metric, told) for metric in metrics)))
    yield from _columns(lines)


def _value(means: Mapping[tuple[str, str], float], row: str, metric: str, without: str) -> str:
    value = means.get((row, metric))
    return without if value is None else score_text(metric, value)


def _columns(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True))
