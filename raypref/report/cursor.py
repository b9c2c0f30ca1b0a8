"""The values of a chart for the page's script, which shows the one under the pointer."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes


class Cursor(NamedTuple):
    """What a chart says where."""

    at: Sequence[float]  # positions on the axis, ascending or descending
    texts: Sequence[str]  # one per position
    lead: str = ""  # stands before position and text: "step" makes "step 120: 0.61"
    vertical: bool = False  # positions on the vertical axis, for charts of rows


def attribute(axes: Axes, cursor: Cursor) -> str:
    """The attribute of the `<svg>`; the figure must have been drawn.

    Its JSON holds `plot` (left, right, top, bottom of the axes in the units of the view box),
    `ends` (values of the axis at its left and right, or top and bottom) and the cursor.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    width, height = 72 * figure.get_size_inches()  # points, as in the view box
    box = axes.get_position()
    plot = (box.x0 * width, box.x1 * width, (1 - box.y1) * height, (1 - box.y0) * height)
    ends = axes.get_ylim()[::-1] if cursor.vertical else axes.get_xlim()
    content = {
        "plot": [round(float(side), 1) for side in plot],
        "ends": [float(f"{end:.6g}") for end in ends],
        "at": [float(f"{value:.6g}") for value in cursor.at],
        "texts": list(cursor.texts),
        "lead": cursor.lead,
        "vertical": cursor.vertical,
    }
    return f' tabindex="0" data-cursor="{html.escape(json.dumps(content, separators=(",", ":")))}"'
