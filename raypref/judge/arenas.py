"""The job that shows the arena of a source of labels: its settings, and what it makes."""

from __future__ import annotations

import itertools
import json
import logging
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from raypref.core.config import InputError, Section, setting
from raypref.core.job_lock import only_job_in
from raypref.core.ledger import absolute, join, write_bytes
from raypref.core.messages import without_secrets
from raypref.core.progress import counted, waiting
from raypref.evaluate.graph import TableConfig
from raypref.pairs.arena import ArenaConfig
from raypref.sources.base import Pair
from raypref.sources.index import SourceConfig
from raypref.sources.pairs import labelled_pairs

if TYPE_CHECKING:
    from raypref.pairs.choices import Choices, Findings

log = logging.getLogger(__name__)

SAID = {"vote_share": "votes for the chosen image", "confidence": "confidence"}
# What becomes of a label, besides being walked.
DROPPED, UNLABELLED, UNSURE, UNNAMED = "dropped", "unlabelled", "low_confidence", "unnamed"


class FittedPairs(Section):
    """Which labels the arena is fitted to, and how."""

    min_confidence: float = setting(
        0.0, "leave out labels with less confidence, where they have one", later=True, ge=0
    )
    arena: ArenaConfig = ArenaConfig()


class ArenaJobConfig(Section):
    """The settings of a run that this job reads: it needs no images and no models."""

    run: str = setting("run", "name of the run; its folder is <storage>/<run>", min_length=1)
    storage: str = setting("runs", "folder of all runs, local or URI", min_length=1)
    seed: int = setting(0, "seed of everything random")
    source: SourceConfig
    pairs: FittedPairs = FittedPairs()
    table: TableConfig = TableConfig()


def show_capabilities(config: ArenaJobConfig) -> tuple[str, Findings, Counter[str]]:
    """Fit the arena to the labels of `source`, and write page and numbers.

    Returns:
        The folder, `<storage>/<run>/arena`, what was found, and what became of the labels.

    Raises:
        InputError: no labels there, no two generators named, or another job in the folder.
    """
    # Imported here: a wrong setting is refused before these libraries are loaded.
    from raypref.pairs.choices import arena_findings
    from raypref.report.arena import render

    config.source.store()  # what is not there is refused before a folder is made
    folder = absolute(join(config.storage, config.run, "arena"))
    with only_job_in(folder):
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

    In memory are 33 bytes per label whose generators are named.

    Raises:
        InputError: as in `show_capabilities`.
    """
    import numpy as np

    from raypref.pairs.arena import walk_order
    from raypref.pairs.choices import Choices

    numbers: dict[str, int] = {}
    chosen, rejected, ties = array("q"), array("q"), array("b")
    shares, sure, counts = array("d"), array("d"), Counter[str]()
    listed = labelled_pairs(config.source.store(), config.source.layout)

    def ids() -> Iterator[str]:
        """The ids of those that count, whose numbers are kept."""
        for pair in itertools.islice(listed, config.source.limit or None):
            counts["labels"] += 1
            if reason := _left_out(pair, config.pairs.min_confidence):
                counts[reason] += 1
                continue
            names = [pair.first_model or "", pair.second_model or ""]
            turned = pair.label == 0
            both = [numbers.setdefault(name, len(numbers)) for name in names]
            chosen.append(both[turned])
            rejected.append(both[not turned])
            ties.append(pair.label == 0.5)
            share = math.nan if pair.vote_share is None else pair.vote_share
            shares.append(1 - share if turned else share)
            sure.append(math.nan if pair.confidence is None else pair.confidence)
            yield pair.id

    with waiting(lambda: f"arena: reading the labels, {counts['labels']:,} so far"):
        order = walk_order(ids(), config.seed)
    _check(config, counts, len(chosen) - sum(ties), len(numbers))
    names = sorted(numbers)
    # Numbered by name, and not by which comes first in the source.
    rank = {name: place for place, name in enumerate(names)}
    places = np.array([rank[name] for name in numbers])
    columns = (
        places[np.array(chosen)][order],
        places[np.array(rejected)][order],
        np.array(ties, bool)[order],
        np.array(shares)[order],
        np.array(sure)[order],
    )
    return Choices(names, *columns), counts


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


def _left_out(pair: Pair, min_confidence: float) -> str:
    """Why a label says nothing to the arena, or ""."""
    if pair.problem or pair.label not in (0, 0.5, 1, None):
        return DROPPED
    if pair.label is None:
        return UNLABELLED
    if pair.confidence is not None and pair.confidence < min_confidence:
        return UNSURE
    return "" if pair.first_model and pair.second_model else UNNAMED


def _check(config: ArenaJobConfig, counts: Counter[str], decided: int, generators: int) -> None:
    where = f"source.path: '{without_secrets(config.source.path)}'"
    if not counts["labels"]:
        raise InputError(f"{where} has no labelled pairs")
    said = ", ".join(f"{counts[r]:,} {r}" for r in (DROPPED, UNLABELLED, UNSURE, UNNAMED))
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
