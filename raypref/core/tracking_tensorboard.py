"""TensorBoard: the event files of a run, in its folder. Only this file knows tensorboardX.

`tensorboard --logdir <storage>` shows all runs of a storage. tensorboardX writes the files and
comes with Ray; to look at them is the package tensorboard.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from raypref.core.ledger import absolute

FLUSH_SECONDS = 10


class TensorboardRecord:
    """The event files of a run.

    Args:
        folder: of the run, on a local disk.
        settings: flat settings, shown as a table.
        name: of the folder below it that a resumed run has; None begins a new one.
    """

    def __init__(self, folder: str, *, settings: Mapping[str, Any], name: str | None) -> None:
        from tensorboardX import SummaryWriter

        resumed = name is not None and Path(absolute(folder), name).is_dir()
        self.id = name if name is not None and resumed else _unused(Path(absolute(folder)))
        path = Path(absolute(folder), self.id)
        # A restarted worker, or job, repeats the steps since its checkpoint.
        self.last: dict[str, int] = {}
        for tag, step in _steps(path):
            self.last[tag] = max(step, self.last.get(tag, -1))
        # Without an ending of their own, files that are begun in the same second are one.
        suffix = f".{uuid.uuid4().hex[:8]}"
        self.writer: Any = SummaryWriter(
            str(path), flush_secs=FLUSH_SECONDS, filename_suffix=suffix
        )
        if not resumed:
            self.table("settings", ["setting", "value"], [*map(list, settings.items())])

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Add a point to each curve; a step that was recorded before is left out."""
        for key, value in values.items():
            if step > self.last.get(key, -1):
                self.writer.add_scalar(key, value, step)
                self.last[key] = step

    def history(self, rows: Iterable[Mapping[str, float]], *, prefix: str) -> None:
        """Add whole curves; each row has its `step`."""
        for row in rows:
            values = {f"{prefix}/{key}": value for key, value in row.items() if key != "step"}
            self.metrics(values, step=int(row["step"]))

    def numbers(self, values: Mapping[str, float]) -> None:
        """Add each as the one point of a curve."""
        for key, value in values.items():
            self.writer.add_scalar(key, value, 0)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add the table as Markdown, which TensorBoard shows as one."""
        lines = [[*columns], ["---"] * len(columns), *([*map(_cell, row)] for row in rows)]
        self.writer.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in lines), 0)

    def describe(self, text: str) -> None:
        """Add the text."""
        self.writer.add_text("result", text, 0)

    def images(self, name: str, pictures: Mapping[str, bytes]) -> None:
        """Add the pictures, as they are encoded; their names are their captions."""
        import io

        from PIL import Image
        from tensorboardX.proto.summary_pb2 import Summary

        for caption, data in pictures.items():
            width, height = Image.open(io.BytesIO(data)).size
            image = Summary.Image(
                height=height, width=width, colorspace=3, encoded_image_string=data
            )
            value = Summary.Value(tag=f"{name}/{caption}", image=image)
            self.writer.file_writer.add_summary(Summary(value=[value]), 0)

    def artifact(self, path: str, folder: str = "") -> None:
        """Nothing: the files lie beside."""

    def finish(self, status: str) -> None:
        """Write what is left and close the file."""
        self.writer.close()


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _unused(folder: Path) -> str:
    """A name for new files: those of a run with other settings are kept apart."""
    names = ("tensorboard" + (f"-{number}" if number > 1 else "") for number in count(1))
    return next(name for name in names if not (folder / name).exists())


def _steps(folder: Path) -> Iterator[tuple[str, int]]:
    """The tags of scalars in event files, each with its step."""
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(folder.glob("events.out.tfevents.*")):
        for data in _event_bytes(file.read_bytes()):
            try:
                event = Event.FromString(data)
            except DecodeError:
                break
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    yield value.tag, event.step


def _event_bytes(data: bytes) -> Iterator[bytes]:
    """The records of an event file: length (8 bytes), its checksum (4), the event, its checksum.

    The last one of a killed run may be cut short; it is left out.
    """
    at = 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        if at + 16 + length > len(data):
            return
        yield data[at + 12 : at + 12 + length]
        at += 16 + length
