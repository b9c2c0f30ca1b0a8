"""The whole job on the embedded world: what it leaves and what it skips."""

import json
import re
from pathlib import Path

import mlflow
import pyarrow.parquet as pq
import pytest

from jobs import RECORDED, STEPS
from raypref.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FILES = (
    "config.toml",
    "run.json",
    "pairs/_README.md",
    "stage1/pytorch_lora_weights.safetensors",
    "stage1/metrics.parquet",
    "stage1/samples/step-00000000.png",
    "stage1/samples/step-00000012.png",
    "stage2/pytorch_lora_weights.safetensors",
    "stage2/{run}-stage2.safetensors",
    "stage2/metrics.parquet",
    "evaluation/scores.parquet",
    "evaluation/table.md",
    "evaluation/table.csv",
    "evaluation/table.tex",
    "evaluation/categories.csv",
    "evaluation/wins.csv",
    "report/side_by_side.html",
    "report/index.html",
)
LEDGERS = (
    *(
        "curate/index",
        "curate/measured",
        "curate/scored",
        "curate/twins",
        "photos",
        "rejects",
        "pairs",
        "cache",
    ),
    *("stage1", "stage2", "evaluation/images/base", "evaluation/images/stage2"),
    *("evaluation/scores/stage2/pickscore", "evaluation/scores/stage1/pixels"),
    "evaluation/reference/pickscore",
)


def column(folder: Path, name: str) -> list[object]:
    return [
        value
        for part in sorted(folder.glob("part-*.parquet"))
        for value in pq.read_table(part, columns=[name])[name].to_pylist()
    ]


def snapshot(run: Path) -> dict[str, int]:
    """When each lasting file was written."""
    return {
        str(path.relative_to(run)): path.stat().st_mtime_ns
        for path in sorted(run.rglob("*"))
        if path.is_file()
        and (path.suffix in (".parquet", ".safetensors") or "manifest" in path.name)
        # The wide copy of the scores is written again with the page.
        if path.name != "scores.parquet"
    }


def test_everything_promised_is_there(full) -> None:
    run, output = full
    assert output.splitlines()[-1] == f"Report: {run}/report/index.html"
    for name in FILES:
        assert (run / name.format(run=run.name)).stat().st_size > 0, name
    for name in LEDGERS:
        manifest = json.loads((run / name / ".manifest.json").read_text())
        parts = {path.name for path in (run / name).glob("part-*")}
        assert set(manifest["parts"]) == parts
        assert len(column(run / name, "id")) == manifest["rows"]
    # One group of workers for both trainings; one pool for all passes, which stays beside it.
    started = re.findall(r" (\w+): starting \d worker", output)
    assert started == ["scored", "stage1"]
    left = [path for path in run.rglob(".*") if path.is_file() and path.suffix != ".json"]
    assert not left, "unfinished files were left"


def test_counts_add_up(full) -> None:
    run, _ = full
    photos = column(run / "photos", "status")
    assert len(photos) == 32
    assert photos.count("pair") == len(column(run / "pairs", "id")) == 8
    assert photos.count("rejected") == len(column(run / "rejects", "id"))
    assert len(column(run / "cache", "id")) == 8 + 1  # and the empty caption
    scores = pq.read_table(run / "evaluation" / "scores.parquet").to_pylist()
    models = {row["model"] for row in scores}
    assert models == {"base", "stage1", "stage2"}
    seeds = {row["seed"] for row in scores}
    metrics = {row["metric"] for row in scores}
    assert len(scores) == len(models) * 2 * len(seeds) * len(metrics)


def test_the_record_tells_what_each_step_cost(full) -> None:
    run, _ = full
    steps = json.loads((run / "run.json").read_text())["steps"]
    assert list(steps) == ["pairs", "cache", "stage1", "stage2", "evaluation", "card", "report"]
    for name in ("pairs", "cache", "stage1", "stage2", "evaluation"):
        assert steps[name]["seconds"] > 0 and steps[name]["amount"] > 0
        assert 0 < steps[name]["device_share"] < 1, name
    assert steps["report"]["device_share"] is None


def test_mlflow_has_one_finished_run(full) -> None:
    run, _ = full
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{run.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("raypref")
    (tracked,) = client.search_runs([experiment.experiment_id])
    record = json.loads((run / "run.json").read_text())
    assert tracked.info.run_id == record["mlflow_run_id"]
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["train.stage1.steps"] == str(STEPS)
    assert {"stage1/loss", "stage2/loss", "gain/stage2/pickscore"} <= tracked.data.metrics.keys()
    steps = [m.step for m in client.get_metric_history(tracked.info.run_id, "stage1/loss")]
    assert sorted(steps) == list(range(1, STEPS + 1))
    artifacts = {file.path for file in client.list_artifacts(tracked.info.run_id)}
    assert {"config.toml", "table.md", "index.html", "stage1", "stage2"} <= artifacts


def test_the_same_command_again_does_nothing(full, capsys) -> None:
    run, _ = full
    before = snapshot(run)
    command = (*RECORDED, f"storage={run.parent}")
    code, output = main("run", command, program="raypref run"), capsys.readouterr().out
    assert code == 0 and "starting Ray" not in output, output
    for step in ("pairs", "cache", "stage1", "stage2", "evaluation"):
        assert f"{step}: skipped, complete" in output
    assert snapshot(run) == before
    record = json.loads((run / "run.json").read_text())
    assert record["steps"]["stage1"]["seconds"] > 0, "what it cost before was forgotten"
