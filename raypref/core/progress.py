"""Progress that a person can follow: lines in a log, bars on a terminal."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

log = logging.getLogger(__name__)

SILENCE = 8.0  # seconds without a line after which one says what is being waited for


class Work(NamedTuple):
    """What a step did."""

    amount: int
    unit: str  # in the plural
    busy: float = 0.0  # seconds that its devices computed, mean over them


class Display(Protocol):
    """Shows progress in place of lines: the bars of a terminal."""

    def advanced(self, progress: Progress, note: str) -> None:
        """Units were finished."""

    def closed(self, progress: Progress) -> None:
        """All units are finished: its last line follows."""


_display: Display | None = None


@contextmanager
def shown_on(display: Display) -> Iterator[None]:
    """While this lasts, progress is shown there; no line breaks a silence."""
    global _display
    _display = display
    try:
        yield
    finally:
        _display = None


class Progress:
    """Logs done, rate, time left and a note, at most once in a while.

    The rate counts from the first finished units: before them, workers start and models load.

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
        self.first: tuple[float, int] | None = None  # when the first units were finished, how many

    def add(self, count: int, *, note: str) -> None:
        """Count finished units; log a line when the last one is old enough."""
        self.done += count
        now = time.monotonic()
        if self.first is None and count:
            self.first = (now, self.done)
        if _display is not None:
            _display.advanced(self, note)
        elif now - self.last >= self.every and self.before < self.done < self.total:
            self.last = now
            rate = self.rate()
            left = f", ETA {duration((self.total - self.done) / rate)}" if rate else ""
            log.info("%s, %s%s", self._line(rate), note, left, extra=self._facts(rate))

    def finish(self, *, note: str) -> None:
        """Log the last line."""
        if _display is not None:
            _display.closed(self)
        took, rate = time.monotonic() - self.start, self.rate()
        count, seconds = _passes.get(self.label, (0, 0.0))
        _passes[self.label] = (count + self.done - self.before, seconds + took)
        log.info("%s, %s, took %s", self._line(rate), note, duration(took), extra=self._facts(rate))

    def rate(self) -> float:
        """Units per second since the first ones were finished; 0 while that is unknown."""
        if self.first is None or self.done == self.first[1]:
            return 0.0
        began, count = self.first
        return (self.done - count) / max(time.monotonic() - began, 1e-9)

    def _facts(self, rate: float) -> dict[str, Any]:
        """For a log that programs read (`terminal.JsonLines`)."""
        facts = {"pass": self.label, "done": self.done, "total": self.total}
        return {"progress": {**facts, "rate": round(rate, 4) if rate else None}}

    def _line(self, rate: float) -> str:
        speed = f", {rate:.2f} {self.unit}/s" if rate else ""
        return f"{self.label}: {self.done}/{self.total} {self.unit}{speed}"


_passes: dict[str, tuple[int, float]] = {}


def passes() -> dict[str, dict[str, float]]:
    """What was finished since the last call, by label: `{"amount": units, "seconds": ...}`.

    A pass in several waves adds up. Its seconds count from its start, as workers' and models' do.
    """
    found = {name: {"amount": n, "seconds": s} for name, (n, s) in _passes.items()}
    _passes.clear()
    return found


@contextmanager
def waiting(what: str | Callable[[], str]) -> Iterator[None]:
    """While this lasts, say what is being waited for whenever no line was logged for 8 s.

    Args:
        what: such as `stage1: starting 2 workers`; called each time where it changes.
    """
    _silence.watch()
    waited_for = (what, time.monotonic())
    _silence.stack.append(waited_for)
    try:
        yield
    finally:
        _silence.stack.remove(waited_for)


class _Silence(logging.Handler):
    """Notes when the project last logged a line, and breaks the silence."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.stack: list[tuple[str | Callable[[], str], float]] = []  # innermost last
        self.last = time.monotonic()
        self.watching = False

    def emit(self, record: logging.LogRecord) -> None:
        """Note the moment."""
        self.last = time.monotonic()

    def watch(self) -> None:
        """Begin to watch, once."""
        if not self.watching:
            self.watching, self.last = True, time.monotonic()
            logging.getLogger("raypref").addHandler(self)
            threading.Thread(target=self._speak, daemon=True).start()

    def _speak(self) -> None:
        while True:
            time.sleep(max(0.1, self.last + SILENCE - time.monotonic()))
            now = time.monotonic()
            if now - self.last < SILENCE:
                continue
            self.last = now
            if _display is None and (text := waited_for()):
                log.info("%s", text)


_silence = _Silence()


def waited_for() -> str:
    """What is being waited for and since when: `starting Ray (12 s so far)`; empty: nothing."""
    for what, began in _silence.stack[-1:]:
        text = what() if callable(what) else what
        return f"{text} ({duration(time.monotonic() - began)} so far)"
    return ""


_steps: list[str] = []


@contextmanager
def at_step(name: str) -> Iterator[None]:
    """While this lasts, the run is at this step."""
    _steps.append(name)
    try:
        yield
    finally:
        _steps.pop()


def current_step() -> str | None:
    """The step that the run is at."""
    return _steps[-1] if _steps else None


def since_start() -> float:
    """Seconds since this process began, its imports included."""
    import psutil

    return time.time() - float(psutil.Process().create_time())


def counted(number: int, unit: str) -> str:
    """A number of things: `1 worker`, `2 workers`; the unit in the singular or plural."""
    return f"{number} {unit.removesuffix('s')}{'' if number == 1 else 's'}"


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
