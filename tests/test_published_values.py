"""The published values: those of the paper, all of them, each in a row of a table."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import yaml

from raypref.ablate import table
from raypref.evaluate import tables
from raypref.models.families.registry import FAMILIES

SHOWN = Path(tables.__file__).with_name("published.toml")
SIX = ("pickscore", "imagereward", "unifiedreward", "hpsv3", "deqa", "aesthetic")
FOUR = ("pickscore", "hpsv3", "deqa", "aesthetic")
# The numbers of each table and figure as printed, row by row, copied from the paper by hand.
PAPER: dict[tuple[str, str], tuple[tuple[str, ...], dict[str, str]]] = {
    ("table1a", "sd15"): (SIX, {
        "base": "20.65 0.16 2.92 5.98 3.70 5.48",
        "diffusion_dpo": "21.03 0.33 3.03 6.80 3.78 5.59",
        "stage2": "21.04 0.38 3.06 7.33 3.96 5.64",
    }),
    ("table1a", "sd35m"): (SIX, {
        "base": "22.42 0.79 3.30 10.03 4.09 5.44",
        "diffusion_dpo": "22.70 0.97 3.47 10.79 3.96 5.44",
        "stage2": "22.80 1.08 3.46 12.77 4.26 5.55",
    }),
    ("table1b", "sd15"): (SIX, {
        "base": "21.34 0.25 3.15 5.69 3.70 5.39",
        "diffusion_dpo": "21.58 0.40 3.25 6.48 3.78 5.47",
        "stage2": "21.64 0.41 3.28 7.06 3.96 5.49",
    }),
    ("table1b", "sd35m"): (SIX, {
        "base": "22.54 1.11 3.88 8.97 4.00 5.60",
        "diffusion_dpo": "22.75 1.22 3.98 9.41 3.88 5.62",
        "stage2": "22.90 1.27 3.99 10.66 4.20 5.73",
    }),
    ("table2", "sd15"): (SIX, {
        "base": "20.65 0.16 2.92 5.98 3.70 5.48",
        "stage2": "21.04 0.38 3.06 7.33 3.96 5.64",
        "pickapic": "21.26 0.67 3.13 7.85 3.68 5.86",
        "civitai": "21.57 0.74 3.22 8.67 4.01 5.96",
    }),
    ("table3", "sd15"): (FOUR, {
        "base": "20.65 5.98 3.70 5.48",
        "stage2_alone": "20.74 6.11 3.93 5.52",
        "stage1": "20.87 6.83 3.75 5.57",
        "stage2": "21.04 7.33 3.96 5.64",
    }),
    ("table4", "sd15"): (SIX, {
        "base": "20.65 0.16 2.92 5.98 3.70 5.48",
        "diffusion_dpo": "21.03 0.33 3.03 6.80 3.78 5.59",
        "text2image": "21.05 0.35 3.04 7.09 4.00 5.65",
        "pixart": "21.05 0.36 3.04 7.16 3.98 5.61",
        "sd35m": "20.96 0.35 3.04 7.20 3.89 5.62",
        "stage2": "21.04 0.38 3.06 7.33 3.96 5.64",
    }),
    ("table6", "sd15"): (SIX, {
        "base": "20.65 0.16 2.92 5.98 3.70 5.48",
        "diffusion_dpo": "21.03 0.33 3.03 6.80 3.78 5.59",
        "no_curation": "20.88 0.22 2.99 6.91 3.94 5.59",
        "top": "21.05 0.32 3.03 7.25 3.96 5.62",
        "color_top": "21.02 0.35 3.04 7.19 3.95 5.64",
        "stage2": "21.04 0.38 3.06 7.33 3.96 5.64",
    }),
    ("table7a", "sd35m"): (("anime", "concept_art"), {
        "base": "73.33 73.33",
        "diffusion_dpo": "60.00 66.67",
    }),
    ("table7b", "sd15"): (("dpg",), {"base": "62.84", "diffusion_dpo": "63.90", "stage2": "64.38"}),
    ("table7b", "sd35m"): (("dpg",), {
        "base": "83.40",
        "diffusion_dpo": "84.71",
        "stage2": "85.43",
    }),
    ("table8", "sd15"): (("per_second", "gpu_hours"), {
        "measured": "4.5 1.5",
        "twins": "0.14 49",
        "scored": "6 1.2",
        "all": "- 52",
    }),
    ("figure2a", "sd15"): (("realism", "texture_detail"), {
        "base": "-0.041 1832.336",
        "diffusion_dpo": "-0.075 1552.312",
        "diffusion_kto": "-0.221 1580.512",
        "inpo": "-0.253 1255.905",
        "stage2": "-0.009 2353.761",
        "diffusion_dpo_both": "-0.011 2345.722",
    }),
    ("figure2b", "sd35m"): (("stylization", "unifiedreward", "hpsv3"), {
        "base": "0.357 3.30 10.03",
        "flowgrpo": "0.260 3.59 12.63",
        "grpo_guard": "0.241 3.64 12.51",
        "diffusionnft": "0.175 3.68 12.47",
        "stage2": "0.305 3.46 12.77",
        "flowgrpo_both": "0.273 3.60 13.30",
    }),
    ("figure4", "sd35m"): (("win", "tie", "lose"), {
        "base": "63.33 16.67 20.00",
        "diffusion_dpo": "56.67 10.00 33.33",
    }),
    ("figure5", "sd15"): (SIX, {
        "base": "20.65 0.16 2.92 5.98 3.70 5.48",
        "spo": "21.19 0.33 2.98 7.31 3.40 5.76",
        "diffusion_dpo": "21.03 0.33 3.03 6.80 3.78 5.59",
        "stage2": "21.04 0.38 3.06 7.33 3.96 5.64",
        "diffusion_dpo_both": "21.19 0.42 3.08 7.50 3.95 5.65",
    }),
    ("figure5", "sd35m"): (SIX, {
        "base": "22.42 0.79 3.30 10.03 4.09 5.44",
        "diffusion_dpo": "22.70 0.97 3.47 10.79 3.96 5.44",
        "flowgrpo": "23.56 1.26 3.59 12.63 4.18 5.94",
        "stage2": "22.80 1.08 3.46 12.77 4.26 5.55",
        "flowgrpo_both": "23.63 1.30 3.60 13.30 4.21 5.99",
    }),
    ("figure8", "sd15"): (FOUR, {
        "base": "20.65 5.98 3.70 5.48",
        "half": "21.03 7.24 3.87 5.68",
        "stage2": "21.04 7.33 3.96 5.64",
        "more": "21.04 7.23 4.02 5.64",
        "double": "21.00 7.07 3.97 5.61",
    }),
    ("figure8_civitai", "sd15"): (FOUR, {
        "base": "20.65 5.98 3.70 5.48",
        "half": "21.57 8.71 3.96 5.94",
        "stage2": "21.57 8.67 4.01 5.96",
        "more": "21.50 8.45 4.02 5.89",
        "double": "21.57 8.57 4.08 5.94",
    }),
    ("figure10", "sd15"): (SIX, {
        "base": "21.34 0.25 3.15 5.69 3.70 5.39",
        "spo": "21.70 0.46 3.21 7.02 3.39 5.67",
        "diffusion_dpo": "21.58 0.40 3.25 6.48 3.78 5.47",
        "stage2": "21.64 0.41 3.28 7.06 3.96 5.49",
        "diffusion_dpo_both": "21.73 0.47 3.31 7.29 3.94 5.51",
    }),
    ("figure10", "sd35m"): (SIX, {
        "base": "22.54 1.11 3.88 8.97 4.00 5.60",
        "diffusion_dpo": "22.75 1.22 3.98 9.41 3.88 5.62",
        "flowgrpo": "23.68 1.38 4.05 10.32 4.15 6.16",
        "stage2": "22.90 1.27 3.99 10.66 4.20 5.73",
        "flowgrpo_both": "23.74 1.40 4.06 10.71 4.18 6.21",
    }),
}  # fmt: skip


@pytest.mark.parametrize(("name", "family"), PAPER)
def test_every_printed_number_is_there_and_no_other(name: str, family: str) -> None:
    metrics, rows = PAPER[name, family]
    printed = {
        (row, metric): float(value)
        for row, values in rows.items()
        for metric, value in zip(metrics, values.split(), strict=True)
        if value != "-"
    }
    found = tables.published(name, family)
    worked_out = {key: value for key, value in found.items() if key[1] == "human_preference"}
    assert {**printed, **worked_out} == found
    assert bool(worked_out) == (name == "figure2b")


def test_no_published_table_is_forgotten_here() -> None:
    every = tomllib.loads(SHOWN.read_text(encoding="utf-8"))
    found = {(name, family) for name, own in every.items() for family in own}
    assert {key for key in found if not key[0].startswith("fyp_")} == {*PAPER}
    cells = sum(len(tables.published(*key)) for key in PAPER)
    # 184 in Tables 1 to 4 and 6, 4 in 7a, 6 in 7b, 7 in 8; 12 and 24 in Figure 2, 6 in 4; 120 in 5
    # and 10; 40 in 8, of which 8 are its base twice.
    assert cells == 184 + 4 + 6 + 7 + 12 + 24 + 6 + 120 + 40


def test_the_published_human_preference_follows_from_its_two_rewards() -> None:
    """Half UnifiedReward and half HPSv3, each from 0 at its lowest to 1 at its highest."""
    found = tables.published("figure2b", "sd35m")
    rows = {row for row, _ in found}
    span = {
        m: (min(found[r, m] for r in rows), max(found[r, m] for r in rows))
        for m in ("unifiedreward", "hpsv3")
    }
    for row in rows:
        parts = [(found[row, m] - low) / (high - low) for m, (low, high) in span.items()]
        assert found[row, "human_preference"] == pytest.approx(sum(parts) / 2, abs=5e-4)


NAMES = {
    "table2": ["base", "stage2", "pickapic", "civitai"],
    "table4": ["base", "diffusion_dpo", "text2image", "pixart", "sd35m", "stage2"],
    "table6": ["base", "diffusion_dpo", "no_curation", "top", "color_top", "stage2"],
    "table3": ["base", "stage2_alone", "stage1", "stage2"],
}


def test_published_values_are_those_of_the_paper(shared_data):
    paper = yaml.safe_load((shared_data.parent / "paper/reference_results.yaml").read_text())
    metrics = paper["metrics"]

    def check(name: str, family: str, rows: dict[str, list[float | None]]) -> None:
        found = tables.published(name, family)
        expected = {
            (row, metric): value
            for row, values in rows.items()
            for metric, value in zip(metrics, values, strict=True)
            if value is not None
        }
        assert found == expected, name

    for name, rows in NAMES.items():
        check(name, "sd15", {n: r["values"] for n, r in zip(rows, paper[name], strict=True)})
    base = {"base": paper["table3"][0]["values"]}
    for name, series in (("figure8", "hpdv3"), ("figure8_civitai", "civitai_top")):
        rows = zip(
            ("half", "stage2", "more", "double"), paper["figure8"][series].values(), strict=True
        )
        check(name, "sd15", base | dict(rows))
    for figure, sets in (
        ("figure5", {"sd15": "sd15_pickapic", "sd35m": "sd35m_drawbench"}),
        ("figure10", {"sd15": "sd15_partiprompts", "sd35m": "sd35m_partiprompts"}),
    ):
        for family, key in sets.items():
            rows = {
                name.replace("+ours", "_both").replace("ours", "stage2").replace("-", "_"): values
                for name, values in paper["figure5_and_10"][key].items()
            }
            check(figure, family, rows)


def test_every_published_row_has_a_row():
    for name in table.names():
        own = table.read_table(name)
        if own.published:
            for family in FAMILIES:
                rows = {r.name for r in own.all_rows() if not r.families or family in r.families}
                published = {row for row, _ in tables.published(own.published, family)}
                assert published <= rows, (name, family)
