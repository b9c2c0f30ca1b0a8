"""Gathers what the report shows from the tables a run has written; writes pictures beside it."""

from __future__ import annotations

import datetime
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import pyarrow.parquet as pq

from raypref.core.ledger import Ledger, filesystem, join, read_bytes
from raypref.core.messages import without_secrets
from raypref.evaluate.labels import digits, lower_is_better, neutral
from raypref.evaluate.tables import NamedTable, Published
from raypref.models.hub import LOCAL
from raypref.models.lora_config import FILE_NAME
from raypref.models.lora_formats import shared_name
from raypref.models.network import COMPONENTS, WEIGHTS
from raypref.pairs.config import PROMPTS, TWINS, PairingConfig
from raypref.pairs.kinds import kind_of
from raypref.report.candidates import CANDIDATES, candidate_inputs
from raypref.report.labels import label_inputs
from raypref.report.photographs import photograph_inputs
from raypref.report.samples import grids, metric_place, middle, ranked, strips
from raypref.report.side_by_side import FILE as SIDE_BY_SIDE
from raypref.report.side_by_side import write_side_by_side
from raypref.report.views import (
    BeforeAfter,
    GridRow,
    InputsView,
    Link,
    PromptGains,
    ReportData,
    StepCost,
    StepState,
    TrainingView,
)

# What the page shows of the inputs, by `pairs.kind`.
INPUTS: Mapping[str, Callable[[str, PairingConfig, Ledger], InputsView]] = {
    TWINS: photograph_inputs,
    "labelled": label_inputs,
    "images": label_inputs,
    PROMPTS: label_inputs,
    CANDIDATES: candidate_inputs,
}
# What a run leaves behind for others besides its LoRAs, with the words for people.
RESULTS = (
    ("pairs/_README.md", "pairs", "dataset card of the pairs"),
    ("pairs/README.md", "pairs", "dataset card of the pairs"),  # of a run made before
    ("bias/bias.md", "pairs", "what the rewards prefer besides quality"),
    ("bias/within.csv", "pairs", "rank correlations as CSV"),
    ("bias/tilt.csv", "pairs", "chosen minus rejected as CSV"),
    ("fused/model_index.json", "model", "pipeline with the LoRA merged"),
    ("evaluation/scores.parquet", "evaluation", "scores of every image"),
    ("evaluation/table.csv", "evaluation", "table as CSV"),
    ("evaluation/table.tex", "evaluation", "as LaTeX"),
    ("evaluation/categories.md", "evaluation", "by category"),
    ("evaluation/wins.csv", "evaluation", "win rates"),
    ("config.toml", "run", "resolved configuration"),
    ("run.json", "run", "record of the steps"),
)


