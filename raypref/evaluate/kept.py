"""What of a photograph an inpainter leaves as it is: its own output against what must stay."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
from PIL import Image

from raypref.core.config import Resources
from raypref.core.ledger import Ledger
from raypref.core.rows import Row
from raypref.evaluate.measures import Measure
from raypref.evaluate.painting import StoredHole
from raypref.images.decode import as_image
from raypref.images.masks import BRIGHT

PER = 1000.0  # errors are told in thousandths, as in BrushNet's tables
MOST_DB = 100.0  # for no difference, whose own would be infinite


def kept(photographs: Ledger, column: str) -> dict[str, Measure]:
    """The measure of painted holes, by the name of its ledgers.

    Args:
        photographs: of `read_photographs`.
        column: of the model's own output.
    """
    stage = Kept(photographs, column)
    return {stage.name: Measure(stage, {}, stage.writes.names)}


class Kept:
    """Transform: the error outside the hole. NaN where the hole is the whole picture.

    `mse_kept` is the mean over the pixels and channels outside the hole of the squared difference
    to the photograph, levels from 0 to 1, times 1000. `psnr_kept` is 10 log10 of 1 over that mean,
    in decibels, at most 100. The released code (BrushNet, Follow-Your-Preference) sums over the
    channels: its error is three times this one, its PSNR lower by 10 log10 3 = 4.77. It also
    measures the blended image, which tells little of the model.

    Args:
        photographs: of `read_photographs`.
        column: of the model's own output.
    """

    name = "kept"
    writes = pa.schema([("psnr_kept", pa.float32()), ("mse_kept", pa.float32())])
    resources = Resources(workers=0, batch=64)

    def __init__(self, photographs: Ledger, column: str) -> None:
        self.hole = StoredHole(photographs)
        self.column = column
        self.reads: tuple[str, ...] = (*self.hole.reads, column)

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, rows: list[Row]) -> None:
        """Fill the columns."""
        self.hole(rows)
        for row in rows:
            error = error_outside(as_image(row[self.column]), row["photograph"], row["mask"])
            row["mse_kept"] = PER * error
            row["psnr_kept"] = decibels(error)


def error_outside(painted: Image.Image, photograph: Image.Image, mask: Image.Image) -> float:
    """Mean squared difference outside the hole, levels from 0 to 1; NaN where all is hole.

    Args:
        painted: RGB.
        photograph: RGB, of the same size.
        mask: L, of the same size; bright where to repaint.
    """
    outside = np.asarray(mask) < BRIGHT
    if not outside.any():
        return math.nan
    levels = [np.asarray(image, np.float64)[outside] / 255 for image in (painted, photograph)]
    return float(((levels[0] - levels[1]) ** 2).mean())


def decibels(error: float) -> float:
    """The peak signal-to-noise ratio of a mean squared error, at most 100; NaN of NaN."""
    if math.isnan(error):
        return math.nan
    return min(MOST_DB, -10 * math.log10(error)) if error else MOST_DB
