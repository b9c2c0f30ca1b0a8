"""Where a run is recorded for people to compare runs: MLflow and what else the settings name.

A record never stops or stalls the work: one that fails is given up in one line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from raypref.core.config import Section, setting
from raypref.core.tracking_mlflow import MlflowRecord


class TrackingConfig(Section):
    """Where MLflow keeps the record."""

    uri: str = setting(
        "",
        "MLflow tracking URI; empty is mlflow.db (SQLite) beside the runs; none turns it off",
        affects_result=False,
    )
    experiment: str = setting("raypref", "MLflow experiment", affects_result=False)


class RunRecord(Protocol):
    """One service's record of a run. No method raises, and none waits for long."""

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Record metrics of one step; a step that was recorded before is left out."""

    def history(self, rows: Iterable[Mapping[str, float]], *, prefix: str) -> None:
        """Record the metrics of many steps at once, each row with its `step`."""

    def numbers(self, values: Mapping[str, float]) -> None:
        """Record numbers that a run has once."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Record a table; an earlier one of this name is replaced."""

    def describe(self, text: str) -> None:
        """Say in Markdown what came out."""

    def images(self, name: str, pictures: Mapping[str, bytes]) -> None:
        """Record pictures (PNG or JPEG) with their captions, as a group of this name."""

    def artifact(self, path: str, folder: str = "") -> None:
        """Store a file, local or on an object store, with the run; missing files are skipped."""

    def finish(self, status: str) -> None:
        """Close the run as FINISHED or FAILED."""


class Tracker:
    """All records of a run; whatever it is told goes to each of them.

    Args:
        config: where to.
        storage: the folder of all runs; holds MLflow's default store.
        name: name of the run.
        settings: flat settings.
        run_id: the MLflow run to continue, if this job was begun before.
        parent_run_id: the MLflow run that a new one is shown below.
    """

    def __init__(
        self,
        config: TrackingConfig,
        *,
        storage: str,
        name: str,
        settings: Mapping[str, Any],
        run_id: str | None,
        parent_run_id: str | None = None,
    ) -> None:
        mlflow = MlflowRecord(
            config.uri,
            config.experiment,
            storage=storage,
            name=name,
            settings=settings,
            run_id=run_id,
            parent_run_id=parent_run_id,
        )
        self.run_id = mlflow.run_id
        self.records: list[RunRecord] = [mlflow]

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """See `RunRecord`."""
        for record in self.records:
            record.metrics(values, step=step)

    def history(self, rows: Iterable[Mapping[str, float]], *, prefix: str) -> None:
        """See `RunRecord`."""
        known = list(rows)
        for record in self.records:
            record.history(known, prefix=prefix)

    def numbers(self, values: Mapping[str, float]) -> None:
        """See `RunRecord`."""
        for record in self.records:
            record.numbers(values)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """See `RunRecord`."""
        for record in self.records:
            record.table(name, columns, rows)

    def describe(self, text: str) -> None:
        """See `RunRecord`."""
        for record in self.records:
            record.describe(text)

    def images(self, name: str, pictures: Mapping[str, bytes]) -> None:
        """See `RunRecord`."""
        for record in self.records:
            record.images(name, pictures)

    def artifact(self, path: str, folder: str = "") -> None:
        """See `RunRecord`."""
        for record in self.records:
            record.artifact(path, folder)

    def finish(self, status: str) -> None:
        """See `RunRecord`."""
        for record in self.records:
            record.finish(status)