def collect(
    *,
    name: str,
    config_toml: str,
    seed: int,
    record: Mapping[str, Any],
    folder: str,
    curated_by: PairingConfig,
    pairs: Ledger,
    trained: Mapping[str, Ledger],
    labels: Mapping[str, str],
    images: Mapping[str, Ledger],
    table: pd.DataFrame | None,
    categories: pd.DataFrame | None,
    final: str,
    published: Published,
    tracking_uri: str = "",
    sets: Sequence[NamedTable] = (),
    banner: str = "",
    steps: Sequence[StepState] = (),
    sampled: Sequence[str] = (),
    use: str = "",
    on_own_samples: Collection[str] = (),
    inpaints: bool = False,
    photographs: Ledger | None = None,
) -> ReportData:
    """Read a run's tables; what a run has not made yet is left out.

    Args:
        name: the run's name.
        config_toml: the resolved configuration.
        seed: the run's seed.
        record: content of `run.json`.
        folder: the run's folder; pictures are written to `report/files` in it.
        curated_by: the settings that the pairs were made by.
        pairs: the pairs.
        trained: the trainings by name.
        labels: names of the models for people, by name.
        images: the evaluation's images, by model; none before there are any.
        table: the evaluation's summary, if there is one.
        categories: the same by category, if there is one.
        final: the model that the run is about, by its name in the table.
        published: the paper's numbers beside it.
        tracking_uri: where MLflow keeps the run; empty is the SQLite file beside the runs.
        sets: the tables of all prompt sets, the one above first; empty: it is the only one.
        banner: what a reader must know before any number.
        steps: the run's steps that a reader of the page knows.
        sampled: prompts of the samples that trainings draw, in order.
        use: Python code that loads the LoRA, if there is one.
        on_own_samples: trainings whose rejected side is drawn by the policy.
        inpaints: whether the model fills holes of photographs.
        photographs: those of the evaluation's holes, with masks; None where it has prompts.
    """
    curated = pairs.state() == "complete"
    report = join(folder, "report")
    models = [] if table is None else list(dict.fromkeys(table["model"]))
    if final not in models:
        final = models[-1] if models else ""
    # Beside the table: scores of an evaluation that was replaced would not fit these images.
    at = join(folder, sets[0].at if sets else "evaluation")
    scores = _scores(at) if table is not None else None
    made = bool(images) and all(ledger.state() == "complete" for ledger in images.values())
    beside = (
        made
        and scores is not None
        and write_side_by_side(images, scores, report=report, labels=labels)
    )
    rows = [] if scores is None else ranked(scores, model=final, base="base")
    shown: list[GridRow] = []
    both: list[BeforeAfter] = []
    if made:
        sides = ("base", final)
        shown, both = grids(
            images,
            report=report,
            scores=scores,
            medians=middle(rows),
            pair=sides,
            photographs=photographs,
        )
    known = {step.name: step.label for step in steps}
    # Those of other pairs or settings stay on disk until they are made anew.
    earlier = [name for name, ledger in trained.items() if ledger.state() == "stale"]
    trained = {name: ledger for name, ledger in trained.items() if name not in earlier}
    made_from = (
        INPUTS[curated_by.pairs.kind](folder, curated_by, pairs) if curated else InputsView()
    )
    return ReportData(
        title=name,
        subtitle=f"seed {seed}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        config_toml=config_toml,
        banner=banner,
        done=[step.label for step in steps if step.done],
        to_come=[step.label for step in steps if not step.done],
        seconds=record.get("seconds"),
        facts=_facts(record),
        links=_links(folder, name, record, {n: labels[n] for n in trained}, tracking_uri),
        terms=kind_of(curated_by).terms,
        funnel=made_from.funnel,
        histograms=made_from.histograms,
        dropped=made_from.dropped,
        source=without_secrets(curated_by.source.path),
        pairs=made_from.pairs,
        pairs_are=made_from.pairs_are,
        pictures=made_from.pictures,
        candidate_pages=made_from.candidate_pages,
        bias=made_from.bias,
        training=[
            view
            for n, ledger in trained.items()
            if (view := _training(ledger, labels[n], report, sampled, own=n in on_own_samples))
        ],
        earlier=[labels[name] for name in earlier],
        medians=both,
        grids=shown,
        opening=_nearest_the_median(shown, [own.prompt for own in both]),
        inpaints=inpaints,
        side_by_side=SIDE_BY_SIDE if beside else "",
        use=use,
        table=table,
        categories=categories,
        published=published,
        sets=sets,
        labels=labels,
        final=final,
        prompt_gains=[] if scores is None else prompt_gains(scores, model=final, base="base"),
        costs=[_cost(known.get(step, step), facts) for step, facts in record["steps"].items()],
    )


def _nearest_the_median(rows: Sequence[GridRow], medians: Sequence[str]) -> int:
    """The grid of the comparison's first sight: of a median prompt where one is among them."""
    places = [place for place, row in enumerate(rows) if row.prompt in medians]
    return places[0] if places else 0


