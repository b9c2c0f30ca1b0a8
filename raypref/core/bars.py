"""The progress display of a terminal: a bar per pass, or what is being waited for."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Live
from rich.spinner import Spinner
from rich.table import Column
from rich.text import Text

from raypref.core.progress import Progress, duration, waited_for

REFRESHES = 4  # per second


class Bars(Live):
    """Shows passes as bars below the lines of the log, on stdout. Used as a context."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}", table_column=Column(no_wrap=True)),
        )
        self.spinner = Spinner("dots")
        self.shown: dict[int, TaskID] = {}
        super().__init__(
            *columns,
            console=Console(highlight=False),
            transient=True,
            refresh_per_second=REFRESHES,
            redirect_stderr=sys.stderr.isatty(),  # else errors would leave their file for stdout
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """Bars, or the spinner."""
        if self.tasks:
            yield self.make_tasks_table(self.tasks)
        elif text := waited_for():
            self.spinner.update(text=Text(text))
            yield self.spinner

    def write(self, text: str, linked: str = "", *, link: str = "") -> None:
        """Write a line above the bars, as wide as it is.

        Args:
            text: its beginning.
            linked: its end, which opens an address.
            link: the address.
        """
        line = Text.assemble(text, (linked, f"link {link}" if link else ""))
        self.console.print(line, soft_wrap=True)

    def advanced(self, progress: Progress, note: str) -> None:
        """Show a pass where it is now."""
        key, rate = id(progress), progress.rate()
        left = f"ETA {duration((progress.total - progress.done) / rate)}" if rate else ""
        speed = f"{rate:.2f} {progress.unit}/s" if rate else ""
        told = ", ".join(filter(None, [speed, note, left]))
        if key not in self.shown:
            self.shown[key] = self.add_task(progress.label, total=progress.total, told=told)
        self.update(self.shown[key], completed=progress.done, told=told)

    def closed(self, progress: Progress) -> None:
        """Take the bar of a pass away."""
        if (task := self.shown.pop(id(progress), None)) is not None:
            self.remove_task(task)
            self.refresh()


class Lines(logging.Handler):
    """Writes the lines of the log above the bars.

    Args:
        bars: the display.
    """

    def __init__(self, bars: Bars) -> None:
        super().__init__()
        self.bars = bars

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        self.bars.write(self.format(record))
