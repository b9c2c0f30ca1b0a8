"""What a record says of a labelled pair or a labelled image: columns by name, values by form.

The columns are `prompt, chosen, rejected` or `prompt, image_0, image_1, label`, of single images
`prompt, image, score` or `prompt, image, label`; generators, confidence, votes and gap may follow.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from raypref.core.config import InputError
from raypref.sources.base import LabelledImage, Pair, Ref
from raypref.sources.captions import PATH_KEYS, as_text
from raypref.sources.store import SourceError

PROMPTS = ("prompt", "caption", "text")
_ENDS = ("", "_file_name", "_path", "_image")  # Hugging Face's folders have chosen_file_name
# Names of first and second image, and the label where there is one; the last is an export's.
SIDES: tuple[tuple[list[str], list[str], str], ...] = (
    (["chosen" + end for end in _ENDS], ["rejected" + end for end in _ENDS], ""),
    (["image_0" + end for end in _ENDS], ["image_1" + end for end in _ENDS], "label"),
    (["real_image_path"], ["fake_image_path"], ""),
)
IMAGES = tuple(dict.fromkeys(("image", "jpg", "png", "img", *PATH_KEYS, "chosen")))
PATH = 4096  # characters of the longest path
_SAYS = "1 says that the first image is preferred, 0 the second, 0.5 neither, empty no label"
_GOOD = {"good": 1.0, "true": 1.0, "bad": 0.0, "false": 0.0}


class PairColumns(NamedTuple):
    """The columns of a table of labelled pairs; empty where there is none."""

    prompt: str
    first: str
    second: str
    label: str  # empty: the first is preferred
    first_model: str
    second_model: str
    confidence: str
    vote_share: str
    gap: str


class ImageColumns(NamedTuple):
    """The columns of a table of labelled single images; empty where there is none."""

    prompt: str
    image: str
    score: str
    label: str
    model: str


def pair_columns(names: Sequence[str], where: str) -> PairColumns | None:
    """The columns of labelled pairs; None where none of them is an image of a pair.

    Args:
        names: all that there are.
        where: the file, for errors.

    Raises:
        InputError: some are there and others missing, or one is there twice; names them.
    """
    for first, second, label in SIDES:
        sides = [one_of(names, side, where) for side in (first, second)]
        if not any(sides):
            continue
        prompt = one_of(names, PROMPTS, where)
        found = {"prompt": prompt, first[0]: sides[0], second[0]: sides[1]}
        if label:
            found[label] = one_of(names, (label,), where)
        _must_be_there(found, names, where)
        models = ("model_0", "model_1") if label else ("chosen_model", "rejected_model")
        more = (*models, "confidence", "vote_share", "gap")
        rest = [one_of(names, (name,), where) for name in more]
        return PairColumns(prompt, *sides, found.get(label, ""), *rest)  # type: ignore[call-arg]
    return None


def image_columns(names: Sequence[str], where: str) -> ImageColumns | None:
    """The columns of labelled single images; None where there is no image, score or label.

    Raises:
        InputError: the prompt is missing, or a column is there twice; names it.
    """
    image = one_of(names, IMAGES, where)
    score, label = (one_of(names, (name,), where) for name in ("score", "label"))
    if not image or not (score or label):
        return None
    prompt = one_of(names, PROMPTS, where)
    _must_be_there({"prompt": prompt}, names, where)
    return ImageColumns(
        prompt, image, score, label, one_of(names, ("model", "chosen_model"), where)
    )


def names_pairs(names: Collection[str]) -> bool:
    """Whether columns or keys have the names of both images of a pair."""
    for first, second, label in SIDES:
        wanted = [first, second, [label]] if label else [first, second]
        if all(one_of([*set(names)], side, "") for side in wanted):
            return True
    return False


def names_images(names: Collection[str]) -> bool:
    """Whether columns or keys have the names of labelled single images."""
    try:
        return image_columns([*set(names)], "") is not None
    except InputError:
        return False


def one_of(names: Sequence[str], wanted: Iterable[str], where: str) -> str:
    """The first wanted name that there is, "" where there is none; letter case counts last.

    Raises:
        InputError: it is there twice.
    """
    alike: dict[str, str] = {}
    for name in names:
        alike.setdefault(name.strip().lower(), name)
    found = next((name for name in wanted if name in names), "")
    found = found or next((alike[name] for name in wanted if name in alike), "")
    if found and names.count(found) > 1:
        raise InputError(f"{where}: there are {names.count(found)} columns {found}; rename one")
    return found


def pair_of(
    values: Mapping[str, Any], columns: PairColumns, *, id_: str, where: str, folder: str = ""
) -> Pair:
    """The labelled pair of a row; what cannot be used says so as its problem.

    Args:
        values: by column.
        columns: what is where.
        id_: of the pair.
        where: the row, for people.
        folder: that paths are relative to, relative to the store.
    """
    prompt, label = "", None
    first = second = Ref("")
    try:
        first = image_named(values.get(columns.first), columns.first, where, folder)
        second = image_named(values.get(columns.second), columns.second, where, folder)
        label = label_of(values.get(columns.label), where) if columns.label else 1.0
        prompt = prompt_in(values.get(columns.prompt), where)
        share = number_of(values, columns.vote_share, where)
        if share is not None and not 0 <= share <= 1:
            said = f"{columns.vote_share} is {share:g} in {where}, no share from 0 to 1"
            raise SourceError("bad_record", said)
        if first == second:
            raise SourceError("same_image", f"both images of {where} are {first.file}")
        return Pair(
            prompt,
            first,
            second,
            label,
            number_of(values, columns.confidence, where),
            model_of(values.get(columns.first_model)),
            model_of(values.get(columns.second_model)),
            share,
            number_of(values, columns.gap, where),
            id_,
        )
    except SourceError as error:
        said = f"{error.reason}: {error.message}"
        return Pair(prompt, first, second, label, id=id_, problem=said)


def labelled_of(
    values: Mapping[str, Any], columns: ImageColumns, *, id_: str, where: str, folder: str = ""
) -> LabelledImage:
    """The labelled image of a row; what cannot be used says so as its problem."""
    prompt, image, score = "", Ref(""), None
    try:
        image = image_named(values.get(columns.image), columns.image, where, folder)
        score = number_of(values, columns.score, where)
        if score is None and columns.label:
            score = good_of(values.get(columns.label), where)
        prompt = prompt_in(values.get(columns.prompt), where)
        return LabelledImage(prompt, image, score, model_of(values.get(columns.model)), id_)
    except SourceError as error:
        said = f"{error.reason}: {error.message}"
        return LabelledImage(prompt, image, score, id=id_, problem=said)


def no_pair(id_: str, problem: str) -> Pair:
    """An entry of which nothing is known but its problem."""
    return Pair("", Ref(""), Ref(""), None, id=id_, problem=problem)


def no_image(id_: str, problem: str) -> LabelledImage:
    """An entry of which nothing is known but its problem."""
    return LabelledImage("", Ref(""), None, id=id_, problem=problem)


def image_named(value: Any, column: str, where: str, folder: str = "") -> Ref:
    """The image that a value names: a path, or a reference already.

    Raises:
        SourceError: it is no path.
    """
    if isinstance(value, Ref):
        return value
    if is_missing(value):
        raise SourceError("no_image", f"{where} names no image under {column}")
    if not isinstance(value, str):
        said = f"{column} of {where} holds {type(value).__name__}, not a path"
        raise SourceError("bad_record", said)
    if len(value) > PATH or value.startswith("data:"):
        said = f"{column} of {where} holds {len(value)} characters, which are no path; store images"
        raise SourceError("bad_record", f"{said} as bytes (Parquet) or as files")
    if "://" in value:
        said = f"{column} of {where} is an address, {value[:80]}; fetch the images and name files"
        raise SourceError("bad_record", as_text(said))
    return Ref(posixpath.normpath(posixpath.join(folder, as_text(value.strip()))))


def prompt_in(value: Any, where: str) -> str:
    """A record's prompt. SourceError where it is no text or empty, or cannot be used."""
    text = value.strip() if isinstance(value, str) else ""
    try:
        text.encode()  # JSON can hold half a character
    except UnicodeEncodeError:
        text = ""
    if problem := bad_prompt(text, where):
        reason, _, said = problem.partition(": ")
        raise SourceError(reason, said)
    return text


