"""Curves of trainings, drawn once: the page is written after every step."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from raypref.report import charts


@lru_cache(maxsize=512)
def curve(name: str, steps: bytes, values: bytes, *, smooth: bool) -> str:
    """As `charts.curve`, of the bytes of int64 steps and float64 values."""
    return charts.curve(name, np.frombuffer(steps, np.int64), np.frombuffer(values), smooth=smooth)


@lru_cache(maxsize=64)
def gap_curves(steps: bytes, chosen: bytes, rejected: bytes, other: str) -> str:
    """As `charts.against_reference`, of the bytes of int64 steps and float64 gaps."""
    gaps = np.frombuffer(chosen), np.frombuffer(rejected)
    return charts.against_reference(np.frombuffer(steps, np.int64), *gaps, other=other)
