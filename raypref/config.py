"""The mechanism of configuration: load a preset, override keys, explain them, fingerprint them.

The settings themselves live beside the code that reads them (`ColorConfig` in
`curate/colorfulness.py`, ...); `pipeline.py` composes them into `RunConfig`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

PRESETS = Path(__file__).parent / "presets"


class InputError(ValueError):
    """The user's configuration or data is wrong; the message names the key or file and the fix.

    Jobs turn it into one line on stderr and exit code 2.
    """


class Section(BaseModel):
    """Base of every group of settings: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


def setting(
    default: Any, doc: str, *, affects_result: bool = True, later: bool = False, **limits: Any
) -> Any:
    """Declare one setting with its default and its line in `--help`.

    Args:
        default: the default value; `...` makes the key required.
        doc: one line that says what the setting does, with its unit.
        affects_result: False for settings that change how the work is done but not what comes
            out (worker counts, batch sizes): they stay out of fingerprints.
        later: True for settings whose default does what was done before they existed: the default
            stays out of fingerprints, so that older results remain.
        **limits: pydantic's `ge`, `gt`, `le`, `lt`, `min_length`, ...
    """
    extra: dict[str, Any] = {"affects_result": affects_result, "later": later}
    return Field(default, description=doc, json_schema_extra=extra, **limits)


def _absolute_if_there(text: str) -> str:
    with suppress(RuntimeError):  # "~nobody": whoever reads it says so
        if text and (path := Path(text).expanduser()).exists():
            return str(path.absolute())
    return text


# A local path, or something else such as a hub id. Made absolute where it exists, because workers
# do not share the driver's working directory.
Location = Annotated[str, AfterValidator(_absolute_if_there)]


class Resources(Section):
    """What a worker needs for a stage, and how many workers there are. Never affects results.

    The stages of a step share its workers (`streaming.shared_worker`): GPU shares and memory add
    up, the largest `num_cpus` and `workers` count.
    """

    workers: int = setting(
        1, "actors in the pool; 0: stateless tasks on every free core", affects_result=False, ge=0
    )
    batch: int = setting(8, "rows a worker takes at once", affects_result=False, ge=1)
    num_cpus: float = setting(
        1.0,
        "CPU cores a worker holds; with a GPU, blocks it reads meanwhile",
        affects_result=False,
        ge=0,
    )
    num_gpus: float = setting(0.0, "GPUs a worker holds; 0 runs on CPU", affects_result=False, ge=0)
    memory_gib: float = setting(0.0, "memory a worker holds (GiB)", affects_result=False, ge=0)


S = TypeVar("S", bound=Section)


def load(model: type[S], source: str, overrides: Iterable[str] = ()) -> S:
    """Read a preset or TOML file, apply `key=value` overrides, validate.

    Args:
        model: the section class to build, usually `RunConfig`.
        source: the name of a preset, or the path of a TOML file. A file may begin with
            `extends = "preset or path"`, a path being relative to the file it stands in.
        overrides: strings such as `"stage2.beta=1000"`; values are read as TOML, and as plain
            text where they are not valid TOML or the setting is text (`run=2024-05-01`).

    Raises:
        InputError: unknown preset, file, key or value; the message names it.
    """
    return build(model, _given(model, source, overrides))


def load_part(
    model: type[S], source: str, overrides: Iterable[str] = (), *, of: type[Section]
) -> S:
    """Read the settings of a job that needs only some sections of a run.

    The other sections of the preset or file are checked, but nothing in them is required.

    Args:
        model: the sections that the job needs.
        source: as in `load`.
        overrides: as in `load`.
        of: the whole that the preset, the file and the overrides are written for.

    Raises:
        InputError: unknown preset, file, key or value; the message names it.
    """
    values = _given(of, source, overrides)
    try:
        of.model_validate(_complete(of, values))
    except ValidationError as error:
        wrong = [e for e in error.errors() if e["type"] != "missing"]
        if wrong:
            raise InputError("; ".join(_explain_error(of, e) for e in wrong)) from None
    return build(model, {name: values[name] for name in model.model_fields if name in values})


def build(model: type[S], values: Mapping[str, Any]) -> S:
    """Validate nested values against a section class.

    Raises:
        InputError: a key is unknown or a value is wrong; names the key and the nearest known one.
    """
    try:
        return model.model_validate(_complete(model, values))
    except ValidationError as error:
        raise InputError("; ".join(_explain_error(model, e) for e in error.errors())) from None


def replaced(section: S, changes: Mapping[str, Any]) -> S:
    """The same settings with others at some dotted keys.

    Raises:
        InputError: a key is unknown or a value is wrong; names the key and the nearest known one.
    """
    values = section.model_dump()
    for key, value in changes.items():
        _assign(values, key, value)
    return build(type(section), values)


def presets() -> list[str]:
    """Names of the presets shipped with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def flatten(section: Section) -> dict[str, Any]:
    """The settings as `{"stage2.beta": 2000.0, ...}`."""
    return {key: value for key, value, _ in _leaves(section)}


def to_toml(section: Section) -> str:
    """The resolved settings as TOML text that `load` reads back to the same section."""
    return tomli_w.dumps(section.model_dump(exclude_none=True))


def without_secrets(text: str) -> str:
    """A text for others to read: of addresses in it, `name:password@` becomes `***@`."""
    return re.sub(r"(?<=://)[^/@\s\"':]*:[^/@\s\"']*@", "***@", text)


def first_line(error: BaseException, *, limit: int = 160) -> str:
    """What a library's exception says, for one line: `OSError: no such file`, `TimeoutError`."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *(line[:limit] for line in lines[:1])])


