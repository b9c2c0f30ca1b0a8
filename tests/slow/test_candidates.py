"""Candidates across workers and kills: promises 2 and 3 where paintings are what takes long."""

from __future__ import annotations

from pathlib import Path

import pytest
import small
from candidate_pairs import photographs
from corpus import scene
from in_process import job_here

from jobs import start
from raypref.core.ledger import Ledger
from raypref.images.decode import open_png

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

COUNT, PHOTOGRAPHS, BLOCK = 4, 8, 2


def words(root: Path, storage: Path, *, workers: int) -> tuple[str, ...]:
    return (
        "tiny",
        f"source.path={root}",
        f"storage={storage}",
        "pairs.kind=candidates",
        "images.bucket_step=16",
        f"candidates.count={COUNT}",
        "color.enabled=false",
        f"perturb.model={small.path('sd15-inpaint')}",
        "perturb.steps=6",
        f"perturb.resources.workers={workers}",
        "perturb.resources.num_cpus=0.25",
        "saliency.resources.workers=1",
        f"pickscore.model={small.path('pickscore')}",
        f"pickscore.processor={small.path('pickscore')}",
        "pickscore.resources.workers=1",
        f"stream.block_rows={BLOCK}",
        "stream.progress_seconds=0",
        "tracking.uri=none",
    )


def painted(storage: Path) -> list[Path]:
    """Parts of candidates that are stored."""
    return sorted((storage / "run" / "candidates" / "images").glob("*/part-*"))


def test_two_workers_and_a_kill_make_what_one_process_does_to_the_byte(tmp_path: Path) -> None:
    root = photographs(tmp_path / "photographs", PHOTOGRAPHS)
    for number, size in ((2, (96, 160)), (5, (160, 96))):  # crops of 48x80 and 80x48
        scene(number, size=size).save(root / f"{number:02d}.png")
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    code, said = job_here("curate", *words(root, alone, workers=1))
    assert code == 0, said
    with start("curate", *words(root, killed, workers=2), folder=tmp_path / "logs") as job:
        job.wait_for(lambda: len(painted(killed)) >= 3)
        job.kill_driver()
    before = {path: path.stat().st_mtime_ns for path in painted(killed)}
    whole = sum(pq_rows(path) for path in painted(alone))
    assert sum(map(pq_rows, before)) < whole, "the kill came too late to test anything"
    code, said = job_here("curate", *words(root, killed, workers=2))
    assert code == 0, said

    kept = [path for path, at in before.items() if path.exists() and path.stat().st_mtime_ns == at]
    assert kept == list(before), "what was painted is not painted again"
    for name in ("pairs", "photos", "rejects", "candidates/scores"):
        tables = [contents(storage / "run" / name) for storage in (alone, killed)]
        assert tables[0] == tables[1], name
    chosen = Ledger(str(alone / "run" / "pairs"), {}).rows(["chosen"])
    sizes = {open_png(row["chosen"]["bytes"]).size for row in chosen}
    assert sizes == {(64, 64), (48, 80), (80, 48)}
    for number in range(COUNT):
        groups = [
            Ledger(str(storage / "run" / "candidates" / "images" / f"{number:02d}"), {}).table()
            for storage in (alone, killed)
        ]
        assert groups[0].equals(groups[1])


def pq_rows(path: Path) -> int:
    """Rows of a part."""
    return Ledger(str(path.parent), {}).part(path.name, ["id"]).num_rows


def contents(folder: Path) -> dict[str, bytes]:
    """The files that hold rows."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*"))}
