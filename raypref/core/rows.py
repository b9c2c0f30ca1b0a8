"""The row: one image on its way through the transforms, and its identity.

A row is a plain dict. `id` says where it came from (uri, member, index): unique, it drives resume.
`key` is the sha256 of image bytes and caption: it drives seeds and duplicates, so a result does not
depend on the order or the place in which an image was found. A row with `reject_reason` set passes
the remaining transforms untouched. An image is PNG bytes in a ledger and decoded between transforms
(`images.decode.as_image` takes both): the worker encodes what it writes.
"""

from __future__ import annotations

import hashlib
from typing import Any, Protocol, TypeVar, runtime_checkable

import pyarrow as pa

from raypref.core.config import Resources

Row = dict[str, Any]
T = TypeVar("T")


class RowTransform(Protocol):
    """One thing done to rows by the CPU. Knows nothing of Ray; `engine/stream.py` maps it onto Ray.

    Cheap to construct and to pickle (settings only); `setup` loads what it needs in the worker.
    """

    name: str  # the word that stands in progress lines and in the rejects table
    reads: tuple[str, ...]  # columns it needs
    writes: pa.Schema  # columns it adds
    resources: Resources

    def setup(self) -> None:
        """Load what the transform needs, once per worker."""

    def __call__(self, rows: list[Row]) -> None:
        """Add the columns of `writes` to every row in place, or `reject` the row.

        Rejected rows never come in. An exception that is not about the data is a bug and stops
        the job.
        """


@runtime_checkable
class ModelTransform(Protocol):
    """One thing done to rows by a model, in three phases; the rest is as in `RowTransform`.

    Only `compute` holds the device. Batches are prepared and finished by other threads meanwhile:
    those two may run at the same time as any of the three.
    """

    name: str
    reads: tuple[str, ...]
    writes: pa.Schema
    resources: Resources

    def setup(self) -> None:
        """Load the model, once per worker."""

    def prepare(self, rows: list[Row]) -> Any:
        """What the model reads, from `resources.batch` rows; no row is changed.

        A batch that is not full is padded with copies of its last row (`padded`): it has one shape.
        """

    def compute(self, batch: Any) -> Any:
        """What the model makes of it, in the host's memory: the device is done on return."""

    def finish(self, rows: list[Row], out: Any) -> None:
        """Add the columns of `writes` to every row in place, or `reject` the row.

        Args:
            rows: those of the batch, without the copies.
            out: of `compute`; values of the rows come first, in order.
        """


@runtime_checkable
class ShapedTransform(ModelTransform, Protocol):
    """A model whose batches hold images of one size: rows of other sizes go into other batches."""

    def shape_of(self, row: Row) -> tuple[int, int] | None:
        """Width and height of a row's images, pixels; None: it fits into any batch."""


Transform = RowTransform | ModelTransform


INDEX = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),  # file, shard or Parquet file in the source
        pa.field("member", pa.int64()),  # row of a Parquet file, first byte in a shard, else null
        pa.field("column", pa.string()),  # of a Parquet file, else null
        pa.field("caption", pa.string()),
        pa.field("size", pa.int64()),  # bytes of the image, or of its Parquet file; null: unknown
        pa.field("problem", pa.string()),  # `reason: message` of what is wrong with the entry
    ]
)

# Where the masks of an entry are: further columns of an index whose layout has them.
MASKS = pa.schema(
    [
        pa.field("mask_uri", pa.string()),  # file or shard in the source; null: it has no mask
        pa.field("mask_member", pa.int64()),  # first byte in a shard; null: the file is a picture
        pa.field("mask_size", pa.int64()),  # bytes
        pa.field("mask_width", pa.int32()),  # pixels that run lengths count; null: the image's
        pa.field("mask_height", pa.int32()),
    ]
)

REJECT = pa.schema(
    [
        pa.field("reject_stage", pa.string()),
        pa.field("reject_reason", pa.string()),  # a short fixed word, counted in the funnel
        pa.field("reject_message", pa.string()),  # a sentence for people
    ]
)

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # Hugging Face's image struct


def index_row(
    id_: str,
    uri: str,
    caption: str | None,
    *,
    size: int | None = None,
    member: int | None = None,
    column: str | None = None,
    problem: str | None = None,
) -> Row:
    """A row of `INDEX`."""
    return {
        "id": id_,
        "uri": uri,
        "member": member,
        "column": column,
        "caption": caption,
        "size": size,
        "problem": problem,
    }


def content_key(image: bytes, caption: str) -> str:
    """The sha256 (64 hex digits) of image bytes and caption."""
    digest = hashlib.sha256(image)
    digest.update(b"\0")
    digest.update(caption.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def seed_of(seed: int, *parts: str | int) -> int:
    """A 63-bit seed that depends on (seed, parts) alone: not on rank, order or batch."""
    text = "\0".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def padded(items: list[T], size: int) -> list[T]:
    """The items and copies of the last, up to `size`.

    Models see batches of one shape only: what a row gets then does not depend on how many others
    came with it, to the bit, and compiled models are compiled once.
    """
    return items + items[-1:] * (size - len(items))


def without_copies(rows: list[Row]) -> list[Row]:
    """A batch as it was before it was `padded`, for a model that sees one row at a time."""
    return list({id(row): row for row in rows}.values())


def reject(row: Row, stage: str, reason: str, message: str) -> None:
    """Mark a row as rejected: later stages leave it alone and it ends in the rejects table."""
    row.update(reject_stage=stage, reject_reason=reason, reject_message=message)


def is_rejected(row: Row) -> bool:
    """Whether an earlier stage rejected the row."""
    return row.get("reject_reason") is not None
