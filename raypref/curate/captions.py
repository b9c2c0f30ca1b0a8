"""Captions for photographs that come without one, written by a vision-language model.

    index -> captions (of the photographs without one) -> captioned (the index with them)

A photograph that has a caption keeps it, and the model never sees it. The caption is of the crop,
which is what a pair shows.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from raypref.core.config import Location, Resources, Section, setting
from raypref.core.device import DType
from raypref.core.ledger import Ledger
from raypref.core.rows import INDEX, MASKS, Row, Transform, reject
from raypref.curate.transforms import read_photograph
from raypref.engine.stream import Selection, StreamConfig, stream
from raypref.images.decode import ImageConfig, as_image, cropped, image_size
from raypref.models.hub import hub_id
from raypref.rewards import vlm
from raypref.sources.index import SourceConfig

if TYPE_CHECKING:
    from raypref.rewards.vlm import Asked

SOURCE = "caption_source"  # column: GIVEN, or the model that wrote the caption; null for neither
GIVEN = "given"
CAPTIONED = INDEX.append(pa.field(SOURCE, pa.string()))
_ENDS = (".", "!", "?")


class CaptionsConfig(Section):
    """The model that writes missing captions; none by default."""

    model: Location = setting(
        "",
        "writes a caption for each photograph without one: hub id or folder of a vision-language "
        f"model ({', '.join(vlm.KINDS)}); empty writes none",
        later=True,
    )
    dtype: DType = setting("bfloat16", "precision of the model", later=True)
    prompt: str = setting(
        "Describe this photograph in one sentence: what it shows, where, and in what light.",
        "what the model is asked of each photograph",
        later=True,
        min_length=1,
    )
    max_tokens: int = setting(
        64,
        "longest caption, in tokens of the model; SD-1.5 reads 77 of its own",
        later=True,
        ge=1,
    )
    resources: Resources = Resources(batch=4)

    @property
    def enabled(self) -> bool:
        """Whether captions are written."""
        return bool(self.model)

    @property
    def name(self) -> str:
        """The model for tables and cards: a hub id as it is, of a local path the last name."""
        return self.model if hub_id(self.model) else Path(self.model).name

    def folder(self) -> str:
        """What to hand to `hub.from_pretrained`.

        Raises:
            InputError: the model cannot be had, or is of another kind.
        """
        return vlm.checked_folder(self.model, key="captions.model")


class OpenPhotograph:
    """Transform: the crop of an entry that has no caption yet."""

    name = "crop"
    reads: tuple[str, ...] = ("uri", "member", "column", "size")
    writes = pa.schema([("chosen", pa.binary())])
    resources = Resources(workers=0, batch=1)

    def __init__(self, source: SourceConfig, images: ImageConfig) -> None:
        self.source = source
        self.images = images

    def setup(self) -> None:
        """Find the source."""
        self.store = self.source.store()

    def __call__(self, rows: list[Row]) -> None:
        """Fill the column or drop."""
        for row in rows:
            photo = read_photograph(row, self.store, self.images, stage=self.name)
            if photo is not None:
                row["chosen"] = cropped(photo[1], self.images)


class WriteCaption:
    """Transform: what the model says of an image; the likeliest answer, no chance is involved."""

    name = "captions"
    reads: tuple[str, ...] = ("chosen",)
    writes = pa.schema([("caption", pa.string())])

    def __init__(self, config: CaptionsConfig) -> None:
        self.config = config
        self.resources = config.resources

    def setup(self) -> None:
        """Load the model."""
        c = self.config
        self.model = vlm.VisionLanguage(
            c.folder(), key="captions.model", dtype=c.dtype, num_gpus=self.resources.num_gpus
        )

    def shape_of(self, row: Row) -> tuple[int, int]:
        """Width and height of a row's image: they decide how many tokens it takes."""
        return image_size(row["chosen"])

    def prepare(self, rows: list[Row]) -> Asked:
        """The model's inputs: images and the prompt, B conversations."""
        images = [as_image(row["chosen"]) for row in rows]
        return self.model.prepare(images, [self.config.prompt] * len(rows))

    def compute(self, batch: Asked) -> list[str]:
        """B answers."""
        return self.model.answers(batch, max_new_tokens=self.config.max_tokens)

    def finish(self, rows: list[Row], out: list[str]) -> None:
        """Fill the column; a row about which the model says nothing is dropped."""
        for row, answer in zip(rows, out, strict=False):
            row["caption"] = tidied(answer)
            if not row["caption"]:
                reject(row, self.name, "no_caption", "the model wrote no caption")


def tidied(answer: str) -> str:
    """An answer as a caption: one line, no quotes around it, no sentence cut off after a whole one.

    >>> tidied('"A red ball\\non grass. It is ve')
    'A red ball on grass.'
    """
    text = " ".join(answer.replace("\0", " ").split()).strip("\"'“”").strip()
    if text.endswith(_ENDS):
        return text
    whole = max(text.rfind(f"{end} ") for end in _ENDS)
    return text[: whole + 1] if whole > 0 else text


def write_captions(
    config: CaptionsConfig,
    source: SourceConfig,
    images: ImageConfig,
    *,
    index: Ledger,
    captions: Ledger,
    captioned: Ledger,
    streaming: StreamConfig,
) -> float:
    """Fill both ledgers; skips and resumes what is done.

    Args:
        config: the model.
        source: of the photographs.
        images: how they are decoded and cropped.
        index: the complete index.
        captions: gets a row per photograph without a caption.
        captioned: gets the index with them, and the column `caption_source`.
        streaming: block size and progress.

    Returns:
        Busy seconds of a worker.
    """
    busy, bare = 0.0, Selection(index, _without())
    if bare.count():
        stages: list[Transform] = [OpenPhotograph(source, images), WriteCaption(config)]
        busy = stream(bare, stages=stages, ledger=captions, keep=["caption"], config=streaming).busy
    elif captions.state() != "complete":  # no worker need load the model
        captions.begin()
        captions.commit(expected=0, counts={})
    if captioned.state() != "complete":
        _merge(index, captions, captioned, config.name)
    return busy


def _without() -> pc.Expression:
    """Entries that can be read and have no caption."""
    # In a function: to compare with a text imports pandas, which settings must not need.
    caption = pc.utf8_trim_whitespace(pc.field("caption"))
    return pc.field("problem").is_null() & (caption.is_null() | (caption == ""))


def _merge(index: Ledger, captions: Ledger, target: Ledger, model: str) -> None:
    target.begin()
    counts: Counter[str] = Counter()
    masks = [field for field in MASKS if field.name in index.schema().names]
    schema = pa.schema([*INDEX, *masks, CAPTIONED.field(SOURCE)])
    for part in index.parts():
        found = captions.part(part).to_pylist() if captions.has_part(part) else []
        written = {row["id"]: row for row in found}
        rows = [_merged(row, written, model) for row in index.part(part).to_pylist()]
        counts.update(row[SOURCE] or "none" for row in rows)
        target.write_part(pa.Table.from_pylist(rows, schema=schema), part)
    target.commit(expected=index.count(), counts=counts)


def _merged(row: Row, written: dict[str, Row], model: str) -> Row:
    """An entry with its caption and who wrote it, or why the photograph was dropped."""
    own = written.get(row["id"])
    if own is None:
        return {**row, SOURCE: GIVEN if (row["caption"] or "").strip() else None}
    if own["reject_reason"] is not None:
        return {**row, SOURCE: None, "problem": f"{own['reject_reason']}: {own['reject_message']}"}
    return {**row, "caption": own["caption"], SOURCE: model}
