"""The mechanism of configuration: load a preset, override keys, check them.

The settings themselves live beside the code that reads them (`ColorConfig` in
`images/colorfulness.py`, ...); `run/config.py` composes them into `RunConfig`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from raypref.core.errors import InputError
from raypref.core.layers import (
    PROFILE,
    Layer,
    assign,
    file_layers,
    merged,
    preset_names,
    resolved_profile,
)
from raypref.core.values import parse_value

NAME = "NAME"  # stands in `--help` for the name of a table that the user names


class Section(BaseModel):
    """Base of every group of settings: immutable, unknown keys refused."""

    # Built when first used: most objectives and rewards are not, and each takes milliseconds.
    model_config = ConfigDict(
        extra="forbid", frozen=True, coerce_numbers_to_str=True, defer_build=True
    )
    renamed: ClassVar[Mapping[str, str]] = {}  # keys of earlier versions, to those of today


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
    batch: int = setting(8, "rows per batch of a worker", affects_result=False, ge=1)
    num_cpus: float = setting(
        1.0,
        "CPU cores per worker; with a GPU, also how many blocks it reads ahead",
        affects_result=False,
        ge=0,
    )
    num_gpus: float = setting(0.0, "GPUs per worker; 0 runs on CPU", affects_result=False, ge=0)
    memory_gib: float = setting(0.0, "memory per worker (GiB)", affects_result=False, ge=0)


S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Tables:
    """Marks a field of tables, each a section of one of several kinds, as `[train.NAME]`.

    Args:
        key: the key that says of which kind a table is; empty: its name does, as `[rewards.NAME]`.
        kinds: the kinds, by the value of that key. Called late: kinds may be registered.
    """

    key: str
    kinds: Callable[[], Mapping[str, type[Section]]]

    def layered(self, under: Any, over: Any) -> Any:
        """One table over another; where the kind changes, keys of the old kind are left out."""
        if not (isinstance(under, dict) and isinstance(over, dict)):
            return over
        chosen = over.get(self.key, "")
        kind = self.kinds().get(chosen) if isinstance(chosen, str) else None
        if kind is not None and over[self.key] != under.get(self.key):
            under = {name: value for name, value in under.items() if name in kind.model_fields}
        return merged(under, over)

    def fields(self) -> Iterator[tuple[str, FieldInfo]]:
        """All keys of all kinds; the line of one that not all have begins with those that do."""
        kinds = self.kinds()
        if not self.key:
            yield from (line for name in kinds for line in fields_of(kinds[name], f"{name}."))
            return
        found = {key: field for kind in kinds.values() for key, field in fields_of(kind)}
        for key, field in found.items():
            own = [name for name, kind in kinds.items() if key.split(".")[0] in kind.model_fields]
            field = field._copy()
            if key == self.key:
                field.annotation = Literal[*kinds]  # type: ignore[assignment]
                field.default = PydanticUndefined
                told = (f"{n}: {kind.model_fields[key].description}" for n, kind in kinds.items())
                field.description = "; ".join(told)
            if len(own) < len(kinds):
                field.description = f"{', '.join(own)}: {field.description}"
            yield f"{NAME}.{key}", field


def load(model: type[S], source: str, overrides: Iterable[str] = ()) -> S:
    """Read a preset or TOML file, apply `key=value` overrides, validate.

    Args:
        model: the section class to build, usually `RunConfig`.
        source: the name of a preset, or the path of a TOML file. A file may begin with
            `extends = "preset or path"`, a path being relative to the file it stands in.
        overrides: strings such as `"train.stage2.beta=1000"`; `parse_value` reads the values.

    Raises:
        InputError: unknown preset, file, key or value; the message names it.
    """
    return build(model, _given(model, source, overrides))


def load_sections(
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
            raise InputError("; ".join(_explain_error(of, e, "") for e in wrong)) from None
    return build(model, {name: values[name] for name in model.model_fields if name in values})


def build(model: type[S], values: Mapping[str, Any], *, prefix: str = "") -> S:
    """Validate nested values against a section class.

    Args:
        model: the section class to build.
        values: nested values.
        prefix: what stands before its keys in errors, as `train.stage2.`.

    Raises:
        InputError: a key is unknown or a value is wrong; names the key and the nearest known one.
    """
    try:
        return model.model_validate(_complete(model, values))
    except ValidationError as error:
        told = (_explain_error(model, e, prefix) for e in error.errors())
        raise InputError("; ".join(told)) from None


def replaced(section: S, changes: Mapping[str, Any]) -> S:
    """The same settings with others at some dotted keys.

    Raises:
        InputError: a key is unknown or a value is wrong; names the key and the nearest known one.
    """
    given: dict[str, Any] = {}
    for key, value in changes.items():
        assign(given, key, value)
    refuse_renamed(type(section), given)
    return build(type(section), _layered(type(section), section.model_dump(), given))


def presets() -> list[str]:
    """Names of the presets shipped with the package."""
    return preset_names()


def flatten(section: Section) -> dict[str, Any]:
    """The settings as `{"train.stage2.beta": 2000.0, ...}`."""
    return {key: value for key, value, _ in _leaves(section)}


def to_toml(section: Section) -> str:
    """The resolved settings as TOML text that `load` reads back to the same section."""
    values = section.model_dump(exclude_none=True)
    profile = type(section).model_fields.get(PROFILE)
    if profile and values[PROFILE] != profile.default:
        values |= resolved_profile(values[PROFILE])
    return tomli_w.dumps(values)


def results_of(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what comes out, as dotted keys.

    Args:
        sections: named parts of a configuration, as `{"base": cfg.base, "seed": cfg.seed}`.
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


def layers_of(model: type[Section], source: str, overrides: Iterable[str] = ()) -> list[Layer]:
    """What a configuration is made of, the lowest first: files, their profile, the overrides.

    Args:
        model: the settings; with a key `profile`, files may have profiles.
        source: as in `load`.
        overrides: as in `load`.

    Raises:
        InputError: as `load`, of what can be seen without the settings.
    """
    overrides = list(overrides)
    # Of these sections alone: the keys of all trainings are those of all objectives.
    asked = {re.split(r"[.=]", override.strip(), maxsplit=1)[0] for override in overrides}
    kinds = {key: field.annotation for key, field in fields_of(model, sections=asked)}
    given: dict[str, Any] = {}
    for override in overrides:
        key, _, text = (part.strip() for part in override.partition("="))
        if "=" not in override or not key:
            raise InputError(f"'{override}' is not key=value (for example train.stage2.beta=1000)")
        kind = kinds.get(key, kinds.get(re.sub(r"\.[^.]+\.", f".{NAME}.", key, count=1)))
        assign(given, key, parse_value(text, kind))
    profile = model.model_fields.get(PROFILE)
    default = profile.default if profile else None
    files = file_layers(source, profile=str(given.get(PROFILE, "")), default=default)
    return [*files, Layer("command line", given)]


def _given(model: type[Section], source: str, overrides: Iterable[str]) -> dict[str, Any]:
    """The nested values of a preset or file, with its profile and overrides."""
    values: dict[str, Any] = {}
    for layer in layers_of(model, source, overrides):
        values = _layered(model, values, layer.values)
    refuse_renamed(model, values)
    return values


def _complete(model: type[Section], values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill every group from its own default, or an empty one, and what is given.

    A group given in part keeps the rest of its default (`cache: CacheConfig = CacheConfig(...)`),
    and errors name the missing key within a group that is not given at all.
    """
    complete = dict(values)
    for name, field in model.model_fields.items():
        kind = _section_class(field.annotation)
        if kind is None and named_tables(field):
            complete = _layered(model, {name: field.default}, complete)
        if kind is None:
            continue
        default = field.default.model_dump() if isinstance(field.default, Section) else {}
        given = complete.get(name, {})
        if isinstance(given, dict):
            complete[name] = _complete(kind, merged(default, given))
    return complete