def bad_prompt(text: str, where: str) -> str:
    """What is wrong with a prompt, as `reason: message`; "" where nothing is."""
    if not text.strip():
        return f"no_caption: {where} has no prompt"
    return f"bad_caption: the prompt of {where} holds a NUL character" if "\0" in text else ""


def label_of(value: Any, where: str) -> float | None:
    """1, 0 or 0.5, None where there is no label. SourceError for anything else."""
    if is_missing(value):
        return None
    try:
        label = float(value)
    except (TypeError, ValueError, OverflowError):
        label = -1.0
    if label not in (0.0, 0.5, 1.0):
        raise SourceError("bad_label", f"the label of {where} is {shortened(value)}; {_SAYS}")
    return label


def good_of(value: Any, where: str) -> float | None:
    """1 good, 0 bad, None where there is no label. SourceError for anything else."""
    if is_missing(value):
        return None
    score = _GOOD.get(value.strip().lower()) if isinstance(value, str) else None
    try:
        score = float(value) if score is None else score
    except (TypeError, ValueError, OverflowError):
        score = -1.0
    if score not in (0.0, 1.0):
        said = f"the label of {where} is {shortened(value)}; it is good, bad, 1, 0, true or false"
        raise SourceError("bad_label", f"{said}; other numbers stand in a column score")
    return score


def number_of(values: Mapping[str, Any], column: str, where: str) -> float | None:
    """A column's number, None where it is empty. SourceError for what is no finite number."""
    value = values.get(column) if column else None
    if is_missing(value):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise SourceError("bad_record", f"{column} of {where} is {shortened(value)}, no number")
    return number


def model_of(value: Any) -> str | None:
    """The name of a generator, None where it is empty."""
    if is_missing(value) or not isinstance(value, str | int):
        return None
    return as_text(str(value).strip())


def is_missing(value: Any) -> bool:
    """Whether a value says nothing: null, empty text, or the NaN that pandas writes for null."""
    if isinstance(value, str):
        return not value.strip() or value.strip().lower() == "nan"
    return value is None or (isinstance(value, float) and math.isnan(value))


def shortened(value: Any) -> str:
    """A value in a message: one line, not too long."""
    return as_text(repr(value))[:60]


def lacking(where: str, names: Sequence[str], what: str = "no columns of labels") -> InputError:
    """The error that a file is no table of labels: says what it has and what it needs."""
    has = ", ".join(as_text(" ".join(name.split())) for name in names)[:300] or "none"
    return InputError(
        f"{where}: {what}; it has {has}. Labelled pairs need prompt, chosen, rejected, or prompt, "
        "image_0, image_1, label; labelled images need prompt, image, and score or label"
    )


def _must_be_there(found: Mapping[str, str], names: Sequence[str], where: str) -> None:
    missing = [name for name, column in found.items() if not column]
    if missing:
        raise lacking(where, names, f"no column {' and no column '.join(missing)}")
