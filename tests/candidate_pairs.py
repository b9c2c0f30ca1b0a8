"""Pairs of candidates: photographs and settings for tests, and work counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import small
from corpus import encode, scene
from PIL import Image

from raypref.core.config import load
from raypref.core.ledger import in_folder
from raypref.curate.perturb import Inpaint
from raypref.pairs.candidates import CandidatePairs
from raypref.rewards.base import Score
from raypref.run.config import RunConfig

PAINTER = {"text2image": "sd15"}  # else the inpainter


def photographs(root: Path, count: int) -> Path:
    """Scenes with captions, a copy of the first, one without a caption, and a broken one."""
    root.mkdir()
    for number in range(count):
        (root / f"{number:02d}.png").write_bytes(encode(scene(number, size=(80, 64)), "PNG"))
        (root / f"{number:02d}.txt").write_text(f"a scene, no. {number}")
    for name, data in {
        "copy": (root / "00.png").read_bytes(),
        "bare": encode(scene(90), "PNG"),
        "broken": encode(scene(91), "PNG")[:200],
    }.items():
        (root / f"{name}.png").write_bytes(data)
    (root / "copy.txt").write_text("a scene, no. 0")
    (root / "broken.txt").write_text("a scene that ends")
    Image.new("RGB", (64, 64), "grey").save(root / "grey.png")
    (root / "grey.txt").write_text("nothing stands out")
    return root


def config(root: Path, *words: str, kind: str = "sd15") -> RunConfig:
    """A run with few candidates of an untrained painter."""
    start = [
        f"source.path={root}",
        "pairs.kind=candidates",
        "candidates.count=3",
        "color.enabled=false",
        f"perturb.kind={kind}",
        f"perturb.model={small.path(PAINTER.get(kind, 'sd15-inpaint'))}",
        "perturb.steps=2",
        "perturb.resources.batch=2",
        f"pickscore.model={small.path('pickscore')}",
        f"pickscore.processor={small.path('pickscore')}",
        f"rewards.clipscore.model={small.path('pickscore')}",
        "stream.block_rows=4",
    ]
    return load(RunConfig, "tiny", [*start, *words])


def made(settings: RunConfig, folder: Path) -> CandidatePairs:
    """The pairs, made or resumed; what was made with other settings is replaced, as by --redo."""
    maker = CandidatePairs(settings, place=in_folder(str(folder)))
    for ledger in maker.ledgers:
        if ledger.state() == "stale":
            ledger.clear()
    maker.run(settings.stream)
    assert {ledger.state() for ledger in maker.ledgers} == {"complete"}
    return maker


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a run, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def counting(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many rows were painted, and scored by each reward; copies that pad a batch left out."""
    done: Counter[str] = Counter()
    paint, score = Inpaint.finish, Score.finish

    def painted(self: Inpaint, rows: list[Any], out: Any) -> None:
        done["painted"] += len(rows)
        paint(self, rows, out)

    def scored(self: Score, rows: list[Any], out: Any) -> None:
        done[next(iter(self.columns.values()))] += len(rows)
        score(self, rows, out)

    monkeypatch.setattr(Inpaint, "finish", painted)
    monkeypatch.setattr(Score, "finish", scored)
    return done