def _layered(model: type[Section], under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Values over others, as a file over the preset that it extends."""
    layered = merged(under, over)
    for name, field in model.model_fields.items():
        marked, below, above = named_tables(field), under.get(name), over.get(name)
        if marked and isinstance(below, dict) and isinstance(above, dict):
            tables = {key: marked.layered(below.get(key, {}), above[key]) for key in above}
            layered[name] = {**below, **tables}
    return layered


def named_tables(field: FieldInfo) -> Tables | None:
    """The mark of a field of tables that the user names; None for any other."""
    return next((mark for mark in field.metadata if isinstance(mark, Tables)), None)


def _section_class(annotation: Any) -> type[Section] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def fields_of(
    model: type[Section], prefix: str = "", *, sections: Collection[str] | None = None
) -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key of a section class, with its field, in order of declaration.

    Args:
        model: the section class.
        prefix: what stands before its keys.
        sections: which keys and groups of it, by their first word; all by default.
    """
    for name, field in model.model_fields.items():
        if sections is not None and name not in sections:
            continue
        kind = _section_class(field.annotation)
        if kind is not None:
            default = field.default
            for key, inner in fields_of(kind, f"{prefix}{name}."):
                own = key.removeprefix(f"{prefix}{name}.")
                if isinstance(default, Section):
                    inner = inner._copy()
                    inner.default = _get(default, own)
                yield key, inner
        elif marked := named_tables(field):
            yield from ((f"{prefix}{name}.{key}", inner) for key, inner in marked.fields())
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
        elif named_tables(field):
            for key, table in value.items():
                yield from _leaves(table, f"{prefix}{name}.{key}.")
        else:
            yield f"{prefix}{name}", value, field


def refuse_renamed(model: type[Section], values: Mapping[str, Any]) -> None:
    """Raise InputError for a key of an earlier version."""
    for old in {*values} & {*model.renamed}:
        key, inner = old, values[old]
        while isinstance(inner, Mapping) and inner:
            last = next(iter(inner))
            key, inner = f"{key}.{last}", inner[last]
        raise InputError(f"'{key}' is '{model.renamed[old]}{key.removeprefix(old)}' now")


def _explain_error(model: type[Section], error: Any, prefix: str) -> str:
    told = error.get("ctx", {}).get("error")
    if isinstance(told, InputError):  # of a validator, which names the key itself
        return str(told)
    key = prefix + ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = [prefix + name for name, _ in fields_of(model)]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        return f"unknown key '{key}'; the nearest known key is '{near[0]}' (--help lists all)"
    if error["type"] == "missing":
        return f"'{key}' is required: add {key}=VALUE"
    said = error["msg"].lower().replace("tuple", "list").replace(" after validation", "")
    return f"{key}={error['input']!r}: {said}"
