"""Images the models made: before and after by prompt, and strips over the steps of a training."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pandas as pd

from raypref.core.fingerprints import fingerprint
from raypref.core.ledger import Ledger, join, read_bytes
from raypref.evaluate.labels import metric_label, metric_names, score_text
from raypref.report.pictures import Folder, list_files, picture, strip
from raypref.report.views import GridRow, StripView

MOST_GRIDS = 24  # the first prompts, whatever they show: a choice would flatter
MOST_STRIPS = 12


def grids(
    images: Mapping[str, Ledger], *, report: str, scores: pd.DataFrame | None = None
) -> list[GridRow]:
    """The images of all models for the first prompts; writes the full ones beside the page.

    Args:
        images: the complete ledgers of the evaluation's images, by model.
        report: the folder of the page, local or URI.
        scores: of single images, the columns `statistics.SCORES`; the first metric's are shown.
    """
    texts = {} if scores is None else _texts(scores)
    columns = ["model", "prompt_id", "prompt", "seed"]
    facts = [row for own in images.values() for row in own.table(columns).to_pylist()]
    places = sorted({(row["seed"], row["prompt_id"]) for row in facts})[:MOST_GRIDS]
    shown = {row["id"]: row for row in facts if (row["seed"], row["prompt_id"]) in places}
    made = fingerprint({model: ledger.fingerprint for model, ledger in images.items()})
    folder = Folder(report, f"files/images-{made}")
    if not {_name(row) for row in shown.values()} <= folder.before:
        for ledger in images.values():
            for row in ledger.rows(["id", "image"]):
                if row["id"] in shown:
                    folder.write(_name(shown[row["id"]]), row["image"])
        folder.remove_others(prefix="images-")
    rows = []
    for seed, prompt_id in places:
        own = {
            r["model"]: r
            for r in shown.values()
            if (r["seed"], r["prompt_id"]) == (seed, prompt_id)
        }
        pictures, said = {}, {}
        for model in (name for name in images if name in own):
            file = _name(own[model])
            pictures[model] = picture(folder.read(file), full=f"{folder.name}/{file}")
            if (seed, prompt_id, model) in texts:
                said[model] = texts[seed, prompt_id, model]
        prompt = next(iter(own.values()))["prompt"]
        rows.append(GridRow(prompt=prompt, seed=seed, images=pictures, scores=said))
    return rows


def metric_place(metric: str) -> tuple[int, str]:
    """Where a metric stands in the order of the tables."""
    known = metric_names()
    return (known.index(metric) if metric in known else len(known), metric)


def strips(folder: str, training: str) -> list[StripView]:
    """The samples a training drew on its way, at most `MOST_STRIPS` moments of it.

    Args:
        folder: the run's folder, local or URI.
        training: its name; its strips are `<training>/samples/step-00000050.png`; step 0
            is the base.
    """
    names = list_files(join(folder, training, "samples"))
    steps = sorted((int(m[1]), n) for n in names if (m := re.fullmatch(r"step-(\d+)\.png", n)))
    views = []
    for step, name in _spread(steps, MOST_STRIPS):
        data = read_bytes(join(folder, training, "samples", name))
        assert data is not None
        # The file of the run itself is the full one: the page lies in the folder beside.
        views.append(
            StripView(step=step, picture=strip(data, full=f"../{training}/samples/{name}"))
        )
    return views


def _texts(scores: pd.DataFrame) -> dict[tuple[int, int, str], str]:
    """What is said of an image, by seed, prompt and model."""
    metric = min(scores["metric"].unique(), key=metric_place)
    own = scores[(scores["metric"] == metric) & scores["score"].notna()]
    texts = {}
    for row in own.itertuples():
        text = f"{metric_label(metric)} {score_text(metric, row.score)}"
        texts[row.seed, row.prompt_id, row.model] = text
    return texts


def _name(row: dict[str, object]) -> str:
    model = re.sub(r"[^\w-]", "_", str(row["model"]))
    return f"{row['prompt_id']:05d}-{row['seed']}-{model}.png"


def _spread(items: list[tuple[int, str]], most: int) -> list[tuple[int, str]]:
    """The first, the last and evenly between."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
