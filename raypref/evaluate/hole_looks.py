"""The looks of painted holes: what a model puts there, besides what it shows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from raypref.core.config import Resources
from raypref.core.ledger import Ledger
from raypref.core.rows import Row
from raypref.evaluate.labels import IN_HOLE
from raypref.evaluate.painting import StoredHole
from raypref.images.decode import as_image
from raypref.images.looks import LOOKS, looks
from raypref.models.paint import BRIGHT
from raypref.rewards.passes import Measure


def hole_looks(photographs: Ledger) -> dict[str, Measure]:
    """The measure of painted holes, by the name of its ledgers.

    Args:
        photographs: of `read_photographs`.
    """
    stage = HoleLooks(photographs)
    return {stage.name: Measure(stage, {}, stage.writes.names)}


class HoleLooks:
    """Transform: the looks of an image within its hole alone, `brightness_in_hole` and so on.

    Args:
        photographs: of `read_photographs`.
    """

    name = "looks_in_hole"
    writes = pa.schema([(name + IN_HOLE, pa.float32()) for name in LOOKS])
    resources = Resources(workers=0, batch=64)

    def __init__(self, photographs: Ledger) -> None:
        self.hole = StoredHole(photographs)
        self.reads: tuple[str, ...] = (*self.hole.reads, "image")

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, rows: list[Row]) -> None:
        """Fill the columns."""
        self.hole(rows)
        for row in rows:
            region_hw = np.asarray(row["mask"]) >= BRIGHT
            found = looks(as_image(row["image"]), region_hw)
            row.update((name + IN_HOLE, value) for name, value in found.items())
