"""The votes of a study in SQLite: written to the disk before they are acknowledged, never twice."""

from __future__ import annotations

import math
import re
import sqlite3
import threading
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from raypref.core.config import InputError
from raypref.study.folder import Study

FILE = "votes.sqlite"
CHOICES = ("left", "right", "tie")
CODE = re.compile(r"[A-Za-z0-9_-]{2,40}")
VOTE_ID = re.compile(r"[0-9a-f]{16,64}")
LONGEST = 86_400.0  # seconds of a vote that are believed
MOST_RATERS = 5_000  # of a study
Kept = Literal["stored", "undone", "other"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS votes (
    id TEXT PRIMARY KEY,
    rater TEXT NOT NULL,
    task TEXT NOT NULL,
    left TEXT NOT NULL,
    right TEXT NOT NULL,
    choice TEXT NOT NULL CHECK (choice IN ('left', 'right', 'tie')),
    seconds REAL NOT NULL,
    time TEXT NOT NULL,
    undone INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS one_per_task ON votes (rater, task) WHERE undone = 0;
"""


class Refused(ValueError):  # noqa: N818  (it is an answer, not an error of the program)
    """What a rater's page sent is no vote of this study; the text says why."""


class Vote(NamedTuple):
    """What one rater said of one task."""

    id: str  # drawn by the page; the same vote sent again has the same
    rater: str  # a code, no name
    task: str
    left: str  # name of the image
    right: str
    choice: str  # one of `CHOICES`
    seconds: float  # that the pair was seen
    time: str  # UTC, ISO 8601


def checked(told: Mapping[str, Any], study: Study, *, time: str = "") -> Vote:
    """The vote that a page tells.

    Args:
        told: parsed JSON or a row of a CSV, whatever it holds.
        study: what it must be a vote of.
        time: when it came; empty: as it says itself.

    Raises:
        Refused: it is no vote of this study.
    """
    rater, task = code_of(told), told.get("task")
    if not isinstance(task, str) or task not in study.tasks:
        raise Refused("this study has no such task")
    own, left, right = told.get("id"), told.get("left"), told.get("right")
    if not isinstance(own, str) or not VOTE_ID.fullmatch(own):
        raise Refused("id is not 16 to 64 hexadecimal digits")
    if {left, right} != {*study.sides(task)} or not isinstance(left, str):
        raise Refused("left and right are not the images of the task")
    choice = told.get("choice")
    if choice not in CHOICES or (choice == "tie" and not study.ties):
        raise Refused(f"choice is not {', '.join(CHOICES if study.ties else CHOICES[:2])}")
    try:
        seconds = float(told.get("seconds", 0.0))
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise Refused("seconds is no number")
    when = time or _time(told.get("time"))
    return Vote(own, rater, task, left, str(right), str(choice), min(seconds, LONGEST), when)


def code_of(told: Mapping[str, Any]) -> str:
    """The rater's code. Refused where it is none."""
    rater = told.get("rater")
    if not isinstance(rater, str) or not CODE.fullmatch(rater):
        raise Refused("a code has 2 to 40 letters, digits, - and _")
    return rater


def now() -> str:
    """The time, UTC, ISO 8601 with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _time(given: object) -> str:
    try:
        when = datetime.fromisoformat(str(given))
    except ValueError:
        raise Refused("time is not ISO 8601") from None
    zoned = when if when.tzinfo else when.replace(tzinfo=UTC)
    return zoned.astimezone(UTC).isoformat(timespec="microseconds")


class VoteStore:
    """The votes of a study. Several threads and processes may use it at once.

    Args:
        folder: the study's.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(
                self.path, check_same_thread=False, timeout=30, isolation_level=None
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # a vote outlives a loss of power
            self._db.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise InputError(f"{self.path} cannot be used: {error}") from None
        self._raters = {row[0] for row in self._db.execute("SELECT DISTINCT rater FROM votes")}

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def cast(self, vote: Vote) -> Kept:
        """Store a vote; on return it is on the disk.

        Returns:
            `stored`, also where it was before; `undone` where the rater took this very vote back;
            `other` where the task has another vote of the rater, which stays.

        Raises:
            Refused: too many raters, or another vote has this id.
        """
        with self._lock:
            if vote.rater not in self._raters and len(self._raters) >= MOST_RATERS:
                raise Refused(f"this study has {MOST_RATERS:,} raters; it takes no more")
            marks = ", ".join("?" * len(vote))
            columns = ", ".join(Vote._fields)
            # Two constraints may hold it off: its id is there, or the task has a vote.
            done = self._db.execute(
                f"INSERT OR IGNORE INTO votes ({columns}) VALUES ({marks})", vote
            )
            if done.rowcount:
                self._raters.add(vote.rater)
                return "stored"
            found = self._db.execute(
                "SELECT rater, task, choice, undone FROM votes WHERE id = ?", (vote.id,)
            ).fetchone()
        if found is None:
            return "other"
        if found[:3] != (vote.rater, vote.task, vote.choice):
            raise Refused("another vote has this id")
        return "undone" if found[3] else "stored"

    def undo(self, rater: str, vote_id: str) -> bool:
        """Take a vote back, once or again; False where the rater has no such vote."""
        with self._lock:
            done = self._db.execute(
                "UPDATE votes SET undone = 1 WHERE id = ? AND rater = ?", (vote_id, rater)
            )
            return bool(done.rowcount)

    def restore(self, rater: str, vote_id: str) -> None:
        """Let a vote stand again that was taken back for another one."""
        with self._lock:
            self._db.execute(
                "UPDATE votes SET undone = 0 WHERE id = ? AND rater = ?", (vote_id, rater)
            )

    def of_rater(self, rater: str) -> dict[str, Vote]:
        """A rater's votes that stand, by task, the oldest first."""
        return {vote.task: vote for vote in self._standing("AND rater = ?", (rater,))}

    def all(self) -> list[Vote]:
        """Every vote that stands, by rater and time."""
        return self._standing()

    def _standing(self, where: str = "", values: tuple[str, ...] = ()) -> list[Vote]:
        query = f"SELECT {', '.join(Vote._fields)} FROM votes WHERE undone = 0 {where}"
        with (
            self._lock,
            closing(self._db.execute(f"{query} ORDER BY rater, time, id", values)) as c,
        ):
            return [Vote(*row) for row in c]
