"""What a table file says: its rows, how they differ from the base settings, what it claims.

A table is a TOML file; those of the paper lie in `tables/`, a user's own is written the same way.
Rows are listed, or made from a grid of values, or searched for.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from raypref.core.config import InputError, Section, build, flatten, setting
from raypref.models.families.registry import FamilyName

TABLES = Path(__file__).parent / "tables"

Value = Any  # of a setting, as TOML has it


class Row(Section):
    """One row: a run that differs from the base settings, and the model of it that is judged."""

    name: str = setting("", "unique; the name of the published row, where there is one")
    label: str = setting("", "for people; {select.top_k} stands for the value of a setting")
    model: str = setting("", "model of the run that the row shows; empty: what the run is about")
    families: tuple[FamilyName, ...] = setting((), "base families that have the row; empty: all")
    set_: dict[str, Value] = Field(
        {}, alias="set", description="settings that differ, by dotted key"
    )
    times: dict[str, float] = Field({}, description="settings as multiples of the base's")
    copy_: dict[str, str] = Field(
        {}, alias="copy", description="settings taken from others; an empty one is not given"
    )
    profiles: dict[str, dict[str, Value]] = Field(
        {}, description="by profile: settings that the row has besides where that profile is on"
    )
    profiles_times: dict[str, dict[str, float]] = Field(
        {}, description="the same, as multiples of the base's"
    )


class Contrast(Section):
    """The weighted sum of rows' means is on the good side of zero; of looks, above it.

    Or it is so near zero that rows are comparable: inside a margin, which is given per metric, or
    as a share of another contrast, such as a quarter of what Diffusion-DPO gains over the base.
    """

    contrast: dict[str, float] = Field(..., description="weight of each row's mean")
    test: Literal["above", "equivalent", "not_worse"] = setting(
        "above", "above: of zero; equivalent: inside the margin; not_worse: above minus the margin"
    )
    margin: dict[str, float] = Field({}, description="the margin by metric, in its units")
    of: dict[str, float] = Field({}, description="the margin is a share of this contrast")
    share: float = setting(0.25, "that share", gt=0)
    metrics: tuple[str, ...] = setting(
        (), "metrics it is about; empty for all of the table that can be better or worse"
    )

    @model_validator(mode="after")
    def _margin_fits(self) -> Contrast:
        given = bool(self.margin) + bool(self.of)
        if self.test == "above" and given:
            raise ValueError('test=above has no margin; say test = "equivalent" or "not_worse"')
        if self.test != "above" and given != 1:
            raise ValueError(f"test={self.test}: give margin, or of and share")
        return self


class Claim(Contrast):
    """One statement: its contrast, and those that must hold as well.

    Those of the shipped tables are the paper's, or say that they are not. A reward is hacked, for
    example, where it rises and a judge that built no pairs falls: two contrasts.
    """

    says: str = setting(..., "the statement")
    and_: tuple[Contrast, ...] = Field(
        (), alias="and", description="contrasts that must hold as well, for the statement to hold"
    )

    @property
    def parts(self) -> list[Contrast]:
        """All its contrasts."""
        return [self, *self.and_]


class Range(Section):
    """Numbers from `low` to `high`."""

    low: float = setting(..., "smallest value")
    high: float = setting(..., "largest value")
    log: bool = setting(False, "draw on a logarithmic scale")
    whole: bool = setting(False, "whole numbers")


class Search(Section):
    """An open-ended sweep: settings are drawn, weak ones are stopped early."""

    space: dict[str, tuple[Value, ...] | Range] = Field(..., description="values by dotted key")
    metric: str = setting("pickscore", "metric to optimise; its direction is known")
    samples: int = setting(16, "settings tried", ge=1)
    by: Literal["optuna", "random"] = setting("optuna", "optuna: Bayesian (TPE); random")
    budget: str = setting("train.stage2.steps", "training length that grows from rung to rung")
    rungs: int = setting(1, "evaluations of a row on its way to the whole budget; 1: no ASHA", ge=1)
    factor: int = setting(2, "budget of a rung, as a multiple of the rung before", ge=2)

    def budgets(self, whole: int) -> list[int]:
        """The budget at each rung, rising to the whole."""
        return [max(1, round(whole / self.factor**k)) for k in reversed(range(self.rungs))]


class Table(Section):
    """One table or figure."""

    title: str = setting(..., "heading")
    base: str = setting("base", "the row that gains are measured against")
    paper: str = setting(
        "", "which table or figure of the paper it is, as 'Table 7b'; `all` runs these"
    )
    shows: Literal["runs", "votes", "costs", "models"] = setting(
        "runs",
        "what its rows are: runs; models that ours won, tied or lost against in ablate.votes; "
        "passes of curation, by the times that runs in the storage recorded; models names settings "
        "and the paper's models instead of rows",
    )
    published: str = setting("", "its table in evaluate/published.toml")
    notes: tuple[str, ...] = setting((), "sentences under the table")
    columns: tuple[str, ...] = setting((), "metrics of the paper's table, in its order; come first")
    set_: dict[str, Value] = Field(
        {}, alias="set", description="settings of every row, by dotted key; a row's own count more"
    )
    times: dict[str, float] = Field({}, description="settings of every row as multiples")
    copy_: dict[str, str] = Field(
        {}, alias="copy", description="settings of every row that are taken from others"
    )
    rows: tuple[Row, ...] = setting((), "rows")
    grid: dict[str, tuple[Value, ...]] = Field({}, description="a row for each combination")
    grid_times: dict[str, tuple[float, ...]] = Field({}, description="the same, as multiples")
    search: Search | None = setting(None, "an open-ended sweep instead of rows")
    plot: Literal["", "bars", "curves", "scatter"] = setting("", "figure to draw; empty: bars")
    x: str = setting("", "curves: setting along the axis")
    axes: tuple[str, ...] = setting((), "scatter: the metrics of its two axes")
    models: dict[str, dict[str, str]] = Field(
        {}, description="shows = models: by family, or all: setting to the paper's address"
    )
    claims: tuple[Claim, ...] = setting((), "statements to test")

    def all_rows(self) -> list[Row]:
        """Rows as listed, then those of the grid, each with the settings of every row."""
        rows = [*self.rows]
        keys = [*self.grid, *self.grid_times]
        for values in itertools.product(*self.grid.values(), *self.grid_times.values()):
            point = dict(zip(keys, values, strict=True))
            if point:
                rows.append(_point(point, times=self.grid_times))
        common = self.set_, self.times, self.copy_
        return [_over(common, row) for row in rows]


def _over(common: tuple[dict[str, Any], dict[str, float], dict[str, str]], row: Row) -> Row:
    """The row with what all rows have; what it says of a setting itself is all that counts."""
    own = {*row.set_, *row.times, *row.copy_}
    set_, times, copy_ = ({k: v for k, v in of.items() if k not in own} for of in common)
    changed = {"set_": set_ | row.set_, "times": times | row.times, "copy_": copy_ | row.copy_}
    return row.model_copy(update=changed)


def in_profile(row: Row, profile: str) -> Row:
    """The row with what it has besides where a profile is on; that counts more."""
    own, times = row.profiles.get(profile, {}), row.profiles_times.get(profile, {})
    rest = [
        {key: value for key, value in of.items() if key not in {*own, *times}}
        for of in (row.set_, row.times, row.copy_)
    ]
    return row.model_copy(
        update={"set_": rest[0] | own, "times": rest[1] | times, "copy_": rest[2]}
    )


def _point(point: Mapping[str, Value], *, times: Mapping[str, Any]) -> Row:
    """The row of one combination of a grid."""
    return Row.model_validate(
        {
            "name": ", ".join(f"{k} x {v}" if k in times else f"{k}={v}" for k, v in point.items()),
            "label": ", ".join(f"{k}={{{k}}}" for k in point),
            "set": {k: v for k, v in point.items() if k not in times},
            "times": {k: v for k, v in point.items() if k in times},
        }
    )


def model_rows(table: Table, settings: Section, *, family: str) -> list[tuple[str, str, str]]:
    """A table of models: each setting, the paper's address, what the settings name."""
    own: Mapping[str, Any] = flatten(settings)
    parts = [table.models.get(part, {}) for part in (family, "all")]
    return [(key, there, str(own[key])) for part in parts for key, there in part.items()]


