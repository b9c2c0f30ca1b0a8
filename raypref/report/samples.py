"""Images the models made: before and after by prompt, and strips over the steps of a training."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import pyarrow.compute as pc

from raypref.core.fingerprints import fingerprint
from raypref.core.ledger import Ledger, join, read_bytes
from raypref.evaluate.labels import (
    lower_is_better,
    metric_label,
    metric_names,
    plain_label,
    score_text,
)
from raypref.report.meanings import gain_words
from raypref.report.pictures import Folder, list_files, overlay, picture, strip
from raypref.report.views import BeforeAfter, GridRow, Picture, StripView

MOST_GRIDS = 24  # the first prompts, whatever they show: a choice would flatter
MOST_STRIPS = 12
MEDIANS = 4  # prompts around the median gain, on the first screen


class Ranked(NamedTuple):
    """A prompt with the seed it is shown with, and what the model gains on that image."""

    prompt_id: int
    seed: int
    gain: float  # of this seed's image, in the metric's own direction
    metric: str


def ranked(scores: pd.DataFrame, *, model: str, base: str) -> list[Ranked]:
    """All prompts by their gain in the first metric of the table, the best first.

    Each with the lowest seed that both models have a score for: number and picture are of it alone.

    Args:
        scores: of single images, the columns `statistics.SCORES`.
        model: the model.
        base: what it is compared with.
    """
    metric = min(scores["metric"].unique(), key=metric_place)
    own = scores[scores["metric"] == metric]
    images = own.pivot_table(index=["prompt_id", "seed"], columns="model", values="score")
    if model == base or not {model, base} <= set(images.columns):
        return []
    gains = (images[model] - images[base]).dropna().rename("gain").reset_index()
    gains = gains.drop_duplicates("prompt_id")  # sorted by prompt and seed: the lowest seed stays
    gains = gains.sort_values("gain", ascending=lower_is_better(metric), kind="stable")
    return [
        Ranked(int(row.prompt_id), int(row.seed), float(row.gain), metric)
        for row in gains.itertuples()
    ]


def middle(rows: Sequence[Ranked], most: int = MEDIANS) -> list[Ranked]:
    """Those around the median."""
    first = max(0, (len(rows) - most + 1) // 2)
    return list(rows[first : first + most])


def grids(
    images: Mapping[str, Ledger],
    *,
    report: str,
    scores: pd.DataFrame | None = None,
    medians: Sequence[Ranked] = (),
    pair: tuple[str, str] = ("base", ""),
    photographs: Ledger | None = None,
) -> tuple[list[GridRow], list[BeforeAfter]]:
    """The images of all models for the first prompts; writes the full ones beside the page.

    Args:
        images: the complete ledgers of the evaluation's images, by model.
        report: the folder of the page, local or URI.
        scores: of single images, the columns `statistics.SCORES`; the first metric's are shown.
        medians: further prompts, of which two models are shown.
        pair: these two models, before and after.
        photographs: of a set of holes: `photograph` and `mask` by `prompt_id`.

    Returns:
        The first prompts, and `medians` before and after.
    """
    texts = {} if scores is None else _texts(scores)
    columns = ["model", "prompt_id", "prompt", "seed"]
    facts = [row for own in images.values() for row in own.table(columns).to_pylist()]
    places = sorted({(row["seed"], row["prompt_id"]) for row in facts})[:MOST_GRIDS]
    also = {(one.seed, one.prompt_id) for one in medians}
    shown = {row["id"]: row for row in facts if (row["seed"], row["prompt_id"]) in {*places, *also}}
    folder = _written(images, shown, report)
    holes = _holes(photographs, [number for _, number in places], folder)
    rows = []
    for place in places:
        own = {r["model"]: r for r in shown.values() if (r["seed"], r["prompt_id"]) == place}
        pictures, said = {}, {}
        for model in (name for name in images if name in own):
            pictures[model] = _picture(folder, own[model])
            if (*place, model) in texts:
                said[model] = texts[*place, model]
        prompt = next(iter(own.values()))["prompt"]
        hole = holes.get(place[1])
        rows.append(GridRow(prompt=prompt, seed=place[0], images=pictures, hole=hole, scores=said))
    found = {(row["seed"], row["prompt_id"], row["model"]): row for row in shown.values()}
    both = []
    for one in medians:
        before, after = (found.get((one.seed, one.prompt_id, model)) for model in pair)
        if before is not None and after is not None:
            gain = f"{plain_label(one.metric)} {gain_words(one.metric, one.gain)}"
            sides = (_picture(folder, before), _picture(folder, after))
            both.append(BeforeAfter(before["prompt"], *sides, gain))
    return rows, both


def _written(
    images: Mapping[str, Ledger], shown: Mapping[str, Mapping[str, Any]], report: str
) -> Folder:
    """The folder with the full images of the rows that are shown."""
    made = fingerprint({model: ledger.fingerprint for model, ledger in images.items()})
    folder = Folder(report, f"files/images-{made}")
    if not {_name(row) for row in shown.values()} <= folder.before:
        for ledger in images.values():
            for row in ledger.rows(["id", "image"]):
                if row["id"] in shown:
                    folder.write(_name(shown[row["id"]]), row["image"])
        folder.remove_others(prefix="images-")
    return folder


def _holes(
    photographs: Ledger | None, numbers: Sequence[int], folder: Folder
) -> dict[int, Picture]:
    """The photographs with their holes tinted, by number of the prompt."""
    if photographs is None or not photographs.parts():
        return {}
    where = pc.field("prompt_id").isin(list(numbers)) & pc.field("photograph").is_valid()
    found = {}
    columns = ["prompt_id", "photograph", "mask"]
    for row in photographs.rows(columns, where=where, batch_size=8):
        tinted = overlay(row["photograph"], row["mask"])
        ending = "png" if tinted.startswith(b"\x89PNG") else "jpg"
        file = f"{row['prompt_id']:05d}-hole.{ending}"
        folder.write(file, tinted)
        found[row["prompt_id"]] = picture(tinted, full=f"{folder.name}/{file}")
    return found


def _picture(folder: Folder, row: Mapping[str, Any]) -> Picture:
    file = _name(row)
    return picture(folder.read(file), full=f"{folder.name}/{file}")


def metric_place(metric: str) -> tuple[int, str]:
    """Where a metric stands in the order of the tables."""
    known = metric_names()
    return (known.index(metric) if metric in known else len(known), metric)


def strips(trained: Ledger, *, report: str) -> list[StripView]:
    """The samples a training drew, at most `MOST_STRIPS` moments of it; copies them to the page.

    Args:
        trained: the training's ledger; its strips are `samples/step-00000050.png` in it; step 0
            is the base.
        report: the folder of the page, local or URI.
    """
    training = trained.path.rstrip("/").rpartition("/")[2]
    names = list_files(join(trained.path, "samples"))
    steps = sorted((int(m[1]), n) for n in names if (m := re.fullmatch(r"step-(\d+)\.png", n)))
    shown = _spread(steps, MOST_STRIPS)
    files = {name: read_bytes(join(trained.path, "samples", name)) or b"" for _, name in shown}
    # By their content: other prompts draw other samples of the same training.
    made = fingerprint({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
    folder = Folder(report, f"files/samples-{training}.{made}")
    for name, data in files.items():
        folder.write(name, data)
    if files and not {*files} <= folder.before:
        folder.remove_others(prefix=f"samples-{training}.")
    return [
        StripView(step=step, picture=strip(files[name], full=f"{folder.name}/{name}"))
        for step, name in shown
    ]


def _texts(scores: pd.DataFrame) -> dict[tuple[int, int, str], str]:
    """What is said of an image, by seed, prompt and model."""
    metric = min(scores["metric"].unique(), key=metric_place)
    own = scores[(scores["metric"] == metric) & scores["score"].notna()]
    texts = {}
    for row in own.itertuples():
        text = f"{metric_label(metric)} {score_text(metric, row.score)}"
        texts[row.seed, row.prompt_id, row.model] = text
    return texts


def _name(row: Mapping[str, Any]) -> str:
    model = re.sub(r"[^\w-]", "_", str(row["model"]))
    return f"{row['prompt_id']:05d}-{row['seed']}-{model}.png"


def _spread(items: list[tuple[int, str]], most: int) -> list[tuple[int, str]]:
    """The first, the last and evenly between."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
