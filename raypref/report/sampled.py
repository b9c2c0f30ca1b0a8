"""The page of images that `raypref sample` made: reward against forwards, and the images."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import pandas as pd

from raypref.report.layout import fill


def render(
    *, name: str, costs: pd.DataFrame, shown: Sequence[tuple[str, int, float, bytes]]
) -> str:
    """The page as HTML text.

    Args:
        name: of the result.
        costs: of `Sampling.costs`.
        shown: prompt, seed, reward and JPEG bytes of images.
    """
    return fill(
        "sampled.html",
        filters={},
        name=name,
        costs=costs.to_dict("records"),
        shown=[
            {"prompt": p, "seed": s, "reward": r, "jpeg": base64.b64encode(data).decode()}
            for p, s, r, data in shown
        ],
    )
