"""What must be said where embedded models meet someone's own photographs."""

from __future__ import annotations

from collections.abc import Iterable

from raypref.core.schemes import is_embedded

BANNER = (
    "Embedded 64x64 models: this run checks your data; scores mean nothing for your photographs."
)


def banner(models: Iterable[str], source: str, images: str = "photographs") -> str:
    """The sentence where one of the models is embedded and the images are not; else empty.

    Args:
        models: references of the base and of the scorers.
        source: `source.path`.
        images: what people call what lies there, as `photographs`.
    """
    own = not is_embedded(source)
    return BANNER.replace("photographs", images) if own and is_embedded(*models) else ""
