"""MLflow: one run per job, with its settings, metrics and results. Only this file knows MLflow.

The record never stops or stalls the work: without a store that answers, the job continues and says
so in one line.

MLflow draws a chart for every metric, also for one that a run has once. So an evaluation is a table
of MLflow, and only few of its numbers are metrics, which runs can be sorted and compared by.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from raypref.core.imports import quick_imports
from raypref.core.ledger import absolute, join, read_bytes
from raypref.core.messages import first_line, without_secrets
from raypref.core.versions import commit_hash

if TYPE_CHECKING:
    import mlflow

log = logging.getLogger(__name__)

BATCH = 100  # parameters in one request, MLflow's limit
LONGEST_VALUE = 6000  # characters of a parameter, MLflow's limit
KIND = {"mlflow.experimentKind": "custom_model_development"}  # of an experiment, for the UI
METRIC_BATCH = 1000  # metrics in one request, MLflow's limit
REFUSED = "INVALID_PARAMETER_VALUE"  # one record is wrong; MLflow is there
ATTEMPTS = 6  # at a database that another run is writing to
ANSWER_SECONDS = 5.0  # for a server's first answer
LOCK_SECONDS = 30.0  # while another run makes the database
# What MLflow grants a server for each later request, unless the user has set it: seven tries of
# two minutes by itself.
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
PARTS = ("", "-journal", "-wal", "-shm")  # of a SQLite database; the last three after a kill
SMALL = 4 * 2**20  # bytes; a database that was left half made has fewer
# How SQLite and MLflow's migrations tell of a database that was left half made, or damaged.
BROKEN = ("already exists", "no such table", "malformed", "not a database", "online migration")


class MlflowRecord:
    """One MLflow run, or nothing where MLflow is off or unreachable.

    Args:
        uri: the tracking URI; empty: a database in the storage; `none`: off.
        experiment: name of the experiment.
        storage: the folder of all runs; holds the default store.
        name: name of the run.
        settings: flat settings, logged as parameters.
        run_id: the MLflow run to continue, if this job was begun before.
        parent_run_id: the MLflow run that a new one is shown below.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        *,
        storage: str,
        name: str,
        settings: Mapping[str, Any],
        run_id: str | None,
        parent_run_id: str | None = None,
    ) -> None:
        self.run_id: str | None = None
        self.client: mlflow.MlflowClient | None = None
        self.last: dict[str, int] = {}  # the latest step of each metric
        self.resumed = False  # then the store may have steps that this process did not write
        if uri == "none":
            return
        if not uri and "://" in storage:
            log.info("tracking: off, the runs are not on a local disk; set tracking.uri")
            return
        for name_, value in PATIENCE.items():
            os.environ.setdefault(name_, value)
        given = uri
        try:
            if uri.startswith(("http://", "https://")):
                _require_answer(uri)
            with quick_imports():
                import mlflow
                from mlflow.entities import Param
                from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

            # MLflow announces its database migrations on every start.
            logging.getLogger("alembic").setLevel(logging.WARNING)
            # And writes a traceback for an error of its database, which is told below in a line.
            logging.getLogger("mlflow").setLevel(logging.CRITICAL)
            uri = uri or _default_uri(storage)
            client = mlflow.MlflowClient(tracking_uri=uri)
            artifacts = None if given else join(absolute(storage), "mlartifacts")
            experiment_id = _experiment(client, experiment, artifacts)
            if run_id is not None and _goes_on(client, run_id):
                self.run_id = run_id
                self.resumed = True
            else:
                tags = _origin()
                if parent_run_id:
                    tags[MLFLOW_PARENT_RUN_ID] = parent_run_id
                run = client.create_run(experiment_id, run_name=name, tags=tags)
                self.run_id = run.info.run_id
                params = [
                    Param(key, without_secrets(str(value))[:LONGEST_VALUE])
                    for key, value in settings.items()
                ]
                for start in range(0, len(params), BATCH):
                    client.log_batch(self.run_id, params=params[start : start + BATCH])
            self.client = client
        # MLflow lets errors of SQLAlchemy, its migrations, drivers and HTTP through.
        except Exception as error:
            told = without_secrets(uri or storage), without_secrets(first_line(error))
            log.warning("tracking: MLflow at %s is unreachable (%s); continuing without it", *told)

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Record metrics of one step."""
        if self.client is not None:
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            # A restarted worker, or job, repeats the steps since its checkpoint.
            fresh = {key: value for key, value in values.items() if step > self._last_step(key)}
            self.last.update(dict.fromkeys(fresh, step))
            batch = [Metric(_allowed(key), value, now, step) for key, value in fresh.items()]
            self._try(lambda client, run: client.log_batch(run, metrics=batch))

    def _last_step(self, key: str) -> int:
        """The latest step of a metric in the store; -1 when there is none."""
        if key not in self.last and self.resumed:
            self._try(lambda client, run: self._ask(client, run, key))
        return self.last.get(key, -1)

    def _ask(self, client: mlflow.MlflowClient, run: str, key: str) -> None:
        steps = [metric.step for metric in client.get_metric_history(run, _allowed(key))]
        self.last[key] = max(steps, default=-1)

    def history(self, rows: Iterable[Mapping[str, float]], *, prefix: str) -> None:
        """Record the metrics of many steps at once, each row with its `step`.

        Steps that an earlier job recorded are left out.
        """
        if self.client is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [
            Metric(_allowed(f"{prefix}/{key}"), value, now, int(row["step"]))
            for row in rows
            for key, value in row.items()
            if key != "step" and row["step"] > self._last_step(f"{prefix}/{key}")
        ]
        for start in range(0, len(batch), METRIC_BATCH):
            part = batch[start : start + METRIC_BATCH]
            self._try(lambda client, run, part=part: client.log_batch(run, metrics=part))

    def numbers(self, values: Mapping[str, float]) -> None:
        """Record numbers that a run has once; those of an earlier attempt are replaced."""
        if self.client is not None:
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            batch = [Metric(_allowed(key), value, now, 0) for key, value in values.items()]
            self._try(lambda client, run: client.log_batch(run, metrics=batch))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Store a table that MLflow shows as one; an earlier one of this name is replaced.

        `MlflowClient.log_table` would add the rows to those of the earlier one.
        """
        data = [[None if value != value else value for value in row] for row in rows]  # no NaN
        text = json.dumps({"columns": [*columns], "data": data})

        def store(client: mlflow.MlflowClient, run: str) -> None:
            from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

            client.log_text(run, text, path)
            known = json.loads(client.get_run(run).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
            if entry not in known:
                client.set_tag(run, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*known, entry]))

        path = f"{name}.json"
        entry = {"path": path, "type": "table"}
        self._try(store)

    def describe(self, text: str) -> None:
        """Say in Markdown what came out; MLflow shows it first."""
        self._try(lambda client, run: client.set_tag(run, "mlflow.note.content", text))

    def images(self, name: str, pictures: Mapping[str, bytes]) -> None:
        """Nothing: the stored page has all pictures."""

    def artifact(self, path: str, folder: str = "") -> None:
        """Store a file, local or on an object store, with the run; missing files are skipped."""
        if self.client is None:
            return
        with TemporaryDirectory() as scratch:
            copy = Path(scratch) / path.rsplit("/", 1)[-1]
            try:
                if (data := read_bytes(path)) is None:
                    return
                copy.write_bytes(data)
            except OSError as error:
                log.warning("tracking: %s could not be read (%s) and is not stored", path, error)
                return
            self._try(lambda client, run: client.log_artifact(run, str(copy), folder or None))

    def finish(self, status: str) -> None:
        """Close the run as FINISHED or FAILED."""
        self._try(lambda client, run: client.set_terminated(run, status))

    def _try(self, call: Any) -> None:
        if self.client is None:
            return
        from mlflow.exceptions import MlflowException

        for attempt in range(ATTEMPTS):
            try:
                call(self.client, self.run_id)
                return
            except Exception as error:
                # SQLite refuses a reader that turns writer while another run writes.
                if "database is locked" in str(error) and attempt + 1 < ATTEMPTS:
                    time.sleep(0.2 * 2**attempt)
                    continue
                if isinstance(error, MlflowException) and error.error_code == REFUSED:
                    log.warning("tracking: MLflow refused a record (%s); it is skipped", error)
                    return
                log.warning(
                    "tracking: MLflow stopped answering (%s); continuing without it",
                    first_line(error),
                )
                self.client = None
                return
            except BaseException:
                # Interrupted in the middle of it: the call may still hold the database's lock, so
                # that closing the run would wait and fail. It is opened again by the next command.
                self.client = None
                raise


