"""How datasets are laid out: one file per layout, and the registry of them.

A layout of your own joins with `REGISTRY["mine"] = Layout(...)`, before a job's `main` is called
(docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from raypref.sources.base import Layout
from raypref.sources.layouts import (
    brushdata,
    civitai,
    folder,
    hpdv2,
    hpdv3,
    imagereward,
    json_list,
    jsonl,
    labelled,
    masked,
    parquet,
    pickapic,
    table,
    text,
    webdataset,
)

REGISTRY: dict[str, Layout] = {
    "folder": folder.LAYOUT,
    "parquet": parquet.LAYOUT,
    "webdataset": webdataset.LAYOUT,
    "brushdata": brushdata.LAYOUT,
    "masked": masked.LAYOUT,
    "jsonl": jsonl.LAYOUT,
    "hpdv3": hpdv3.LAYOUT,
    "pickapic": pickapic.LAYOUT,
    "civitai": civitai.LAYOUT,
    "imagereward": imagereward.LAYOUT,
    "hpdv2": hpdv2.LAYOUT,
    "labelled": labelled.LAYOUT,
    "text": text.LAYOUT,
    "table": table.LAYOUT,
    "json": json_list.LAYOUT,
}


What = Literal["photographs", "pairs", "images", "prompts"]


def giving(what: What) -> dict[str, Layout]:
    """The registered layouts that give photographs, labelled pairs or images, or prompts."""
    return {name: layout for name, layout in REGISTRY.items() if getattr(layout, what)}


def known(*kinds: What, others: tuple[str, ...] = ()) -> Callable[[str], str]:
    """A check of a setting: the name of a registered layout that gives one of these, or of others.

    ValueError lists the names there are when the setting is read.
    """

    def check(name: str) -> str:
        names = [*others, *dict.fromkeys(name for what in kinds for name in giving(what))]
        if name not in names:
            raise ValueError(f"it is one of {', '.join(names)}")
        return name

    return check
