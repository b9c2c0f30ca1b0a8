"""Holes painted by every model: what is around them is given, and put back with a soft rim."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raypref.core.config import InputError, Resources
from raypref.core.ledger import Ledger
from raypref.core.rows import Row, Transform
from raypref.curate.select import SOUND
from raypref.engine.stream import StreamConfig, stream
from raypref.evaluate.generate import Generate, GenerateConfig
from raypref.evaluate.holes import LoadHole
from raypref.images.decode import as_image, of_unit, open_png
from raypref.models import paint
from raypref.models.backbone import BackboneConfig
from raypref.models.families.registry import family
from raypref.sources.holes import HOLE

log = logging.getLogger(__name__)

PHOTOGRAPHS = "photographs"  # ledger of a set of holes: what they are in
HELD = ("prompt_id", "prompt", "photograph", "mask")


def read_photographs(
    holes: Sequence[Row], ledger: Ledger, *, size: int, streaming: StreamConfig
) -> float:
    """Read every hole once into a ledger: a square photograph and its mask, or why there is none.

    Args:
        holes: of `read_holes`.
        ledger: gets a row per hole: `id`, `prompt_id` (its number among the holes), `prompt`,
            `photograph` and `mask` as PNG bytes, or the reason for which it is dropped.
        size: side of the crop, pixels.
        streaming: how rows are cut into blocks.

    Returns:
        Seconds that the workers computed.
    """
    schema = pa.schema(
        [("id", pa.string()), ("prompt_id", pa.int64()), ("prompt", pa.string()), *HOLE]
    )
    named = [{**hole, "prompt_id": number} for number, hole in enumerate(holes)]
    rows = pa.Table.from_pylist(named, schema=schema)
    done = stream(rows, stages=[LoadHole(size)], ledger=ledger, keep=HELD, config=streaming)
    dropped = {reason: count for reason, count in done.counts.items() if reason != "ok"}
    if dropped:
        told = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        log.warning("%d of %d holes are left out: %s", sum(dropped.values()), len(holes), told)
    return done.busy


def hole_prompts(ledger: Ledger) -> dict[int, str]:
    """The prompts of the holes that could be read, by number.

    Raises:
        InputError: none could.
    """
    found = ledger.table(["prompt_id", "prompt"], where=SOUND).to_pylist()
    if not found:
        why = next(ledger.rows(["reject_message"]))["reject_message"]
        raise InputError(f"evaluate.holes: no hole can be read; the first: {why}")
    return {row["prompt_id"]: row["prompt"] for row in sorted(found, key=lambda r: r["prompt_id"])}


def drawing(
    base: BackboneConfig,
    config: GenerateConfig,
    *,
    loras: Mapping[str, str],
    photographs: Ledger | None,
) -> list[Transform]:
    """The transforms that make images: of prompts, or of the holes in photographs."""
    if photographs is None:
        return [Generate(base, config, loras=loras)]
    return [StoredHole(photographs), Paint(base, config, loras=loras)]


class StoredHole:
    """Transform: read the photograph and mask of each row's hole from the ledger of its set.

    Args:
        photographs: of `read_photographs`.
    """

    name = "stored_hole"
    reads: tuple[str, ...] = ("prompt_id",)
    writes = pa.schema([("photograph", pa.binary()), ("mask", pa.binary())])
    resources = Resources(workers=0, batch=64)  # a read of the ledger serves so many rows

    def __init__(self, photographs: Ledger) -> None:
        self.photographs = photographs

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, rows: list[Row]) -> None:
        """Fill the columns."""
        numbers = pa.array({row["prompt_id"] for row in rows}, pa.int64())
        table = self.photographs.table(
            ["prompt_id", *self.writes.names], where=pc.field("prompt_id").isin(numbers)
        )
        found = {
            row["prompt_id"]: {name: open_png(row[name]) for name in self.writes.names}
            for row in table.to_pylist()
        }
        for row in rows:
            row.update(found[row["prompt_id"]])


class Paint(Generate):
    """Transform: model, hole, prompt and seed to an image.

    As `Generate`, but the model fills the hole of `photograph` that `mask` (255: repaint) says.
    `raw` is what it made, the autoencoder's small errors around the hole included. `image` is what
    is judged: with `blend` the photograph around the hole again, else `raw` itself, which then is
    no column of its own.
    """

    name = "paint"
    reads: tuple[str, ...] = (*Generate.reads, "photograph", "mask")

    def __init__(
        self, base: BackboneConfig, config: GenerateConfig, *, loras: Mapping[str, str]
    ) -> None:
        super().__init__(base, config, loras=loras)
        self.writes = pa.schema([(name, pa.binary()) for name in painted_columns(config)])

    def arguments(self, rows: list[Row]) -> dict[str, Any]:
        """What to repaint, and with what."""
        photographs, masks = (
            [as_image(row[name]) for row in rows] for name in ("photograph", "mask")
        )
        prompts = [row["prompt"] for row in rows]
        size, guidance = photographs[0].width, self.config.guidance
        called = family(self.base.family).arguments(prompts, guidance, size)
        return called | paint.hole_arguments(photographs, masks)

    def finish(self, rows: list[Row], out: Sequence[Any]) -> None:
        """Fill the columns."""
        for row, pixels in zip(rows, out, strict=False):
            image = of_unit(pixels, rounding=self.config.rounding)
            if self.config.blend:
                row["raw"] = image
                image = paint.blended(image, as_image(row["photograph"]), as_image(row["mask"]))
            row["image"] = image


def painted_columns(config: GenerateConfig) -> tuple[str, ...]:
    """The columns of a painted hole; the last is the model's own output."""
    return ("image", "raw") if config.blend else ("image",)