def _experiment(client: mlflow.MlflowClient, name: str, artifacts: str | None) -> str:
    """The experiment's id; made where there is none.

    Without a kind the UI takes runs that have tables for evaluations of language models, and opens
    that view.
    """
    known = client.get_experiment_by_name(name)
    if known is None:
        return str(client.create_experiment(name, artifact_location=artifacts, tags=KIND))
    for key, value in KIND.items():
        if not known.tags.get(key):
            client.set_experiment_tag(known.experiment_id, key, value)
    return str(known.experiment_id)


def _origin() -> dict[str, str]:
    """Who made a run, with what: MLflow's own tags, which it sets for its fluent interface only."""
    from mlflow.utils import mlflow_tags

    tags = {
        mlflow_tags.MLFLOW_SOURCE_NAME: "raypref",
        mlflow_tags.MLFLOW_SOURCE_TYPE: "LOCAL",
        mlflow_tags.MLFLOW_GIT_COMMIT: commit_hash(),
    }
    with suppress(KeyError, OSError, ImportError):  # a container's user may have no name
        tags[mlflow_tags.MLFLOW_USER] = getpass.getuser()
    return {key: value for key, value in tags.items() if value}


def _allowed(name: str) -> str:
    """A metric's name in the characters that MLflow takes."""
    return re.sub(r"[^\w./: -]", "_", name)


