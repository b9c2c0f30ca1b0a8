"""The printed tables, in the paper's form: Markdown, CSV, LaTeX, the published values beside ours.

The best mean of a metric is bold and the second underlined, in Markdown italic.
"""

from __future__ import annotations

import io
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from raypref.core.config import InputError
from raypref.core.ledger import read_bytes
from raypref.evaluate.labels import (
    gain_text,
    heading,
    interval_text,
    lower_is_better,
    metric_label,
    model_label,
    neutral,
    score_text,
    spelt_out,
)

if TYPE_CHECKING:
    import pandas as pd

Published: TypeAlias = Mapping[tuple[str, str], float]  # (model, metric) -> published mean

NO_LABELS: Mapping[str, str] = {}  # models are called by their names

PAPER = (
    "'paper' is the published value (arXiv 2605.19839; of inpainters 2509.23082): comparable for "
    "the same base model, prompts, numbers of images and pairs, and weights of the metric only."
)
MARKS = "Best bold, second best italic, by unrounded means."
MARKS_LATEX = "Best bold, second best underlined, by unrounded means."
BEST = {1: "**{}**", 2: "_{}_"}
BEST_LATEX = {1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}
LATEX_SIGNS = {
    **{sign: "\\" + sign for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}


def markdown(
    summary: pd.DataFrame,
    *,
    published: Published | None = None,
    labels: Mapping[str, str] = NO_LABELS,
) -> str:
    """The table in the paper's form, one row per model and one column per metric.

    A cell reads `**21.04** [20.98, 21.10] (+0.39) paper 21.04`: mean, interval, gain over the
    base, published value where there is one.

    Args:
        summary: of `statistics.summarise`.
        published: of `published`, or None to leave the published values out.
        labels: names of the models for people, as `Run.labels`.
    """
    lines = _grid(summary, published, labels)
    return "\n".join([*lines, "", f"{footnote(summary, published=published)} {MARKS}", ""])


def latex(
    summary: pd.DataFrame,
    *,
    published: Published | None = None,
    labels: Mapping[str, str] = NO_LABELS,
) -> str:
    """The same table as a LaTeX `tabular` for booktabs, with the sentences under it as a comment.

    Args:
        summary: of `statistics.summarise`.
        published: of `published`, or None to leave the published values out.
        labels: names of the models for people, as `Run.labels`.
    """
    metrics = list(dict.fromkeys(summary["metric"]))
    lines = [f"% {footnote(summary, published=published)} {MARKS_LATEX}"]
    lines += [r"\begin{tabular}{l" + "c" * len(metrics) + "}", r"\toprule"]
    lines += [_latex_row(["Method", *(_latex_text(heading(m)) for m in metrics)]), r"\midrule"]
    for model, cells in _rows(summary):
        texts = [_latex_text(model_label(model, labels))]
        for row in cells:
            texts.append("--" if row is None else _latex_cell(row, published or {}))
        lines.append(_latex_row(texts))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def csv(summary: pd.DataFrame, *, published: Published | None = None) -> str:
    """The summary as CSV text with full precision and a column `published` (empty where none)."""
    known = published or {}
    pairs = zip(summary["model"], summary["metric"], strict=True)
    column = [known.get(pair, math.nan) for pair in pairs]
    return plain_csv(summary.assign(published=column))


class NamedTable(NamedTuple):
    """The table of one prompt set."""

    name: str  # of the set
    at: str  # its folder, below the run's
    table: pd.DataFrame  # of `statistics.summarise`


def read_summary(path: str) -> pd.DataFrame:
    """The summary that `csv` wrote to a file, which must be there."""
    import pandas as pd

    data = read_bytes(path)
    assert data is not None, path
    return pd.read_csv(io.BytesIO(data)).drop(columns="published")


def several(sets: Sequence[NamedTable], *, labels: Mapping[str, str] = NO_LABELS) -> str:
    """The tables as Markdown, under the names of their sets where there is more than one."""
    texts = [markdown(each.table, labels=labels) for each in sets]
    if len(texts) < 2:
        return "".join(texts)
    named = zip(sets, texts, strict=True)
    return "\n\n".join(f"### {each.name}\n\n{text.strip()}" for each, text in named) + "\n"


def plain_csv(frame: pd.DataFrame) -> str:
    """Any table as CSV text with full precision."""
    return str(frame.to_csv(index=False, lineterminator="\n"))


def categories_markdown(categories: pd.DataFrame, *, labels: Mapping[str, str] = NO_LABELS) -> str:
    """A table a category of `statistics.by_category`, under headings; a line where there are none.

    Args:
        categories: of `statistics.by_category`.
        labels: names of the models for people, as `Run.labels`.
    """
    if categories.empty:
        return "The prompts have no categories.\n"
    blocks = []
    for grouping, of_kind in categories.groupby("grouping", sort=False):
        blocks.append(f"## By {grouping}")
        for group, part in of_kind.groupby("group", sort=False):
            prompts = _span(part["n_prompts"])
            blocks.append(
                f"### {group} ({prompts} prompts)\n\n" + "\n".join(_grid(part, None, labels))
            )
    return "\n\n".join([*blocks, f"{footnote(categories)} {MARKS}", ""])


def published(table: str, model_family: str = "sd15") -> dict[tuple[str, str], float]:
    """Published means of one table of the paper.

    Args:
        table: its name in `published.toml`: `"table3"`, `"figure8"`, ...
        model_family: `"sd15"` or `"sd35m"`.

    Returns:
        (model, metric) -> mean; empty where the paper has no figures of this family.

    Raises:
        InputError: no such table in `published.toml`.
    """
    file = Path(__file__).with_name("published.toml")
    known = tomllib.loads(file.read_text(encoding="utf-8"))
    if table not in known:
        raise InputError(f"no published '{table}'; there are: {', '.join(known)}")
    models = known[table].get(model_family, {})
    return {(model, m): value for model, values in models.items() for m, value in values.items()}


def footnote(summary: pd.DataFrame, *, published: Published | None = None) -> str:
    """The sentences under the table that say how it was computed and what has no score."""
    prompts, images = _span(summary["n_prompts"]), _span(summary["n_images"])
    sentences = [
        f"Mean over {images} images of {prompts} prompts [95% interval, bootstrap over prompts] "
        "(gain over the base)."
    ]
    metrics = list(dict.fromkeys(summary["metric"]))
    spelt = [f"{metric_label(m)}: {spelt_out(m)}" for m in metrics if spelt_out(m)]
    if spelt:
        sentences.append("; ".join(spelt) + ".")
    for metric, count in summary.groupby("metric", sort=False)["n_unscored"].sum().items():
        if count:
            sentences.append(
                f"{metric_label(str(metric))} gave no score for {count:,} images, which are left "
                "out of its means."
            )
    if "human_preference" in metrics:
        sentences.append("Human preference is min-max normalised over these models.")
    if "fid" in metrics:
        sentences.append(
            "FID depends on the number of images: compare only models with the same number."
        )
    scored = set(zip(summary["model"], summary["metric"], strict=True))
    if published and scored & set(published):
        sentences.append(PAPER)
    return " ".join(sentences)


def head(metrics: Iterable[str]) -> str:
    """The first two lines of a Markdown table of these metrics."""
    headings = ["model", *map(heading, metrics)]
    return "\n".join(map(markdown_row, [headings, ["---"] * len(headings)]))


def paper_text(model: str, metric: str, published: Published) -> str:
    """A published value as it stands in a cell; empty where there is none."""
    value = published.get((model, metric))
    return "" if value is None else f"paper {score_text(metric, value)}"


def places(summary: pd.DataFrame) -> dict[tuple[str, str], int]:
    """(model, metric) -> 1 for the best mean and 2 for the second best; others are left out.

    Equal means share a place. A metric that only one model has is left out, and a neutral one.
    """
    found = {}
    for metric, part in summary.groupby("metric", sort=False):
        values = part["mean"] if lower_is_better(metric) else -part["mean"]
        ranks = values.rank(method="dense")
        for model, rank in zip(part["model"], ranks, strict=True):
            if len(part) > 1 and rank <= 2 and not neutral(str(metric)):
                found[model, str(metric)] = int(rank)
    return found


def _rows(summary: pd.DataFrame) -> list[tuple[str, list[Any]]]:
    """Models with their cells in the order of the metrics; a cell is a row with its place."""
    place = places(summary)
    cells = {
        (row.model, row.metric): row
        for row in summary.assign(
            place=[place.get(k, 0) for k in zip(summary["model"], summary["metric"], strict=True)]
        ).itertuples()
    }
    metrics = list(dict.fromkeys(summary["metric"]))
    models = dict.fromkeys(summary["model"])
    return [(model, [cells.get((model, metric)) for metric in metrics]) for model in models]


def _grid(
    summary: pd.DataFrame, published: Published | None, labels: Mapping[str, str]
) -> list[str]:
    lines = head(dict.fromkeys(summary["metric"])).splitlines()
    for model, cells in _rows(summary):
        texts = ["not run" if row is None else _cell(row, published or {}) for row in cells]
        lines.append(markdown_row([model_label(model, labels), *texts]))
    return lines


def _cell(row: Any, published: Published) -> str:
    mean = BEST.get(row.place, "{}").format(score_text(row.metric, row.mean))
    parts = [mean, interval_text(row.metric, row.low, row.high)]
    if not math.isnan(row.gain):
        parts.append(f"({gain_text(row.metric, row.gain)})")
    parts.append(paper_text(row.model, row.metric, published))
    return " ".join(part for part in parts if part)


def markdown_row(cells: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _latex_cell(row: Any, published: Published) -> str:
    text = BEST_LATEX.get(row.place, "{}").format(score_text(row.metric, row.mean))
    if not math.isnan(row.gain):
        text += f" ({gain_text(row.metric, row.gain)})"
    small = [
        interval_text(row.metric, row.low, row.high),
        paper_text(row.model, row.metric, published),
    ]
    words = " ".join(part for part in small if part)
    return text + (rf" {{\scriptsize {words}}}" if words else "")


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_text(text: str) -> str:
    return "".join(LATEX_SIGNS.get(sign, sign) for sign in text)


def _span(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
