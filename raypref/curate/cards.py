"""Dataset cards of the tables that curation publishes: what the columns are, what the counts.

A card is called `_README.md`: pandas reads every file of a folder whose name begins with neither
`_` nor `.`, so a README.md would end it. `raypref push` uploads the card as README.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from raypref.core.ledger import Ledger, join, write_bytes
from raypref.core.messages import public_name

CARD = "_README.md"

_ID = "where the input came from, unique: file, shard member or row of a table"
_KEY = "sha256 of the image's bytes and the caption, in hexadecimal"
_URI = "the file in the source"
_COLORFULNESS = "of the photograph's crop (Hasler and Süsstrunk)"

PAIRS_COLUMNS = {
    "id": _ID,
    "key": _KEY,
    "prompt": "the photograph's caption",
    "chosen": "image: the photograph, cropped",
    "rejected": "image: its degraded twin",
    "mask": "image: white where the twin was repainted",
    "pickscore_chosen": "PickScore of `chosen` and the prompt",
    "pickscore_rejected": "PickScore of `rejected` and the prompt",
    "colorfulness": _COLORFULNESS,
    "rank": "place among the pairs, by PickScore of the photograph (0 is the highest) or as drawn",
}
PHOTOS_COLUMNS = {
    "id": _ID,
    "key": f"{_KEY}; null where the image could not be read",
    "uri": _URI,
    "caption": "the caption as it was found",
    "width": "pixels, before the crop",
    "height": "pixels, before the crop",
    "colorfulness": _COLORFULNESS,
    "pickscore": "PickScore of the crop and the caption; null where it was not scored",
    "status": "`pair`, `not_selected` or `rejected` (dropped: it could not be used)",
    "reason": "why it is no pair, in a word; null for a pair",
}
WRITTEN_COLUMNS = {
    "caption_source": "`given`, or the model that wrote the caption; null where there is none"
}
REJECTS_COLUMNS = {
    "id": _ID,
    "uri": _URI,
    "stage": "the transform that dropped it",
    "reason": "in a word, as in the table below",
    "message": "in a sentence",
}

_REPAINTED = "the same photograph with a region (`mask`) repainted from its caption by"
_DRAWN = "a picture drawn from its caption alone by"  # of `perturb.kind=text2image`


class Provenance(NamedTuple):
    """What the cards tell of the tables."""

    licence: str  # of the photographs, as the model hub spells it
    kind: str  # of the perturbation, `perturb.kind`
    model: str  # that made the rejected images
    scorer: str  # the PickScore model
    captioner: str = ""  # the model that wrote missing captions; empty for none


def write_cards(
    origin: Provenance, counts: Counter[str], *, photos: Ledger, rejects: Ledger, pairs: Ledger
) -> None:
    """Write the cards of the three tables, each into its folder."""
    tables = (
        (pairs, _pairs(origin, counts)),
        (photos, _photos(origin, counts)),
        (rejects, _rejects(origin, counts)),
    )
    for ledger, text in tables:
        write_bytes(join(ledger.path, CARD), text.encode())


def _pairs(origin: Provenance, counts: Counter[str]) -> str:
    twin = _DRAWN if origin.kind == "text2image" else _REPAINTED
    about = [
        f"`chosen` is a photograph, `rejected` {twin}",
        f"`{public_name(origin.model)}`. Scores are PickScore (`{public_name(origin.scorer)}`).",
        "Method: *When Preference Labels Fall Short* (arXiv 2605.19839), section 3.2.",
    ]
    header = [*hub_header(origin.licence), "task_categories: [text-to-image]"]
    title = "Preference pairs from real photographs"
    return card_text(header, title, *_written(origin, about, PAIRS_COLUMNS), counts)


def _photos(origin: Provenance, counts: Counter[str]) -> str:
    about = [
        "One row per input of a curation: what was measured and what became of it. It holds no",
        f"images. Scores are PickScore (`{public_name(origin.scorer)}`).",
    ]
    title = "Every input of a curation"
    columns = _written(origin, about, PHOTOS_COLUMNS)
    return card_text(hub_header(origin.licence), title, *columns, counts)


def _rejects(origin: Provenance, counts: Counter[str]) -> str:
    about = [
        "One row per input that could not be used, with the reason. Where none was dropped, pandas",
        "shows no rows; `datasets` refuses a table without rows.",
    ]
    title = "Dropped inputs of a curation"
    return card_text(hub_header(origin.licence), title, about, REJECTS_COLUMNS, counts)


def _written(
    origin: Provenance, about: list[str], columns: Mapping[str, str]
) -> tuple[list[str], Mapping[str, str]]:
    """The text and the columns, with what there is to say of captions that a model wrote."""
    if not origin.captioner:
        return about, columns
    said = f"Photographs without a caption got one from `{origin.captioner}` (`caption_source`)."
    return [*about, said], {**columns, **WRITTEN_COLUMNS}


def hub_header(licence: str) -> list[str]:
    """Of the YAML that the model hub reads."""
    files = ["configs:", "- config_name: default", '  data_files: "*.parquet"']
    return [*files, f"license: {licence}"]


def card_text(
    header: list[str],
    title: str,
    about: list[str],
    columns: Mapping[str, str],
    counts: Counter[str],
) -> str:
    """A card: YAML header, title, what it is about, meaning of the columns, outcomes by reason."""
    return "\n".join(
        [
            *("---", *header, "---", "", f"# {title}", "", *about, ""),
            *("| column | what it is |", "|---|---|"),
            *(f"| `{name}` | {meaning} |" for name, meaning in columns.items()),
            *("", f"What became of the {sum(counts.values())} inputs:", ""),
            *("| outcome | inputs |", "|---|---|"),
            *(f"| {reason} | {number} |" for reason, number in sorted(counts.items())),
            "",
        ]
    )
