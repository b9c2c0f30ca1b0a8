"""Making pairs in rank order until K have passed gives the pairs that making all of them gives."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "photos"
K = 24
SETTINGS = (
    "tiny",
    f"source.path={REAL if REAL.is_dir() else 'tiny:world'}",
    f"select.top_k={K}",
    "perturb.steps=2",
    "tracking.uri=none",
)
# One, two and four workers, and other cuts of the work.
WAYS = {
    "all": ("curate.exhaustive=true", "stream.block_rows=16", "saliency.resources.workers=2"),
    "one": ("stream.block_rows=7", "stream.part_rows=50", "saliency.resources.workers=1"),
    "four": (
        *("stream.block_rows=5", "stream.part_rows=300", "saliency.resources.workers=4"),
        *(f"{stage}.resources.num_cpus=0.5" for stage in ("saliency", "perturb", "pickscore")),
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    storage = tmp_path_factory.mktemp("waves")
    for name, settings in WAYS.items():
        code, output = job(
            *("curate", *SETTINGS, *settings, f"run={name}", f"storage={storage}"), folder=storage
        )
        assert code == 0, output
    return {name: storage / name for name in WAYS}


def pairs(run: Path) -> pa.Table:
    return pq.ParquetDataset(sorted((run / "pairs").glob("part-*"))).read()


def manifest(run: Path, name: str) -> dict[str, object]:
    return json.loads((run / name / "manifest.json").read_text())


def test_the_same_pairs_byte_for_byte(runs: dict[str, Path]) -> None:
    expected = pairs(runs["all"])
    assert expected.num_rows == K
    assert expected["rank"].to_pylist() == list(range(K))
    for name in ("one", "four"):
        assert pairs(runs[name]).equals(expected), name


def test_fewer_pairs_are_made(runs: dict[str, Path]) -> None:
    everything = manifest(runs["all"], "curate/twins")["rows"]
    for name in ("one", "four"):
        made = manifest(runs[name], "curate/twins")["rows"]
        print(f"{name}: {made} of {everything} pairs were made")
        assert K <= made < everything


def test_what_became_of_the_photographs_does_not_depend_on_how(runs: dict[str, Path]) -> None:
    tables = [
        pq.ParquetDataset(sorted((runs[name] / "photos").glob("part-*"))).read().sort_by("id")
        for name in ("one", "four")
    ]
    assert tables[0].equals(tables[1])
    counts = manifest(runs["one"], "photos")["counts"]
    assert counts["pair"] == K and counts["not_needed"] > 0
    everything = manifest(runs["all"], "photos")["counts"]
    assert "not_needed" not in everything and everything["pair"] == K
    assert everything["low_colorfulness"] == counts["low_colorfulness"]
