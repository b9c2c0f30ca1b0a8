"""Prompts alone, for trainings that learn from images of their own policy: rows without images.

    index (what the source lists) -> prompts, rejects, pairs

Every prompt ends exactly once: as a row of `pairs`, as a repeat, beyond the limit,
or dropped with a reason.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property

import pyarrow as pa

from raypref.core.config import InputError, results_of
from raypref.core.ledger import Ledger, Place, part_name, placed
from raypref.core.messages import without_secrets
from raypref.core.progress import Work, counted, waiting
from raypref.core.rows import Row, content_key
from raypref.curate.publish import REJECTS, LargeParts, with_features
from raypref.engine.stream import StreamConfig
from raypref.pairs.cards import write_prompt_cards
from raypref.pairs.columns import PROMPT_PAIRS, PROMPTS
from raypref.pairs.config import PairingConfig
from raypref.pairs.decide import DROPPED
from raypref.pairs.listing import Listed, prompt_problem
from raypref.sources.prompt_files import prompts_in
from raypref.sources.remembered import remembered

log = logging.getLogger(__name__)

PROMPTS_A_PART = 1024  # of the pairs: a part is what a worker encodes at once
LISTED = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),  # at most `source.max_caption` characters of it
        ("problem", pa.string()),  # `reason: message`, else null
    ]
)


class PromptPairs:
    """One run's prompts: its ledgers and how they are filled.

    Args:
        config: everything that decides the pairs.
        place: where its ledgers lie.
    """

    def __init__(self, config: PairingConfig, *, place: Place) -> None:
        self.config = config
        self.place = place
        self.needs: tuple[Callable[[], object], ...] = ()  # no model

    @cached_property
    def listed(self) -> Listed:
        """What the source lists; reads all prompts, once."""
        return remembered(("prompts", self.config.source), self._survey)

    @cached_property
    def index(self) -> Ledger:
        """What the source lists."""
        c = self.config
        parts = {"source.digest": self.listed.digest, "source": c.source}
        return self._ledger("curate/index", {**parts, "pairs.kind": c.pairs.kind})

    @cached_property
    def pairs(self) -> Ledger:
        """The distinct prompts, in the order of the source; without images."""
        return self._after("pairs")

    @cached_property
    def inputs(self) -> Ledger:
        """What became of every prompt, for people."""
        return self._after("prompts")

    @cached_property
    def rejects(self) -> Ledger:
        """The prompts that could not be used, for people."""
        return self._after("rejects")

    @property
    def ledgers(self) -> tuple[Ledger, ...]:
        """All ledgers, in the order in which they are filled."""
        return self.index, self.inputs, self.rejects, self.pairs

    def _ledger(self, name: str, parts: dict[str, object]) -> Ledger:
        return placed(self.place, name, results_of(parts))

    def _after(self, name: str) -> Ledger:
        return self._ledger(name, {**self.index.settings, "pairs": self.config.pairs})

    def entries(self) -> int:
        """How many prompts the source lists, blanks and repeats too."""
        return self.listed.counts["entries"]

    def described(self) -> str:
        """What the source holds, in a line for people."""
        counts = self.listed.counts
        told = [counted(counts["entries"], "prompt")]
        told += [f"{counts[what]:,} {what}" for what in ("repeated", "unusable") if counts[what]]
        return f"{', '.join(told)}, in {without_secrets(self.config.source.path)}"

    def run(self, streaming: StreamConfig) -> Work:
        """Make the pairs; skips what is done.

        Raises:
            InputError: not one prompt was left; says where they were lost.
        """
        if self.index.state() != "complete":
            with waiting("prompts: listing them"):
                self._write_index()
        counts = self.publish()
        log.info("pairs: %d of %s", counts["pair"], counted(counts.total(), "prompt"))
        return Work(counts.total(), "prompts")

    def publish(self) -> Counter[str]:
        """Write `prompts`, `rejects` and `pairs`; how many prompts ended for each reason.

        Raises:
            InputError: not one prompt was left; says where they were lost.
        """
        for ledger in (self.inputs, self.rejects, self.pairs):
            ledger.begin()
        counts: Counter[str] = Counter()
        tables, dropped = LargeParts(self.inputs, PROMPTS), LargeParts(self.rejects, REJECTS)
        ended, schema, parts = self._ended(), with_features(PROMPT_PAIRS), itertools.count()
        while rows := list(itertools.islice(ended, PROMPTS_A_PART)):
            counts.update(row["reason"] or row["status"] for row in rows)
            tables.add(rows)
            dropped.add([row for row in rows if row["status"] == DROPPED])
            if taken := [row for row in rows if row["status"] == "pair"]:
                table = pa.Table.from_pylist(taken, schema=schema)
                self.pairs.write_part(table, part_name(f"{next(parts):08d}"))
        total, unusable = tables.close(), dropped.close()
        if not counts["pair"]:
            raise InputError(
                "no prompt was left: " + ", ".join(f"{n} {reason}" for reason, n in counts.items())
            )
        write_prompt_cards(
            self.config, counts, prompts=self.inputs, rejects=self.rejects, pairs=self.pairs
        )
        self.inputs.commit(expected=total, counts=counts)
        self.rejects.commit(expected=unusable, counts=counts)
        self.pairs.commit(expected=counts["pair"], counts=counts)
        return counts

    def _rows(self) -> Iterator[Row]:
        """What the source lists, its first `source.limit` entries."""
        source = self.config.source
        longest = source.max_caption
        for id_, prompt in itertools.islice(prompts_in(source.store()), source.limit or None):
            text = prompt.text.strip()  # surrounding spaces are no part of a prompt
            problem = prompt_problem(text, longest, of="line") or None
            yield {"id": id_, "prompt": text[:longest], "problem": problem}

    def _survey(self) -> Listed:
        total, counts = hashlib.sha256(), Counter[str]()
        seen: set[bytes] = set()
        with waiting(lambda: f"source: reading the prompts, {counts['entries']:,} so far"):
            for row in self._rows():
                total.update(("\x1f".join(map(str, row.values())) + "\n").encode())
                counts["entries"] += 1
                if row["problem"]:
                    counts["unusable"] += 1
                else:
                    counts["repeated"] += _is_repeat(row["prompt"], seen)
        if not counts["entries"]:
            raise InputError(f"source.path: there is no prompt in '{self.config.source.path}'")
        return Listed(total.hexdigest()[:16], counts)

    def _write_index(self) -> None:
        self.index.clear()
        self.index.begin()
        parts = LargeParts(self.index, LISTED)
        parts.add([*self._rows()])
        count = parts.close()
        self.index.commit(expected=count, counts={"listed": count})

    def _ended(self) -> Iterator[Row]:
        """What became of each prompt."""
        limit, taken, seen = self.config.pairs.limit, 0, set[bytes]()
        for row in self.index.rows(batch_size=PROMPTS_A_PART):
            ended: Row = {**row, "reason": None, "status": "not_selected"}
            if row["problem"]:
                word, _, message = row["problem"].partition(": ")
                told = {"uri": row["id"].rpartition("#")[0], "stage": "list", "message": message}
                yield {**ended, **told, "status": DROPPED, "reason": word}
            elif _is_repeat(row["prompt"], seen):
                yield {**ended, "reason": "duplicate"}
            elif limit and taken >= limit:
                yield {**ended, "reason": "beyond_limit"}
            else:
                taken += 1
                yield {**ended, "status": "pair", "key": content_key(b"", row["prompt"])}


def _is_repeat(text: str, seen: set[bytes]) -> bool:
    """Whether a prompt was seen before; 16 bytes of each are kept."""
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    if digest in seen:
        return True
    seen.add(digest)
    return False
