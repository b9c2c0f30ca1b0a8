"""Progress lines a person can follow, on a terminal and in a job's log alike."""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

log = logging.getLogger(__name__)


class Work(NamedTuple):
    """What a step did."""

    amount: int
    unit: str  # in the plural
    busy: float = 0.0  # seconds that its devices computed, mean over them


class Progress:
    """Logs done, rate, time left and a note, at most once in a while.

    Args:
        label: what is going on.
        total: how many units there are.
        unit: their name in the plural.
        every: seconds between two lines.
        done: how many were done before.
    """

    def __init__(self, label: str, *, total: int, unit: str, every: float, done: int = 0) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self.every = every
        self.before = self.done = done
        self.start = self.last = time.monotonic()

    def add(self, count: int, *, note: str) -> None:
        """Count finished units; log a line when the last one is old enough."""
        self.done += count
        now = time.monotonic()
        if now - self.last >= self.every and self.before < self.done < self.total:
            self.last = now
            rate = (self.done - self.before) / (now - self.start)
            left = (self.total - self.done) / rate
            log.info("%s, %s, ETA %.0f s", self._line(rate), note, left)

    def finish(self, *, note: str) -> None:
        """Log the last line."""
        took = time.monotonic() - self.start
        rate = (self.done - self.before) / max(took, 1e-9)
        log.info("%s, %s, took %.0f s", self._line(rate), note, took)

    def _line(self, rate: float) -> str:
        return f"{self.label}: {self.done}/{self.total} {self.unit}, {rate:.2f} {self.unit}/s"


def duration(seconds: float) -> str:
    """A time for people: `0.4 s`, `43 s`, `3 min 20 s`, `2 h 14 min`, `3 d 2 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    if seconds < 86400:
        hours, rest = divmod(round(seconds / 60), 60)
        return f"{hours} h {rest} min"
    days, rest = divmod(round(seconds / 3600), 24)
    return f"{days} d {rest} h"
