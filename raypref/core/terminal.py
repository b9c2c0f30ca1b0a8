"""What a command says and in which form: lines, bars on a terminal, JSON for programs."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

from raypref.core.messages import without_secrets
from raypref.core.progress import current_step, shown_on

if TYPE_CHECKING:
    from raypref.core.bars import Bars

FORMS = ("auto", "lines", "json")  # auto: bars on a terminal, else lines
QUIET = ("httpx", "httpx2", "urllib3", "ray", "datasets", "alembic")  # libraries that say too much

log = logging.getLogger(__name__)
_form = "lines"  # of what this process says: lines, bars or json
_bars: Bars | None = None  # where the form is bars


class JsonLines(logging.Formatter):
    """One JSON object per line.

    `time` (UTC), `level`, `step` of the run, `pass` within it, `done`, `total`, `rate` (units per
    second) and `message`; null where there is none.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        empty = dict.fromkeys(("pass", "done", "total", "rate"))
        message = record.getMessage()
        if record.exc_info:
            message += f"\n{self.formatException(record.exc_info)}"
        return json.dumps(
            {
                "time": datetime.fromtimestamp(record.created, UTC).isoformat(
                    timespec="milliseconds"
                ),
                "level": record.levelname.lower(),
                "step": current_step(),
                **(getattr(record, "progress", None) or empty),
                "message": message,
            },
            ensure_ascii=False,
        )


class _Foreign(io.TextIOBase):
    """Stands for stdout: what libraries print, as Ray does, becomes lines of the log."""

    def __init__(self) -> None:
        self.rest = ""

    def write(self, text: str) -> int:
        """Log the lines that are whole."""
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            if line := re.sub(r"\x1b\[[\d;]*m", "", line).strip():
                log.info("%s", line)
        return len(text)


@contextmanager
def spoken(form: str) -> Iterator[None]:
    """While this lasts, what the command says goes to stdout in this form.

    Args:
        form: one of `FORMS`.
    """
    global _form, _bars
    before, root = _form, logging.getLogger()
    terminal = sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
    _form = "bars" if form == "auto" and terminal else form.replace("auto", "lines")
    for library in QUIET:
        logging.getLogger(library).setLevel(logging.WARNING)
    handler: logging.Handler = logging.StreamHandler(sys.stdout)
    with ExitStack() as left:
        left.enter_context(warnings.catch_warnings())
        # Ray's advice on its own settings is not for the people who run a job.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"ray\.")
        if _form == "json":
            left.enter_context(redirect_stdout(_Foreign()))
        if _form == "bars":
            from raypref.core.bars import Bars, Lines

            _bars = Bars()
            handler = Lines(_bars)
            left.enter_context(_bars)
            left.enter_context(shown_on(_bars))
        plain = logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S")
        handler.setFormatter(JsonLines() if _form == "json" else plain)
        left.callback(root.setLevel, root.level)
        left.callback(root.removeHandler, handler)
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        try:
            yield
        finally:
            _form, _bars = before, None


def say(text: str = "") -> None:
    """A result, for the person who gave the command; without the passwords of addresses."""
    text = without_secrets(text)
    if _bars is not None:
        _bars.write(text)
    elif _form == "json":
        if text.strip():
            log.info("%s", text.strip())
    else:
        print(text, flush=True)


def say_error(text: str) -> None:
    """What went wrong, on stderr; without the passwords of addresses."""
    text = without_secrets(text)
    if _form == "json":
        record = log.makeRecord(log.name, logging.ERROR, "", 0, text, (), None)
        text = JsonLines().format(record)
    print(text, file=sys.stderr, flush=True)


def say_place(name: str, path: str) -> None:
    """Where a result is; a terminal opens it.

    Args:
        name: of the result.
        path: absolute path, or URI; a password in it is left out.
    """
    path = without_secrets(path)
    if _bars is not None and "://" not in path:
        _bars.write(f"{name}: ", path, link=f"file://{quote(path)}")
    else:
        say(f"{name}: {path}")
