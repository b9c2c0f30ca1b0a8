"""Pairs made in rank order until K have passed are the pairs of a run that makes all.

Three workers make them, in other cuts of the work than the one worker of the whole run.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import WHOLE, job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SETTINGS = (
    *(word for word in WHOLE if word != "curate.exhaustive=true"),
    *("stream.block_rows=2", "stream.part_rows=7", "saliency.resources.workers=3"),
    *(f"{stage}.resources.num_cpus=0.5" for stage in ("saliency", "perturb", "pickscore")),
    "tracking.uri=none",
)


def table(run: Path, name: str) -> pa.Table:
    return pq.ParquetDataset(sorted((run / name).glob("part-*"))).read().sort_by("id")


def manifest(run: Path, name: str) -> dict[str, int]:
    return json.loads((run / name / "manifest.json").read_text())


def test_the_same_pairs_byte_for_byte_and_fewer_made(
    full: tuple[Path, str], tmp_path: Path
) -> None:
    everything, run = full[0], tmp_path / "run"
    code, output = job("curate", *SETTINGS, f"storage={tmp_path}", folder=tmp_path)
    assert code == 0, output
    assert len(list((run / "curate" / "measured").glob("part-*"))) > 1

    expected = table(everything, "pairs")
    assert table(run, "pairs").equals(expected)
    assert sorted(expected["rank"].to_pylist()) == list(range(expected.num_rows))
    made, most = (manifest(each, "curate/twins")["rows"] for each in (run, everything))
    assert expected.num_rows <= made < most

    # What became of the photographs does not tell how many twins were made: those that come after
    # the last pair were not needed.
    ours, theirs = (table(each, "photos").to_pylist() for each in (run, everything))
    last = min(row["pickscore"] for row in theirs if row["status"] == "pair")
    for row, other in zip(ours, theirs, strict=True):
        if row["reason"] == "not_needed":
            assert other["pickscore"] < last
            assert other["status"] != "pair"
        else:
            assert row == other
    assert any(row["reason"] == "not_needed" for row in ours)
