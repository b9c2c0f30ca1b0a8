"""Whether pairs can be trained on, told before any of them is encoded."""

from __future__ import annotations

import io
from collections.abc import Mapping

import pyarrow.compute as pc
from PIL import Image

from raypref.align.config import TrainingConfig
from raypref.core.config import InputError
from raypref.core.ledger import Ledger


def check_pairs(pairs: Ledger, *, side: int, trainings: Mapping[str, TrainingConfig]) -> None:
    """See that there are pairs, squares of one side, and that the trainings find what they read.

    Args:
        pairs: the pairs, or single labelled images, whose rejected image is null.
        side: of all images, in pixels.
        trainings: what is trained on them, by name.

    Raises:
        InputError: there is none, an image has another size, or a number is missing; names the
            pair or the training.
    """
    if not pairs.count():
        raise InputError(f"{pairs.path} holds no pairs; there is nothing to train on")
    for name, training in trainings.items():
        for column in training.columns:
            _must_be_whole(pairs, column, f"train.{name}.objective={training.objective}")
    for row in pairs.rows(["id", "chosen", "rejected"]):
        for name in ("chosen", "rejected"):
            if row[name] is None:
                continue
            with Image.open(io.BytesIO(row[name]["bytes"])) as image:  # reads no more than its head
                size = image.size
            if size != (side, side):
                raise InputError(
                    f"{pairs.path}: the {name} image of pair '{row['id']}' is "
                    f"{size[0]}x{size[1]}, and images.size={side}"
                )


def _must_be_whole(pairs: Ledger, column: str, whose: str) -> None:
    missing = pairs.count(pc.field(column).is_null())
    if not missing:
        return
    why = "; a gap needs labels that name both generators" if column == "gap" else ""
    raise InputError(
        f"{whose} reads {column} of the pairs, and {missing} of {pairs.count()} have none{why}"
    )