def prompt_gains(scores: pd.DataFrame, *, model: str, base: str) -> list[PromptGains]:
    """Where the model beats the base, prompt by prompt, for every metric of single images.

    Args:
        scores: one row per image and metric, the columns `statistics.SCORES`.
        model: the model.
        base: what it is compared with.
    """
    views = []
    for metric in sorted(scores["metric"].unique(), key=metric_place):
        own = scores[scores["metric"] == metric]
        means = own.pivot_table(index="prompt_id", columns="model", values="score")
        if model == base or neutral(metric) or not {model, base} <= set(means.columns):
            continue
        gains = (means[model] - means[base]).dropna()
        if lower_is_better(metric):
            gains = -gains
        gains = gains.sort_values(ascending=False, kind="stable")
        prompts = own.drop_duplicates("prompt_id").set_index("prompt_id")["prompt"]
        # What the page would print as zero is a tie.
        tie = 0.5 * 10.0 ** -digits(metric)
        wins, losses = int((gains > tie).sum()), int((gains < -tie).sum())
        views.append(
            PromptGains(
                metric=metric,
                gains=[(str(prompts[i]), float(gain)) for i, gain in gains.items()],
                wins=wins,
                ties=len(gains) - wins - losses,
                losses=losses,
            )
        )
    return views


def _scores(evaluation: str) -> pd.DataFrame | None:
    data = read_bytes(join(evaluation, "scores.parquet"))
    return None if data is None else pq.read_table(io.BytesIO(data)).to_pandas()


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Versions of the libraries, and the commits of the models that come from the hub."""
    versions, models = record.get("versions", {}), record.get("models", {})
    return [
        *((name, version) for name, version in versions.items() if version),
        *((ref, commit) for ref, commit in models.items() if commit != LOCAL),
    ]


def _training(
    trained: Ledger, label: str, report: str, prompts: Sequence[str], *, own: bool
) -> TrainingView | None:
    data = read_bytes(join(trained.path, "metrics.parquet"))
    if data is None:
        return None
    metrics = pq.read_table(io.BytesIO(data)).to_pandas()
    return TrainingView(
        name=label,
        metrics=metrics.rename(columns={"seconds": "seconds_per_step"}),
        strips=strips(trained, report=report),
        prompts=prompts,
        own_samples=own,
    )


def _cost(step: str, facts: Mapping[str, Any]) -> StepCost:
    seconds, amount = facts["seconds"], facts["amount"]
    rate = f"{amount / seconds:.2f} {facts['unit']}/s" if seconds and amount else ""
    return StepCost(step, seconds, amount, rate, facts.get("device_share"))


def _links(
    folder: str,
    run: str,
    record: Mapping[str, Any],
    trained: Mapping[str, str],
    tracking_uri: str,
) -> list[Link]:
    fs, root = filesystem(folder)
    # Of these trainings alone: others may be there from settings that were replaced.
    weights = [(f"{name}/{FILE_NAME}", "LoRA", label) for name, label in trained.items()]
    for name, label in trained.items():
        text = f"{label}, for ComfyUI and others"
        weights.append((f"{name}/{shared_name(run, name)}", "LoRA", text))
        weights += [(f"{name}/{part}/{WEIGHTS}", "network", label) for part in COMPONENTS]
    cards = [(f"{name}/README.md", "LoRA", "model card") for name in trained]
    # As text: a page that is copied without the run must not have dead links.
    links = [
        Link(what, f"{path} ({text})")
        for path, what, text in (*RESULTS[:5], *weights, *cards, *RESULTS[5:])
        if fs.get_file_info(f"{root}/{path}").is_file
    ]
    run_id = record.get("mlflow_run_id")
    if run_id:
        links.append(_mlflow(run_id, tracking_uri))
    return links


def _mlflow(run_id: str, uri: str) -> Link:
    address = urlsplit(uri)
    if address.scheme in ("http", "https"):
        # A name and password in the address are nobody's business who gets the page.
        host = address.netloc.rpartition("@")[2]
        web = f"{address.scheme}://{host}{address.path.rstrip('/')}"
        return Link("MLflow", f"run {run_id}", f"{web}/#/runs/{run_id}")
    # Where a file lies on this machine is no news to who gets the page.
    store = without_secrets(uri) or "sqlite:///mlflow.db"
    where = "" if uri else "in the folder of the runs: "
    return Link("MLflow", f"run {run_id}; {where}mlflow ui --backend-store-uri {store}")
