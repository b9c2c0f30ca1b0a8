"""Pairs from quick scores with exact rescoring, against those of exact scores alone.

Simulated embeddings in bfloat16, TF32 and float16, and photographs through the embedded PickScore,
each with a blurred copy as its twin. The numbers and the real waves, no pass over files: `tests/`
does the same with fewer.

    python benchmarks/rescoring.py [SETS [PHOTOGRAPHS IN EACH [FOLDER WITH captions.csv]]]
"""

from __future__ import annotations

import csv
import hashlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image, ImageFilter
from pyarrow import dataset

from raypref.core.ledger import Ledger
from raypref.core.rows import REJECT, Row, reject
from raypref.curate import rescore
from raypref.curate.rescore import QUICK, OutOfOrderError, QuickScore, Rescoring, quick_score
from raypref.curate.select import Ranking, SelectConfig
from raypref.engine.batches import in_batches
from raypref.rewards.pickscore import PickScoreConfig

PHOTOGRAPHS = 2_000  # of a simulated set
SAMPLE = 200  # of them, on which the difference is measured
CONFIG = SelectConfig(top_k=40, min_gap=0.02)
FIRST = 80  # photographs per wave
BLUR = 1.0  # pixels: twins of some photographs score higher


class Case(NamedTuple):
    """Scores of photographs and their twins, float32 [N] each."""

    quick: np.ndarray
    exact: np.ndarray
    twins: np.ndarray  # exact


class Selected(NamedTuple):
    """What was selected, and what it took."""

    pairs: list[tuple[str, float]]  # id and score by rank
    rescored: int  # photographs scored exactly
    begun: int  # how often selection began


class InMemory(Ledger):
    """A ledger whose rows lie in memory: thousands are filled in seconds."""

    def parts(self) -> list[str]:
        """One."""
        return ["all"]

    def _dataset(self) -> dataset.Dataset:
        return dataset.dataset(self.settings["table"])


def in_memory(rows: list[Row], names: Sequence[str]) -> InMemory:
    """A ledger of photographs with scores of these names."""
    text = [(name, pa.string()) for name in ("id", "key", *REJECT.names)]
    schema = pa.schema([*text, *((name, pa.float32()) for name in names)])
    return InMemory("", {"table": pa.Table.from_pylist(rows, schema=schema)})


def name_of(i: int) -> str:
    """The id of a photograph."""
    return f"{i:05d}"


def reference(case: Case, config: SelectConfig) -> list[tuple[str, float]]:
    """The rule read aloud, on exact scores: of all pairs that pass, those of the K best."""
    order = sorted(range(len(case.exact)), key=lambda i: (-case.exact[i], name_of(i)))
    passed = [i for i in order if float(case.exact[i]) - float(case.twins[i]) > config.min_gap]
    return [(name_of(i), float(case.exact[i])) for i in passed[: config.top_k]]


def select(case: Case, config: SelectConfig, *, size: int) -> Selected:
    """Select from quick scores in waves of about `size`, as curation does."""
    rows: list[Row] = [
        dict.fromkeys(REJECT.names)
        | {"id": name_of(i), "key": hashlib.sha256(name_of(i).encode()).hexdigest()}
        | {"pickscore": quick_score(score)}
        for i, score in enumerate(case.quick)
    ]
    table: dict[str, Any] = dict(in_memory([], [QUICK, "pickscore"]).settings)
    exact = InMemory("", table)

    def score(photographs: pa.Table) -> float:
        done = exact.done_ids()
        new = [row for row in photographs.to_pylist() if row["id"] not in done]
        for row in new:
            row["pickscore"] = float(case.exact[int(row["id"])])
            if math.isnan(row["pickscore"]):
                reject(row, "score", "bad_score", "pickscore is nan")
        more = in_memory(new, [QUICK, "pickscore"]).settings["table"]
        table["table"] = pa.concat_tables([table["table"], more])
        return 0.0

    rescoring = Rescoring(in_memory(rows, ["pickscore"]), exact, score)
    begun = 0
    while True:
        begun += 1
        ranking, reached, below = Ranking(config, also=lambda row: True), 0, math.inf
        scores: dict[str, float] = {}
        try:
            while not ranking.complete:
                wave = rescoring.next_wave(size, below=below, reached=reached).to_pylist()
                if not wave:
                    break
                ranking.begin(row["id"] for row in wave)
                for row in wave:
                    row["pickscore_rejected"] = float(case.twins[int(row["id"])])
                    scores[row["id"]] = row["pickscore"]
                ranking.add(wave)
                reached, below = reached + len(wave), wave[-1]["pickscore"]
        except OutOfOrderError:
            continue
        ranked = sorted(ranking.ranks, key=ranking.ranks.__getitem__)
        return Selected([(id_, scores[id_]) for id_ in ranked], exact.count(), begun)


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """Float32 with so many bits of mantissa, to the nearest: 7 as bfloat16, 10 as TF32."""
    left = 23 - bits
    whole = values.astype(np.float32).view(np.uint32)
    half_to_even = (1 << (left - 1)) - 1 + (whole >> left & 1)
    return (whole + half_to_even & ~np.uint32((1 << left) - 1)).view(np.float32)


PRECISIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "bfloat16": lambda values: rounded(values, 7),
    "tf32": lambda values: rounded(values, 10),
    "float16": lambda values: values.astype(np.float16).astype(np.float32),
}


def simulated(seed: int, count: int, precision: str) -> Case:
    """Scores of drawn embeddings of 32 numbers, about 20; low precision rounds these numbers."""
    rng = np.random.default_rng(seed)
    text, noise, worse = rng.normal(size=(3, count, 32)).astype(np.float32)
    image = 0.2 * text + noise
    low = PRECISIONS[precision]

    def scores(image: np.ndarray, text: np.ndarray) -> np.ndarray:
        norms = np.linalg.norm(image, axis=1) * np.linalg.norm(text, axis=1)
        return (100 * (image * text).sum(axis=1) / norms).astype(np.float32)

    return Case(
        scores(low(image), low(text)), scores(image, text), scores(image + 0.2 * worse, text)
    )


def photographed(config: PickScoreConfig, images: list[Image.Image], prompts: list[str]) -> Case:
    """Scores of photographs by the transform of curation, in `config.quick`, and exactly."""
    stage = QuickScore(config)
    stage.setup()
    rows: list[Row] = [
        {"chosen": image, "caption": prompt} for image, prompt in zip(images, prompts, strict=True)
    ]
    in_batches(stage, rows)
    model, size = config.exactly().load(), config.resources.batch

    def scores(images: list[Image.Image]) -> np.ndarray:
        starts = range(0, len(images), size)
        return np.concatenate(
            [model.score(images[s : s + size], prompts[s : s + size]) for s in starts]
        )

    blurred = [image.filter(ImageFilter.GaussianBlur(BLUR)) for image in images]
    quick = np.array([row["pickscore"] for row in rows], np.float32)
    return Case(quick, scores(images), scores(blurred))


def show(what: str, cases: Sequence[Case], config: SelectConfig, size: int) -> None:
    """Select of every case and print how it compares."""
    began, made, differing, apart = time.process_time(), [], 0, 0.0
    for case in cases:
        made.append(select(case, config, size=size))
        wanted = reference(case, config)
        assert made[-1].pairs == wanted, "not the pairs of exact scores"
        alone = reference(case._replace(exact=case.quick), config)
        differing += [id_ for id_, _ in alone] != [id_ for id_, _ in wanted]
        apart = max(apart, float(np.abs(case.quick - case.exact).max()))
    share = np.mean([m.rescored / len(c.exact) for m, c in zip(made, cases, strict=True)])
    again = sum(m.begun > 1 for m in made)
    print(
        f"| {what} | {len(cases)} | {apart:.2g} | {differing} | 0 | {share:.2f} | {again} |"
        f" {time.process_time() - began:.0f} s |",
        flush=True,
    )


def main() -> None:
    """Print a row per precision, simulated and with photographs."""
    sets = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    count = int(sys.argv[2]) if len(sys.argv) > 2 else PHOTOGRAPHS
    rescore.SAMPLE = SAMPLE
    print(
        "| scores | sets | off by at most | other pairs, quick alone | ours | again | begun again |"
    )
    for precision in PRECISIONS:
        show(
            f"simulated {precision}",
            [simulated(seed, count, precision) for seed in range(sets)],
            CONFIG,
            FIRST,
        )
    if len(sys.argv) < 4:
        return
    folder = Path(sys.argv[3])
    with (folder / "captions.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))[:200]
    images = [Image.open(folder / row["file"]).convert("RGB") for row in found]
    prompts = [row["caption"] for row in found]
    quick: Literal["bfloat16", "float16"]
    for quick in ("bfloat16", "float16"):
        config = PickScoreConfig(model="tiny:pickscore", processor="tiny:pickscore", quick=quick)
        rescore.SAMPLE = len(images) // 5
        case = photographed(config, images, prompts)
        show(f"{len(images)} photographs {quick}", [case], SelectConfig(top_k=20), 30)


if __name__ == "__main__":
    main()
