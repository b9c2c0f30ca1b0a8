"""Refuses settings that a command line gives and the kind of pairs never reads."""

from __future__ import annotations

from collections.abc import Iterable

from raypref.core.config import InputError
from raypref.pairs.config import CANDIDATES, TWINS, PairingConfig

# Of each section, or key, the kinds of pairs that read it.
OF_IMAGES = (TWINS, CANDIDATES, "labelled", "images")
READ_BY = {
    "source.layout": OF_IMAGES,
    "source.image_column": OF_IMAGES,
    "source.caption_column": OF_IMAGES,
    "source.pool_size": (TWINS,),
    "source.pool": (TWINS, CANDIDATES),
    "select": (TWINS,),
    "candidates": (CANDIDATES,),
    "choice": (CANDIDATES,),
    "holes": (TWINS, CANDIDATES),
}


def refuse_idle(config: PairingConfig, overrides: Iterable[str]) -> None:
    """See that no word of a command line is about pairs of another kind.

    Presets and files may hold such settings: rows of a table switch the kind of one preset.

    Args:
        config: the settings with the words in them.
        overrides: the words, `key=value`.

    Raises:
        InputError: names the first such key.
    """
    kind = config.pairs.kind
    for key in (word.partition("=")[0].strip() for word in overrides):
        section = key.partition(".")[0]
        kinds = READ_BY.get(key, READ_BY.get(section, (kind,)))
        if kind not in kinds:
            raise InputError(
                f"{key}: nothing reads it with pairs.kind={kind}; leave it out, or take "
                f"pairs.kind={' or '.join(kinds)}"
            )
        drawn = kind == CANDIDATES and config.perturb.kind == "text2image"
        if section == "holes" and drawn:
            raise InputError(
                f"{key}: candidates of perturb.kind=text2image have no hole; leave it out, or take "
                "another perturb.kind"
            )