def names() -> list[str]:
    """The tables that come with the package."""
    return sorted(path.stem for path in TABLES.glob("*.toml"))


def read_table(source: str) -> Table:
    """Read a table.

    Args:
        source: the name of one that comes with the package, or the path of a TOML file.

    Raises:
        InputError: no such table, or the file says something it cannot; names the key.
    """
    path = Path(source) if source.endswith(".toml") else TABLES / f"{source}.toml"
    if not path.is_file():
        raise InputError(f"no table or TOML file '{source}'; tables are: {', '.join(names())}, all")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    try:
        table = build(Table, values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    _check(table, path)
    return table


def _check(table: Table, path: Path) -> None:
    rows = [row.name for row in table.all_rows()]
    if not rows and table.search is None and not table.models:
        raise InputError(f"{path}: there are no rows; give [[rows]], [grid] or [search]")
    if (table.plot == "scatter") != (len(table.axes) == 2):
        raise InputError(f"{path}: plot='scatter' needs two metrics in axes, and only it has axes")
    if "" in rows or len(set(rows)) < len(rows):
        raise InputError(f"{path}: every row needs a name of its own; there are: {rows}")
    parts = [part for claim in table.claims for part in claim.parts]
    contrasts = [contrast for part in parts for contrast in (part.contrast, part.of)]
    unknown = {name for contrast in contrasts for name in contrast} - set(rows)
    if unknown:
        raise InputError(f"{path}: claims name unknown rows: {sorted(unknown)}")


def labelled(row: Row, settings: Section) -> str:
    """The row's label, with the values of the settings that it names."""
    values: Mapping[str, Any] = flatten(settings)
    return re.sub(
        r"\{([\w.]+)\}", lambda found: _short(values.get(found[1], found[0])), row.label or row.name
    )


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
