"""Whether pairs can be trained on, told before any of them is encoded."""

from __future__ import annotations

import io

from PIL import Image

from raypref.core.config import InputError
from raypref.core.ledger import Ledger


def check_pairs(pairs: Ledger, *, side: int) -> None:
    """See that there are pairs and that all images are squares of one side.

    Raises:
        InputError: there is none, or an image has another size; names the pair.
    """
    if not pairs.count():
        raise InputError(f"{pairs.path} holds no pairs; there is nothing to train on")
    for row in pairs.rows(["id", "chosen", "rejected"]):
        for name in ("chosen", "rejected"):
            with Image.open(io.BytesIO(row[name]["bytes"])) as image:  # reads no more than its head
                size = image.size
            if size != (side, side):
                raise InputError(
                    f"{pairs.path}: the {name} image of pair '{row['id']}' is "
                    f"{size[0]}x{size[1]}, and images.size={side}"
                )