def _goes_on(client: mlflow.MlflowClient, run_id: str) -> bool:
    """Open an earlier run again; False where the store does not have it any more."""
    from mlflow.exceptions import MlflowException

    try:
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        log.info("tracking: the earlier run no longer exists (%s); starting a new one", error)
        return False
    return True


def _require_answer(uri: str) -> None:
    """Raise OSError when a server says nothing in time; any answer will do.

    Asked as MLflow asks, so that passwords in the address and proxies count.
    """
    import requests

    # A certificate that is not trusted is an answer too: MLflow may be told to take it.
    with suppress(requests.exceptions.SSLError):
        requests.get(uri, timeout=ANSWER_SECONDS, stream=True).close()


def _default_uri(storage: str) -> str:
    """A sound SQLite database beside the runs, made where there is none.

    It appears whole: a run that is killed while it makes one leaves nothing, and of several first
    runs one makes it. A damaged one is moved aside.
    """
    folder = Path(absolute(storage))
    folder.mkdir(parents=True, exist_ok=True)
    database = folder / "mlflow.db"
    with FileLock(folder / "mlflow.db.lock", timeout=LOCK_SECONDS):
        if database.exists() and (problem := _damage(database)):
            number = sum(1 for _ in folder.glob("mlflow.db.broken-*")) + 1
            aside = f"mlflow.db.broken-{number}"
            for end in PARTS:
                with suppress(FileNotFoundError):
                    Path(f"{database}{end}").rename(folder / f"{aside}{end}")
            log.warning("tracking: %s is damaged (%s); moved to %s", database, problem, aside)
        if not database.exists():
            new = folder / f".mlflow.{uuid.uuid4().hex}.db"
            _make_tables(new)
            new.rename(database)
    return f"sqlite:///{database}"


def _make_tables(database: Path) -> None:
    """Let MLflow make or complete its tables, and close the file."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    artifacts = str(database.parent / "mlartifacts")
    SqlAlchemyStore(f"sqlite:///{database}", artifacts).engine.dispose()


def _damage(database: Path) -> str:
    """What is wrong with a database; empty when it can be used, or is only busy or newer."""
    with database.open("rb") as file:
        head, length = file.read(100), database.stat().st_size
    if not length:
        return ""
    if not head.startswith(b"SQLite format 3\0"):
        return "no SQLite database"
    page = int.from_bytes(head[16:18], "big")
    pages = int.from_bytes(head[28:32], "big")
    if length < pages * (65536 if page == 1 else page):
        return "cut short"
    if length > SMALL:
        return ""  # it was complete once
    # A copy: MLflow keeps what it opens open, and the file may have to be moved.
    with TemporaryDirectory() as scratch:
        copy = Path(scratch, "mlflow.db")
        for end in PARTS:
            with suppress(FileNotFoundError):
                shutil.copyfile(f"{database}{end}", f"{copy}{end}")
        try:
            _make_tables(copy)
        except Exception as error:
            told = str(error).lower()
            return first_line(error) if any(word in told for word in BROKEN) else ""
    return ""
