"""Where a run is recorded for people to compare runs: MLflow and what else the settings name.

A record never stops or stalls the work: one that fails is given up in one line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from raypref.core.config import InputError, Section, setting
from raypref.core.messages import first_line, without_secrets
from raypref.core.tracking_mlflow import MlflowRecord
from raypref.core.tracking_tensorboard import TensorboardRecord
from raypref.core.tracking_wandb import WandbRecord, require_wandb

log = logging.getLogger(__name__)

NO_IDS: Mapping[str, str] = {}


class TrackingConfig(Section):
    """Where runs are recorded."""

    uri: str = setting(
        "",
        "MLflow tracking URI; empty is mlflow.db (SQLite) beside the runs; none turns it off",
        affects_result=False,
    )
    experiment: str = setting(
        "raypref", "MLflow experiment, and project of W&B", affects_result=False
    )
    also: tuple[Literal["tensorboard", "wandb"], ...] = setting(
        (),
        "further records: tensorboard (event files in the run's folder), wandb (W&B)",
        affects_result=False,
        later=True,
    )


def require_trackers(config: TrackingConfig, *, storage: str) -> None:
    """See before any work that the further records can be made.

    Raises:
        InputError: a package, a key or a local disk is missing; says what to do.
    """
    if "tensorboard" in config.also and "://" in storage:
        raise InputError(
            "tracking.also: tensorboard writes beside the run, which must be on a local disk; "
            f"storage={without_secrets(storage)} is not"
        )
    if "wandb" in config.also:
        require_wandb()


class RunRecord(Protocol):
    """One service's record of a run. No method waits for long; one that raises is the last."""

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
        folder: of the run; needed by further records.
        group: what the run is a part of, for further records; empty: of nothing.
        ids: the further records to continue, by name, as `ids` of an earlier tracker.
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
        folder: str = "",
        group: str = "",
        ids: Mapping[str, str] = NO_IDS,
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
        self.records: dict[str, RunRecord] = {"MLflow": mlflow}
        self.ids: dict[str, str] = {}
        known = {key: without_secrets(str(value)) for key, value in settings.items()}
        makers: dict[str, tuple[str, Callable[[], TensorboardRecord | WandbRecord]]] = {
            "tensorboard": (
                "TensorBoard",
                lambda: TensorboardRecord(folder, settings=known, name=ids.get("tensorboard")),
            ),
            "wandb": (
                "W&B",
                lambda: WandbRecord(
                    config.experiment,
                    folder=folder,
                    name=name,
                    group=group,
                    settings=known,
                    run_id=ids.get("wandb"),
                ),
            ),
        }
        for kind in config.also:
            label, make = makers[kind]
            try:
                made = make()
            except Exception as error:  # of the disk, the network, or the library's own kinds
                told = without_secrets(first_line(error))
                log.warning("tracking: %s: %s; continuing without it", label, told)
            else:
                self.records[label], self.ids[kind] = made, made.id

    @property
    def takes_images(self) -> bool:
        """Whether a record but MLflow's is kept, which has the page."""
        return len(self.records) > 1

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """See `RunRecord`."""
        self._tell(lambda record: record.metrics(values, step=step))

    def history(self, rows: Iterable[Mapping[str, float]], *, prefix: str) -> None:
        """See `RunRecord`."""
        known = list(rows)
        self._tell(lambda record: record.history(known, prefix=prefix))

    def numbers(self, values: Mapping[str, float]) -> None:
        """See `RunRecord`."""
        self._tell(lambda record: record.numbers(values))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """See `RunRecord`."""
        self._tell(lambda record: record.table(name, columns, rows))

    def describe(self, text: str) -> None:
        """See `RunRecord`."""
        self._tell(lambda record: record.describe(text))

    def images(self, name: str, pictures: Mapping[str, bytes]) -> None:
        """See `RunRecord`."""
        self._tell(lambda record: record.images(name, pictures))

    def artifact(self, path: str, folder: str = "") -> None:
        """See `RunRecord`."""
        self._tell(lambda record: record.artifact(path, folder))

    def finish(self, status: str) -> None:
        """See `RunRecord`."""
        self._tell(lambda record: record.finish(status))

    def _tell(self, call: Callable[[RunRecord], None]) -> None:
        """Tell every record; one that fails is told nothing more."""
        for name, record in [*self.records.items()]:
            try:
                call(record)
            except Exception as error:
                log.warning(
                    "tracking: %s failed (%s); continuing without it", name, first_line(error)
                )
                del self.records[name]
