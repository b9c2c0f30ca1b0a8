"""The job that shows the arena of a source of labels: its settings, and what it makes."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from raypref.core.config import InputError, Section, setting
from raypref.core.job_lock import only_job_in
from raypref.core.ledger import absolute, join, write_bytes
from raypref.core.messages import without_secrets
from raypref.core.progress import counted, waiting
from raypref.evaluate.graph import TableConfig
from raypref.pairs.config import PairingConfig, PairsConfig
from raypref.sources.index import SourceConfig

if TYPE_CHECKING:
    from raypref.core.rows import Row
    from raypref.pairs.choices import Choices, Findings

log = logging.getLogger(__name__)

SAID = {"vote_share": "votes for the chosen image", "confidence": "confidence"}
FOLDER = "arena-page"  # below the run's; its ledger `arena` is another thing
UNNAMED = "unnamed"  # what becomes of a label, besides the words of `pairs.decide`


class ArenaJobConfig(Section):
    """The settings of a run that this job reads: it needs no images and no models."""

    run: str = setting("run", "name of the run; its folder is <storage>/<run>", min_length=1)
    storage: str = setting("runs", "folder of all runs, local or URI", min_length=1)
    seed: int = setting(0, "seed of everything random")
    source: SourceConfig
    pairs: PairsConfig = PairsConfig()
    table: TableConfig = TableConfig()


def show_capabilities(config: ArenaJobConfig) -> tuple[str, Findings, Counter[str]]:
    """Fit the arena to the labels of `source`, and write page and numbers.

    Returns:
        The folder, `<storage>/<run>/arena-page`, what was found, and what became of the labels.

    Raises:
        InputError: no labels there, no two generators named, or another job in the folder.
    """
    # Imported here: a wrong setting is refused before these libraries are loaded.
    from raypref.pairs.choices import arena_findings
    from raypref.report.arena import render

    config.source.store()  # what is not there is refused before a folder is made
    run = absolute(join(config.storage, config.run))
    folder = join(run, FOLDER)
    with only_job_in(run):
        choices, counts = read_choices(config)
        amount, where = counted(len(choices.chosen), "choice"), without_secrets(config.source.path)
        log.info("arena of %s in %s of %s", counted(len(choices.names), "generator"), amount, where)
        with waiting("arena: walking the choices"):
            found = arena_findings(
                choices, config.pairs.arena, seed=config.seed, resamples=config.table.resamples
            )
        written = numbers(found, counts, config)
        write_bytes(join(folder, "arena.json"), f"{json.dumps(written, indent=1)}\n".encode())
        write_bytes(join(folder, "index.html"), render(found, counts, config.pairs.arena).encode())
    return folder, found, counts


def read_choices(config: ArenaJobConfig) -> tuple[Choices, Counter[str]]:
    """Read the labels once, in the order of the source; no image is opened.

    They are those that a run with the same settings fits its arena to, in the same order: all that
    decide, beyond `pairs.limit` too, and turned round where `pairs.flip_labels` says so.

    In memory are 33 bytes per label that counts.

    Raises:
        InputError: as in `show_capabilities`.
    """
    import numpy as np

    from raypref.pairs.choices import Choices
    from raypref.pairs.decide import number_labels
    from raypref.pairs.listing import problem_of
    from raypref.sources.pairs import labelled_pairs

    counts: Counter[str] = Counter()

    def rows() -> Iterator[Row]:
        """What `number_labels` reads of each label."""
        source = config.source
        listed = labelled_pairs(source.store(), source.layout)
        for pair in itertools.islice(listed, source.limit or None):
            counts["labels"] += 1
            problem = problem_of(pair, source.max_caption) or None
            yield {**pair._asdict(), "problem": problem}

    also = ("vote_share", "confidence")
    run = PairingConfig(source=config.source, seed=config.seed, pairs=config.pairs)
    with waiting(lambda: f"arena: reading the labels, {counts['labels']:,} so far"):
        labels = number_labels(rows(), run, also=also)
    walk = labels.walk
    counts += labels.left_out + Counter({UNNAMED: len(labels.chosen) - len(walk)})
    chosen, rejected, ties = labels.chosen[walk], labels.rejected[walk], labels.ties[walk]
    # A generator whose opponents are never named is none of the arena.
    there = np.union1d(chosen, rejected)
    _check(config, counts, len(walk) - int(ties.sum()), len(there))
    return Choices(
        [labels.names[number] for number in there],
        np.searchsorted(there, chosen),
        np.searchsorted(there, rejected),
        ties,
        *(labels.also[name][walk] for name in also),
    ), counts


def numbers(found: Findings, counts: Counter[str], config: ArenaJobConfig) -> dict[str, Any]:
    """What was found, for other programs: plain values, null where there is none."""

    def plain(value: Any) -> Any:
        if hasattr(value, "_asdict"):
            value = value._asdict()
        if isinstance(value, dict):
            return {str(key): plain(each) for key, each in value.items()}
        if isinstance(value, list):
            return [plain(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    given = {"seed": config.seed, "pairs": config.pairs.model_dump()}
    return {"settings": given, "labels": dict(counts), **plain(found)}


def terminal_text(found: Findings, counts: Mapping[str, int]) -> str:
    """What was found, as lines of at most 100 characters for a terminal."""
    wide = max(9, *(len(row.generator) for row in found.standings))
    lines = [f"{'generator':<{wide}}  capability  ±2 std     choices    won"]
    for row in found.standings:
        won = f"{'–':>6}" if math.isnan(row.win_rate) else f"{row.win_rate:6.1%}"
        name = f"{row.generator:<{wide}}"
        lines.append(f"{name}  {row.mean:10.2f}  {2 * row.std:6.2f}  {row.games:10,} {won}")
    left = [f"{counts[word]:,} {word}" for word in counts if word != "labels"]
    ties = [f"{counted(found.ties, 'tie')}"] if found.ties else []
    lines += [
        "",
        f"labels: {counts['labels']:,}: {', '.join([f'{found.decided:,} decided', *ties, *left])}",
        f"pairs within one generator: {found.within:.1%} of those decided",
        f"choices of the less capable generator's image: {_percent(found.upsets)}",
        f"held-out choices foretold: {_percent(found.predicted)}, expected "
        f"{_percent(found.expected)}",
        f"largest difference to the batch fit, centred: {found.batch_difference:.3f}",
        "gap over its mean, by percent of pairs: "
        + ", ".join(f"{percent}%: {value:.2f}" for percent, value in found.quantiles.items()),
    ]
    for each in found.agreements:
        pair = [("Spearman", each.spearman), ("Pearson", each.pearson)]
        told = ", ".join(f"{n} {r.value:z.3f} [{r.low:z.3f}, {r.high:z.3f}]" for n, r in pair)
        what = SAID[each.what]
        lines.append(f"gap and {what} of {each.pairs:,} held-out pairs: {told}")
        lines.append(f"  of the variance of {what}, {_percent(each.between)} is between generators")
    if not found.agreements:
        lines.append("no votes and no confidence in the labels to compare the gap with")
    return "\n".join(lines)


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:z.1%}"


def _check(config: ArenaJobConfig, counts: Counter[str], decided: int, generators: int) -> None:
    where = f"source.path: '{without_secrets(config.source.path)}'"
    if not counts["labels"]:
        raise InputError(f"{where} has no labelled pairs")
    said = ", ".join(f"{counts[word]:,} {word}" for word in counts if word != "labels")
    if not decided and counts[UNNAMED]:
        raise InputError(
            f"{where} names no generators: none of its {counts['labels']:,} labels says which "
            "model made which image; columns chosen_model and rejected_model, or model_0 and "
            f"model_1, do ({said})"
        )
    if not decided:
        raise InputError(f"{where}: none of its {counts['labels']:,} labels decides ({said})")
    if generators < 2:
        raise InputError(f"{where} names one generator; an arena needs two that were compared")
