"""The settings of `streaming.py`, known without Ray."""

from __future__ import annotations

from raypref.config import Section, setting


class StreamConfig(Section):
    """How rows are cut into blocks."""

    block_rows: int = setting(
        64,
        "rows a block of models' work: what a kill can cost each worker",
        affects_result=False,
        ge=1,
    )
    part_rows: int = setting(
        256,
        "rows a part in passes over all inputs, before pairs are made",
        affects_result=False,
        ge=1,
    )
    progress_seconds: float = setting(
        5.0, "seconds between two progress lines", affects_result=False, ge=0
    )
