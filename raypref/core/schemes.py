"""References with a scheme of their own, as `tiny:sd15`: which module answers for them."""

from __future__ import annotations

import importlib
from typing import Any

# A module has the functions of `raypref/demo/scheme.py` and is imported when a reference names it.
SCHEMES = {"tiny": "raypref.demo.scheme"}


def is_embedded(*references: str) -> bool:
    """Whether one of these references has a scheme: it is made up, no model or photograph."""
    split = (reference.partition(":") for reference in references)
    return any(colon and scheme in SCHEMES for scheme, colon, _ in split)


def scheme_of(reference: str) -> tuple[Any, str] | None:
    """The module for a reference, and the name after the colon; None where it has no scheme."""
    scheme, colon, name = reference.partition(":")
    if not colon or scheme not in SCHEMES:
        return None
    return importlib.import_module(SCHEMES[scheme]), name
