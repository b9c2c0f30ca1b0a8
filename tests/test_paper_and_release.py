"""The table of docs/method.md of paper and released code, against presets and tables."""

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from raypref.ablate.plan import AblateConfig
from raypref.ablate.table import in_profile, names, read_table
from raypref.core.config import flatten, load

TEXT = (Path(__file__).parents[1] / "docs" / "method.md").read_text(encoding="utf-8")
SECTION = TEXT.split("## The paper and its released code\n")[1]
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in SECTION.splitlines()
    if re.match(r"\| \d+ \| `", line)
]
PRESETS = ("sd15", "sd35m", "tiny")
GIVEN = ["source.path=tiny:world", "evaluate.prompts=tiny:prompts"]


@cache
def settings(preset: str, profile: str) -> dict[str, Any]:
    """A preset's settings; those of stage 2 count for what is like it."""
    config = load(AblateConfig, preset, [*GIVEN, f"profile={profile}"])
    like = tuple(f"train.{name}." for name, training in config.train.items() if training.like)
    return {key: value for key, value in flatten(config).items() if not key.startswith(like)}


@cache
def of_row(place: str, profile: str) -> dict[str, Any]:
    """What a row of a table has in a profile of `sd15`, where it is asked for more there."""
    table, name = place.split("/")
    (row,) = (row for row in read_table(table).all_rows() if row.name == name)
    base, changed = settings("sd15", profile), in_profile(row, profile)
    times = {key: base[key] * factor for key, factor in changed.times.items()}
    return base | times | changed.set_


def values(place: str, profile: str) -> dict[str, Any]:
    return of_row(place, profile) if "/" in place else settings(place, profile)


def read(cell: str) -> Any:
    """The value of a cell, as TOML has it."""
    (text,) = re.fullmatch(r"`(.*)`", cell).groups()
    return tomllib.loads(f"value = {text}")["value"]


@pytest.mark.parametrize(("row", "profile"), [(r, p) for r in ROWS for p in ("paper", "released")])
def test_both_columns_are_what_the_presets_and_tables_have(row, profile):
    _, key, places, paper, released, _ = row
    for place in places.split(", "):
        found = values(place, profile)[key.strip("`")]
        assert found == read({"paper": paper, "released": released}[profile]), place


@pytest.mark.parametrize("preset", PRESETS)
def test_no_difference_of_a_preset_is_left_out(preset):
    paper, released = settings(preset, "paper"), settings(preset, "released")
    differ = {key for key in paper if paper[key] != released[key]} - {"profile"}
    told = {row[1].strip("`") for row in ROWS if preset in row[2].split(", ")}
    assert differ == told != set()


def test_no_difference_of_a_row_is_left_out():
    asked = {
        (f"{name}/{row.name}", key)
        for name in names()
        for row in read_table(name).all_rows()
        for of in (row.profiles, row.profiles_times)
        for key in of.get("released", {})
    }
    told = {(p, row[1].strip("`")) for row in ROWS for p in row[2].split(", ") if "/" in p}
    assert asked == told != set()


def test_every_difference_has_a_row_or_a_sentence():
    told = {int(row[0]) for row in ROWS}
    for numbers in re.findall(r"^\* ([\d, ]+):", SECTION, re.MULTILINE):
        told |= {int(number) for number in numbers.split(", ")}
    assert told == {*range(1, 24)}
