"""Tracking against a real MLflow with SQLite; without one the job goes on."""

import getpass
import logging
import math
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest

from raypref.core import tracking_mlflow
from raypref.core.config import flatten, load
from raypref.core.tracking import Tracker, TrackingConfig
from raypref.run.config import RunConfig
from raypref.run.recorded import record_evaluation

ROOT = Path(__file__).parents[1]
SETTINGS = {"lr": 1}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs; its database is made once, which is what takes time."""
    folder = tmp_path_factory.mktemp("runs")
    assert tracker(folder, name="first").run_id
    return folder


def tracker(
    storage: Path, *, name: str, run_id: str | None = None, settings: Mapping[str, Any] = SETTINGS
) -> Tracker:
    """A tracker with the default store beside the runs."""
    config = TrackingConfig()
    return Tracker(config, storage=str(storage), name=name, settings=settings, run_id=run_id)


def client(store: Path) -> mlflow.MlflowClient:
    """MLflow itself, to see what arrived."""
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{store / 'mlflow.db'}")


def test_all_settings_of_a_run_arrive(store):
    settings = flatten(load(RunConfig, "tiny")) | {f"more.{i}": i for i in range(150)}
    run = client(store).get_run(tracker(store, name="all", settings=settings).run_id)
    assert run.data.params == {key: str(value) for key, value in settings.items()}
    assert run.info.run_name == "all"
    assert client(store).get_experiment(run.info.experiment_id).name == "raypref"


def test_metrics_keep_their_steps_and_are_those_of_one_run(store):
    first, second = tracker(store, name="m1"), tracker(store, name="m2")
    for step in (1, 2, 5):
        first.metrics({"loss": 1 / step, "nan": math.nan}, step=step)
    second.metrics({"loss": 7.0}, step=1)
    history = client(store).get_metric_history(first.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5), (5, 0.2)]
    assert len(client(store).get_metric_history(first.run_id, "nan")) == 3
    assert len(client(store).get_metric_history(second.run_id, "loss")) == 1


def test_a_step_told_twice_by_a_restarted_worker_stands_once(store):
    run = tracker(store, name="twice")
    for step in (1, 2, 1, 2, 3):
        run.metrics({"loss": 1 / step}, step=step)
    history = client(store).get_metric_history(run.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_a_history_arrives_whole_below_its_parent(store):
    parent = tracker(store, name="table")
    config = TrackingConfig()
    child = Tracker(
        config,
        storage=str(store),
        name="row",
        settings=SETTINGS,
        run_id=None,
        parent_run_id=parent.run_id,
    )
    rows = [{"step": step, "loss": 1 / step, "lr": 0.1} for step in range(1, 701)]
    child.history(rows, prefix="stage1")  # more than one request holds
    history = client(store).get_metric_history(child.run_id, "stage1/loss")
    assert {(m.step, m.value) for m in history} == {(row["step"], row["loss"]) for row in rows}
    tags = client(store).get_run(child.run_id).data.tags
    assert tags["mlflow.parentRunId"] == parent.run_id


def test_names_are_put_in_the_characters_that_mlflow_takes(store):
    run = tracker(store, name="names")
    run.metrics({"beta=1, a+b/loss": 1.0}, step=1)
    run.history([{"step": 1, "loss": 2.0}], prefix="x=1")
    told = client(store).get_run(run.run_id).data.metrics
    assert told == {"beta_1_ a_b/loss": 1.0, "x_1/loss": 2.0}


def test_a_refused_record_is_left_out_and_the_rest_goes_on(store, caplog):
    run = tracker(store, name="refused")
    run.metrics({"../loss": 1.0}, step=1)
    run.metrics({"loss": 2.0}, step=1)
    assert client(store).get_run(run.run_id).data.metrics == {"loss": 2.0}
    assert "refused a record" in caplog.text


def test_many_write_at_once_and_nothing_is_lost(store, caplog):
    def write(name: str) -> str | None:
        run = tracker(store, name=name)
        for step in range(25):
            run.metrics({"loss": float(step)}, step=step)
        run.finish("FINISHED")
        return run.run_id

    with ThreadPoolExecutor(6) as pool:
        runs = list(pool.map(write, map(str, range(6))))
    for run in runs:
        assert len(client(store).get_metric_history(run, "loss")) == 25
    assert "stopped answering" not in caplog.text


def unreadable(path):
    raise OSError("access denied")


def test_files_arrive_and_others_are_passed_by(store, tmp_path, caplog, monkeypatch):
    (tmp_path / "table.md").write_text("| a |")
    (tmp_path / "page.html").write_text("<p>")
    run = tracker(store, name="files")
    run.artifact(str(tmp_path / "table.md"), "tables")
    run.artifact(f"file://{tmp_path}/page.html")
    run.artifact(str(tmp_path / "absent.txt"))
    with monkeypatch.context() as patch:
        patch.setattr(tracking_mlflow, "read_bytes", unreadable)
        run.artifact("s3://bucket/page.html")
    run.metrics({"loss": 1.0}, step=1)
    listed = client(store)
    assert [a.path for a in listed.list_artifacts(run.run_id, "tables")] == ["tables/table.md"]
    assert {a.path for a in listed.list_artifacts(run.run_id)} == {"tables", "page.html"}
    assert next((store / "mlartifacts").rglob("table.md")).read_text() == "| a |"
    assert "s3://bucket/page.html could not be read (access denied)" in caplog.text
    assert len(listed.get_metric_history(run.run_id, "loss")) == 1


def test_a_run_says_who_made_it_from_which_code(store):
    tags = client(store).get_run(tracker(store, name="origin").run_id).data.tags
    here = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    assert tags.get("mlflow.source.git.commit", "") == here.stdout.strip()
    assert tags["mlflow.user"] == getpass.getuser()
    assert (tags["mlflow.source.name"], tags["mlflow.source.type"]) == ("raypref", "LOCAL")


@pytest.mark.parametrize("known", [None, {}, {"mlflow.experimentKind": "finetuning"}])
def test_the_experiment_is_of_the_kind_that_trains_models(store, known):
    """A new one, one of an earlier version, one that a person gave another kind."""
    name = f"kind {known}"
    if known is not None:
        client(store).create_experiment(name, tags=known)
    config = TrackingConfig(experiment=name)
    Tracker(config, storage=str(store), name="x", settings={}, run_id=None)
    kind = client(store).get_experiment_by_name(name).tags["mlflow.experimentKind"]
    assert kind == ((known or {}).get("mlflow.experimentKind") or "custom_model_development")


def evaluated() -> pd.DataFrame:
    """Two models by two metrics, of which less of the second is better."""
    metrics = {"pickscore": (20.0, 1.5), "cmmd": (1.25, -0.5)}
    nothing = dict.fromkeys(("gain", "gain_low", "gain_high"), math.nan)
    gains = {
        m: {"gain": g, "gain_low": g - 0.2, "gain_high": g + 0.2} for m, (_, g) in metrics.items()
    }
    return pd.DataFrame(
        [
            {"model": model, "metric": metric, "mean": mean, "low": mean - 1, "high": mean + 1}
            | (nothing if model == "base" else gains[metric])
            for model in ("base", "stage1", "stage2")
            for metric, (mean, _) in metrics.items()
        ]
    )


def test_an_evaluation_is_a_table_few_metrics_and_a_sentence(store, monkeypatch):
    run = tracker(store, name="evaluated")
    labels = {"stage2": "stage 1 + stage 2"}
    for _ in range(2):  # the job is run again: nothing stands twice
        record_evaluation(
            run, evaluated(), final="stage2", labels=labels, page="/runs/x/index.html"
        )
    told = client(store).get_run(run.run_id).data
    assert told.metrics == {
        "eval/stage2/pickscore": 20.0,
        "eval/stage2/cmmd": 1.25,
        "gain/stage2/pickscore": 1.5,
        "gain/stage2/cmmd": -0.5,
    }
    assert told.tags["mlflow.note.content"] == (
        "stage 1 + stage 2 against base: PickScore +1.50 [1.30, 1.70] (better), "
        "CMMD -0.50 [-0.70, -0.30] (better). Page: `/runs/x/index.html`"
    )
    # As MLflow's own reader finds it, which goes by the environment.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'mlflow.db'}")
    experiment = client(store).get_run(run.run_id).info.experiment_id
    table = client(store).load_table(experiment, "evaluation.json", [run.run_id])
    assert len(table) == 6
    assert list(table["gain"].dropna()) == [1.5, -0.5] * 2
    assert set(table["model"]) == {"base", "stage1", "stage 1 + stage 2"}


@pytest.mark.parametrize("status", ["FINISHED", "FAILED"])
def test_a_run_is_closed_and_goes_on_by_its_id(store, status):
    first = tracker(store, name="again")
    first.metrics({"loss": 1.0}, step=1)
    first.finish(status)
    assert client(store).get_run(first.run_id).info.status == status
    again = tracker(store, name="again", run_id=first.run_id)
    assert again.run_id == first.run_id
    assert client(store).get_run(first.run_id).info.status == "RUNNING"
    again.metrics({"loss": 0.5}, step=2)
    again.finish("FINISHED")
    history = client(store).get_metric_history(first.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5)]
    assert client(store).get_run(first.run_id).info.status == "FINISHED"


def test_a_run_that_is_gone_from_the_store_is_begun_anew(store):
    gone = "0" * 32
    anew = tracker(store, name="anew", run_id=gone)
    assert anew.run_id is not None
    assert anew.run_id != gone
    assert client(store).get_run(anew.run_id).data.params == {"lr": "1"}


@pytest.mark.parametrize(
    "uri",
    ["nonsense://host", "sqlite:////proc/none/mlflow.db", "mssql+pymssql://host/without-driver"],
)
def test_a_store_out_of_reach_is_a_warning(uri, tmp_path, caplog):
    config = TrackingConfig(uri=uri)
    with caplog.at_level(logging.WARNING):
        lost = Tracker(config, storage=str(tmp_path), name="x", settings={"a": 1}, run_id=None)
    assert lost.run_id is None
    lost.metrics({"loss": 1.0}, step=1)
    lost.artifact(__file__)
    lost.finish("FINISHED")
    (message,) = [record.message for record in caplog.records if "tracking" in record.message]
    assert uri in message
    assert "continuing without it" in message


def test_a_password_is_told_to_nobody(store, tmp_path, caplog):
    run = tracker(store, name="x", settings={"tracking.uri": "https://bob:secret@host/x", "b": 2})
    assert client(store).get_run(run.run_id).data.params["tracking.uri"] == "https://***@host/x"
    config = TrackingConfig(uri="nonsense://bob:secret@host")
    with caplog.at_level(logging.WARNING):
        Tracker(config, storage=str(tmp_path), name="x", settings={}, run_id=None)
    assert "nonsense://***@host" in caplog.text and "secret" not in caplog.text


def test_a_store_lost_on_the_way_is_one_warning(tmp_path, caplog):
    run = tracker(tmp_path, name="lost")
    (tmp_path / "mlflow.db").write_bytes(b"no database any more" * 1000)
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            run.metrics({"loss": 1.0}, step=step)
        run.finish("FINISHED")
    assert len([r for r in caplog.records if "stopped answering" in r.message]) == 1


def test_none_is_off_and_writes_nothing(tmp_path):
    config = TrackingConfig(uri="none")
    off = Tracker(config, storage=str(tmp_path / "r"), name="x", settings={}, run_id=None)
    off.metrics({"loss": 1.0}, step=1)
    off.finish("FINISHED")
    assert off.run_id is None
    assert not (tmp_path / "r").exists()


def test_runs_on_a_bucket_without_a_uri_are_not_tracked():
    config = TrackingConfig()
    off = Tracker(config, storage="s3://bucket/runs", name="x", settings={}, run_id=None)
    assert off.run_id is None


TRACK = """
import sys
from raypref.core.tracking import Tracker, TrackingConfig
made = Tracker(TrackingConfig(), storage=sys.argv[1], name="x", settings={}, run_id=None)
print(made.run_id)
"""


def test_first_runs_at_once_in_one_new_storage_are_all_recorded(tmp_path):
    command = [sys.executable, "-c", TRACK, str(tmp_path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    runs = [process.communicate()[0].strip() for process in started]
    assert all(len(run) == 32 for run in runs), runs
    experiment = client(tmp_path).get_experiment_by_name("raypref").experiment_id
    found = client(tmp_path).search_runs([experiment])
    assert {run.info.run_id for run in found} == set(runs)


@pytest.mark.parametrize("damage", ["cut", "half made", "no database", "empty"])
def test_a_damaged_database_is_moved_aside_and_the_run_recorded(store, tmp_path, caplog, damage):
    database = tmp_path / "mlflow.db"
    if damage == "half made":  # as MLflow leaves it when it is killed in its first second
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("CREATE TABLE logged_models (model_id TEXT)")
            connection.commit()
        (tmp_path / "mlflow.db-journal").write_bytes(b"of a transaction that was never finished")
    else:
        whole = (store / "mlflow.db").read_bytes()
        sizes = {"cut": whole[: len(whole) // 2], "no database": b"text" * 999, "empty": b""}
        database.write_bytes(sizes[damage])
    run = tracker(tmp_path, name="after")
    assert client(tmp_path).get_run(run.run_id).info.run_name == "after"
    aside = list(tmp_path.glob("mlflow.db.broken-*"))
    assert len(aside) == {"empty": 0, "half made": 2}.get(damage, 1), caplog.text
    assert len([line for line in caplog.messages if "damaged" in line]) == bool(aside)
    again = tracker(tmp_path, name="later")
    assert again.run_id
    assert list(tmp_path.glob("mlflow.db.broken-*")) == aside


def test_a_database_that_is_being_written_or_is_newer_is_left_alone(store, tmp_path, caplog):
    database = tmp_path / "mlflow.db"
    database.write_bytes((store / "mlflow.db").read_bytes())
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'of-the-future'")
        connection.commit()
    assert tracker(tmp_path, name="newer").run_id is None
    (said,) = [line for line in caplog.messages if "unreachable" in line]
    assert "\n" not in said
    assert not list(tmp_path.glob("mlflow.db.broken-*"))


def test_a_database_of_another_shape_is_one_line(store, tmp_path, caplog, capfd):
    """MLflow logs the whole traceback of SQLAlchemy by itself."""
    shutil.copy(store / "mlflow.db", tmp_path / "mlflow.db")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        connection.execute("ALTER TABLE runs RENAME COLUMN deleted_time TO other")
        connection.commit()
    assert tracker(tmp_path, name="x").run_id is None
    (said,) = [line for line in caplog.messages if "continuing without it" in line]
    assert "\n" not in said
    assert "Traceback" not in capfd.readouterr().err + caplog.text


def test_a_server_that_never_answers_costs_little(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(tracking_mlflow, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        config = TrackingConfig(uri=uri)
        run = Tracker(config, storage=str(tmp_path), name="x", settings={}, run_id=None)
    assert run.run_id is None
    (said,) = caplog.messages
    assert uri in said and "continuing without" in said
    run.metrics({"loss": 1.0}, step=1)
    run.finish("FINISHED")


def test_a_resumed_run_does_not_repeat_the_steps_of_a_killed_one(store):
    killed = tracker(store, name="killed")
    for step in (1, 2, 3):
        killed.metrics({"a b/loss": 1 / step}, step=step)
    resumed = tracker(store, name="killed", run_id=killed.run_id)  # from the checkpoint of step 2
    for step in (3, 4):
        resumed.metrics({"a b/loss": 1 / step, "lr": 0.1}, step=step)
    history = client(store).get_metric_history(killed.run_id, "a b/loss")
    assert [(m.step, m.value) for m in history] == [(s, 1 / s) for s in (1, 2, 3, 4)]
    assert [m.step for m in client(store).get_metric_history(killed.run_id, "lr")] == [3, 4]


def test_a_call_that_is_interrupted_is_not_followed_by_another(store, caplog):
    """It may still hold the lock of the database, which the closing of the run would wait for."""
    interrupted, calls = tracker(store, name="interrupted"), []

    def never(client, run):
        calls.append(run)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted.records["MLflow"]._try(never)
    interrupted.finish("FAILED")
    assert len(calls) == 1
    assert not caplog.messages
    assert client(store).get_run(calls[0]).info.status == "RUNNING"
