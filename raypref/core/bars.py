"""The progress display of a terminal: a bar per pass, or what is being waited for."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Live
from rich.spinner import Spinner
from rich.text import Text

from raypref.core.progress import Progress, duration, waited_for

REFRESHES = 4  # per second


class Bars(Live):
    """Shows passes as bars below the lines of the log. Used as a context.

    Args:
        console: of the terminal.
    """

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
        )
        self.spinner = Spinner("dots")
        self.shown: dict[int, TaskID] = {}
        super().__init__(*columns, console=console, transient=True, refresh_per_second=REFRESHES)

    def get_renderables(self) -> Iterable[RenderableType]:
        """Bars, or the spinner."""
        if self.tasks:
            yield self.make_tasks_table(self.tasks)
        elif text := waited_for():
            self.spinner.update(text=Text(text))
            yield self.spinner

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


class Lines(logging.Handler):
    """Writes the lines of the log above the bars.

    Args:
        console: of the terminal.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, as wide as it is."""
        self.console.print(Text(self.format(record)), soft_wrap=True)