def describe(model: type[Section]) -> list[str]:
    """Lines `key  type  default  what it does` for every setting, in order of declaration."""
    rows = []
    for key, field in _fields(model):
        default = "required" if field.is_required() else _toml_value(field.default)
        kind = _type_name(field.annotation)
        rows.append((key, kind, default, field.description or ""))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return [f"{k:<{widths[0]}}  {t:<{widths[1]}}  {d:<14}  {doc}" for k, t, d, doc in rows]


def results_of(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what comes out, as dotted keys.

    Args:
        sections: named parts of a configuration, as `{"stage1": cfg.stage1, "seed": cfg.seed}`.
    """
    found: dict[str, Any] = {}
    for name, part in sections.items():
        if isinstance(part, Section):
            for key, value, field in _leaves(part):
                extra = field.json_schema_extra
                extra = extra if isinstance(extra, dict) else {}
                as_before = extra.get("later", False) and value == field.default
                if extra.get("affects_result", True) and not as_before:
                    found[f"{name}.{key}"] = value
        else:
            found[name] = part
    return found


def fingerprint(settings: Mapping[str, Any]) -> str:
    """16 hex digits that identify a flat mapping of settings and inputs."""
    text = json.dumps(settings, sort_keys=True, default=str, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Lines `key: old -> new` for all that differs between two flat mappings."""
    absent = "(absent)"
    return [
        f"{key}: {before.get(key, absent)!r} -> {after.get(key, absent)!r}"
        for key in sorted({*before, *after})
        if before.get(key, absent) != after.get(key, absent)
    ]


def _given(model: type[Section], source: str, overrides: Iterable[str]) -> dict[str, Any]:
    """The nested values of a preset or file, with overrides."""
    values = _read(source)
    kinds = {key: field.annotation for key, field in _fields(model)}
    for override in overrides:
        key, _, text = (part.strip() for part in override.partition("="))
        if "=" not in override or not key:
            raise InputError(f"'{override}' is not key=value (for example stage2.beta=1000)")
        _assign(values, key, _parse(text, kinds.get(key)))
    return values


def _complete(model: type[Section], values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill every group from its own default, or an empty one, and what is given.

    A group given in part keeps the rest of its default (`stage1: StageConfig = StageConfig(...)`),
    and errors name the missing key within a group that is not given at all.
    """
    complete = dict(values)
    for name, field in model.model_fields.items():
        kind = _section_class(field.annotation)
        if kind is None:
            continue
        default = field.default.model_dump() if isinstance(field.default, Section) else {}
        given = complete.get(name, {})
        if isinstance(given, dict):
            complete[name] = _complete(kind, _merge(default, given))
    return complete


def _read(source: str, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    beside = extended_by[-1].parent if extended_by else Path()
    path = beside / source if source.endswith(".toml") else PRESETS / f"{source}.toml"
    if path in extended_by:
        raise InputError(f"{path}: extends leads back to the file itself")
    if not path.is_file():
        known = ", ".join(presets())
        raise InputError(f"no preset or TOML file '{source}'; presets are: {known}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    parent = values.pop("extends", "")
    if not isinstance(parent, str):
        raise InputError(f"{path}: extends={parent!r} is not the name of a preset or TOML file")
    return _merge(_read(parent, (*extended_by, path)), values) if parent else values


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if not isinstance(child, dict):
            raise InputError(f"'{key}': '{parent}' is a value, not a group of settings")
        values = child
    values[last] = value


def _parse(text: str, kind: Any) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return text if kind is str and not isinstance(value, str) else value


def _section_class(annotation: Any) -> type[Section] | None:
    is_section = isinstance(annotation, type) and issubclass(annotation, Section)
    return annotation if is_section else None


def _fields(model: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        kind = _section_class(field.annotation)
        if kind is not None:
            default = field.default
            for key, inner in _fields(kind, f"{prefix}{name}."):
                own = key.removeprefix(f"{prefix}{name}.")
                if isinstance(default, Section):
                    inner = inner._copy()
                    inner.default = _get(default, own)
                yield key, inner
        else:
            yield f"{prefix}{name}", field


def _get(section: Section, dotted: str) -> Any:
    value: Any = section
    for name in dotted.split("."):
        value = value.__dict__[name]
    return value


def _leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, Any, FieldInfo]]:
    for name, field in type(section).model_fields.items():
        value = section.__dict__[name]
        if isinstance(value, Section):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value, field


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    literal = [repr(a) for a in get_args(annotation) if isinstance(a, str)]
    return "|".join(literal) if literal else str(annotation).replace("NoneType", "none")


def _toml_value(value: Any) -> str:
    return '""' if value == "" else str(value)


def _explain_error(model: type[Section], error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = [name for name, _ in _fields(model)]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        return f"unknown key '{key}'; the nearest known key is '{near[0]}' (--help lists all)"
    if error["type"] == "missing":
        return f"'{key}' is required: add {key}=VALUE"
    return f"{key}={error['input']!r}: {error['msg'].lower()}"
