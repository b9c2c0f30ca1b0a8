"""What a run says last: its table, what the final model gained by every metric, its places."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from raypref.core.ledger import absolute, filesystem, join
from raypref.core.messages import without_secrets
from raypref.evaluate.labels import (
    gain_text,
    interval_text,
    lower_is_better,
    metric_label,
    model_label,
)
from raypref.evaluate.summary import closing
from raypref.models.lora_config import FILE_NAME
from raypref.models.lora_formats import KOHYA_FILE

if TYPE_CHECKING:
    from raypref.run.pipeline import Run


def results_text(run: Run) -> str:
    """The table, and whether the final model is better than the base by each of its metrics."""
    summary, final = run.evaluation.summary, run.alignment.final
    # Without a final model of its own: that would tell of the first metrics only.
    table = closing(summary, final="", labels=run.labels)
    rows = [
        _gain(row)
        for row in summary[summary["model"] == final].itertuples()
        if not math.isnan(row.gain)
    ]
    if not rows:
        return table
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    against = f"{model_label(final, run.labels)} against {model_label('base', run.labels)}:"
    return "\n".join([table, "", against, *(f"  {line}" for line in lines)])


def _gain(row: Any) -> list[str]:
    """Of a metric: its name, the gain with its interval, and what that says."""
    gain = gain_text(row.metric, row.gain)
    interval = interval_text(row.metric, row.gain_low, row.gain_high)
    if math.isnan(row.gain_low):
        verdict = "no interval"
    elif row.gain_low <= 0 <= row.gain_high:
        verdict = "no clear difference"
    else:
        verdict = "worse" if (row.gain > 0) == lower_is_better(row.metric) else "better"
    return [metric_label(row.metric), f"{gain} {interval}".rstrip(), verdict]


def result_paths(run: Run, *, result: str) -> dict[str, str]:
    """Where a job's results are: name to absolute path or URI, its own result last.

    Args:
        run: the run, done.
        result: what the job makes: `Pairs`, `LoRA` or `Report`.
    """
    config, final = run.config, run.alignment.final
    found = {"MLflow": _record(run)} if run.tracker and run.tracker.run_id else {}
    found["Pairs"] = join(run.folder, "pairs")
    if config.export.formats:
        found["Export"] = join(run.folder, "export")
    if result != "Pairs":
        fs, file = filesystem(join(run.folder, final, KOHYA_FILE))
        if fs.get_file_info(file).is_file:
            found["LoRA for ComfyUI and A1111"] = join(run.folder, final, KOHYA_FILE)
        found["LoRA"] = join(run.folder, final, FILE_NAME)
    if result == "Report":
        found["Report"] = join(run.folder, "report", "index.html")
    return {name: without_secrets(path) for name, path in found.items()}


def _record(run: Run) -> str:
    """MLflow's store."""
    uri = run.config.tracking.uri
    return uri or join(absolute(run.config.storage), "mlflow.db")
