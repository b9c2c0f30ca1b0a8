"""Where a run's results are, as a job says last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raypref.core.ledger import absolute, filesystem, join
from raypref.core.messages import without_secrets
from raypref.models.families.registry import family
from raypref.models.lora_config import FILE_NAME
from raypref.models.lora_formats import shared_name

if TYPE_CHECKING:
    from raypref.run.pipeline import Run


def result_paths(run: Run, *, result: str) -> dict[str, str]:
    """Where a job's results are: name to absolute path or URI, its own result last.

    Args:
        run: the run, done.
        result: what the job makes: `Pairs`, `LoRA` or `Report`.
    """
    config, final = run.config, run.alignment.final
    found = {"MLflow": _record(run)} if run.tracker and run.tracker.run_id else {}
    if run.curation.pairs.state() == "complete":
        found["Pairs"] = join(run.folder, "pairs")
        if config.export.formats:
            found["Export"] = join(run.folder, "export")
    if final and result != "Pairs":
        fs, file = filesystem(shared := join(run.folder, final, shared_name(config.run, final)))
        if fs.get_file_info(file).is_file:
            found["LoRA for ComfyUI and others"] = shared
        if config.lora.rank:
            found["LoRA"] = join(run.folder, final, FILE_NAME)
        else:
            component = family(config.base.family).component
            found["Network"] = join(run.folder, final, component)
    fs, file = filesystem(page := join(run.folder, "report", "index.html"))
    if result != "LoRA" and fs.get_file_info(file).is_file:
        found["Report"] = page
    return {name: without_secrets(path) for name, path in found.items()}


def _record(run: Run) -> str:
    """MLflow's store."""
    uri = run.config.tracking.uri
    return uri or join(absolute(run.config.storage), "mlflow.db")
