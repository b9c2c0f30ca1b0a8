"""The worked example of docs/extending.md: a layout in a file of one's own, outside the package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from worked_examples import ROOT, example

from raypref.core.ledger import Ledger
from raypref.sources.index import SourceConfig, digest, fetch, write_index
from raypref.sources.layouts import REGISTRY
from raypref.sources.store import SourceError


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """The file as the page shows it."""
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine" / "titles.py"
    file.write_text(example("Add a source layout"), encoding="utf-8")
    return file


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photographs with titles, and lines that cannot be used."""
    root = tmp_path / "photos"
    (root / "2024").mkdir(parents=True)
    for name in ("a.jpg", "2024/b.jpg"):
        (root / name).write_bytes(name.encode())
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (root / "titles.tsv").write_text("a.jpg\tone\nno tab\n../secret.jpg\tx\n")
    (root / "2024" / "titles.tsv").write_text("B.JPG\ttwo\n")
    (root / "2024" / "more").mkdir()
    (root / "2024" / "more" / "titles.tsv").write_bytes(b"c.jpg\tcaf\xe9\n")
    return root


def test_curation_lists_photographs_through_it(module, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(REGISTRY, "titles", REGISTRY["folder"])  # is taken out again afterwards
    exec(compile(module.read_text(), str(module), "exec"), {"__name__": "titles"})
    source = SourceConfig(path=str(photos), layout="titles")
    index = Ledger(str(tmp_path / "index"), {"source.digest": digest(source)})
    write_index(source, index, part_rows=2)
    rows = index.table(["uri", "member", "column", "size", "caption", "problem"]).to_pylist()
    ends = {}
    for row in rows:
        try:
            ends[row["id"]] = row["problem"] or fetch(row, source.store(), max_bytes=10**6)
        except SourceError as error:
            ends[row["id"]] = error.reason
    damaged = ends.pop("2024/more/titles.tsv#//damaged")
    assert damaged.startswith("bad_encoding: 2024/more/titles.tsv is not UTF-8 text")
    assert ends == {
        "titles.tsv#1": b"a.jpg",
        "titles.tsv#2": "bad_record: line 2 of titles.tsv has no tab",
        "titles.tsv#3": "outside_root",
        "2024/titles.tsv#1": b"2024/b.jpg",
    }
    assert [row["caption"] for row in rows if row["id"] == "2024/titles.tsv#1"] == ["two"]


def test_a_job_that_imports_it_knows_its_name(module, photos, tmp_path):
    job = ROOT / "jobs" / "curate.py"
    script = tmp_path / "curate_titles.py"
    docstring, _, rest = job.read_text(encoding="utf-8").partition("import sys\n")
    script.write_text(f"{docstring}import sys\nimport titles\n{rest}", encoding="utf-8")
    settings = [f"source.path={photos}", "source.layout=titles", f"storage={tmp_path}", "--dry-run"]
    path = os.pathsep.join([str(module.parent), str(ROOT)])
    for file, code in ((script, 0), (job, 2)):
        done = subprocess.run(
            [sys.executable, str(file), "tiny", *settings],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
    assert "source.layout='titles'" in done.stderr and "imagereward" in done.stderr
