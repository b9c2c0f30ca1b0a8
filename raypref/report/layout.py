"""Fills the templates of this folder: one head, one look and one security policy for every page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

HERE = Path(__file__).parent


def fill(
    template: str,
    *,
    filters: Mapping[str, Callable[..., Any]],
    scripts: Sequence[str] = (),
    **values: Any,
) -> str:
    """A page as HTML text, with style and script inside.

    Args:
        template: a file of this folder that extends `layout.html`.
        filters: what its expressions may call by name.
        scripts: files of this folder that the page runs, one after another.
        values: what the template knows.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    source = "\n".join((HERE / name).read_text(encoding="utf-8") for name in scripts)
    return environment.get_template(template).render(
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(source),
        script_hash=base64.b64encode(hashlib.sha256(source.encode()).digest()).decode(),
        **values,
    )
