"""Records besides MLflow's: TensorBoard's files read back, W&B through a stand-in."""

import io
import logging
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from raypref.core.config import InputError, load, results_of
from raypref.core.tracking import NO_IDS, Tracker, TrackingConfig, require_trackers
from raypref.run.config import RunConfig

TENSORBOARD = TrackingConfig(uri="none", also=("tensorboard",))
WANDB = TrackingConfig(uri="none", also=("wandb",))
SETTINGS = {"lr": 0.1, "tracking.uri": "https://bob:secret@host/x"}


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, "PNG")
    return buffer.getvalue()


def open_tracker(config: TrackingConfig, folder: Path, ids: Mapping[str, str] = NO_IDS) -> Tracker:
    return Tracker(
        config,
        storage=str(folder.parent),
        name="mine",
        settings=SETTINGS,
        run_id=None,
        folder=str(folder),
        group="ablations/table3",
        ids=ids,
    )


def tell(run: Tracker) -> None:
    """What a whole run tells."""
    for step in (1, 2, 3):
        run.metrics({"stage1/loss": 1 / step, "stage1/lr": 0.5}, step=step)
    run.history([{"step": s, "loss": s * 2.0} for s in (1, 2)], prefix="stage2")
    run.numbers({"eval/stage2/pickscore": 21.5, "gain/stage2/pickscore": 0.5})
    run.table("evaluation", ["model", "mean"], [["a|b", 21.0], ["base", 20.0]])
    run.describe("PickScore +0.50 (better).")
    run.images("samples/base", {"a ball": png("red"), "a cube": png("blue")})
    run.artifact("/nowhere/table.md")


def events(folder: Path) -> list[Event]:
    """All events, by a reader of its own: 8 bytes of length, 4 + 4 of checksums."""
    found = []
    for file in sorted(folder.glob("events.*")):
        data = file.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                point = (event.step, round(value.simple_value, 6))
                found.setdefault(value.tag, []).append(point)
    return found


def test_tensorboard_has_curves_settings_numbers_table_and_images(tmp_path):
    run = open_tracker(TENSORBOARD, tmp_path / "run")
    tell(run)
    run.finish("FINISHED")
    folder = tmp_path / "run" / "tensorboard"
    assert run.ids == {"tensorboard": "tensorboard"}
    assert scalars(folder) == {
        "stage1/loss": [(1, 1.0), (2, 0.5), (3, 0.333333)],
        "stage1/lr": [(1, 0.5), (2, 0.5), (3, 0.5)],
        "stage2/loss": [(1, 2.0), (2, 4.0)],
        "eval/stage2/pickscore": [(0, 21.5)],
        "gain/stage2/pickscore": [(0, 0.5)],
    }
    others = {v.tag: v for e in events(folder) for v in e.summary.value if not v.simple_value}
    texts = " ".join(
        text.decode() for v in others.values() for text in v.tensor.string_val if v.tensor
    )
    assert "| lr | 0.1 |" in texts and "secret" not in texts
    assert "| a\\|b | 21 |" in texts and "PickScore +0.50 (better)." in texts
    image = others["samples/base/a ball"].image
    assert (image.width, image.height) == (8, 6)
    assert image.encoded_image_string == png("red")


def test_tensorboard_goes_on_after_a_kill_and_repeats_nothing(tmp_path):
    killed = open_tracker(TENSORBOARD, tmp_path / "run")
    for step in (1, 2, 3):
        killed.metrics({"stage1/loss": 1.0}, step=step)
    killed.finish("FAILED")
    folder = tmp_path / "run" / "tensorboard"
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes() + b"\x30\x00\x00\x00\x00\x00\x00\x00cut")  # in a record
    resumed = open_tracker(TENSORBOARD, tmp_path / "run", killed.ids)
    for step in (3, 4):
        resumed.metrics({"stage1/loss": 2.0}, step=step)
    resumed.finish("FINISHED")
    file.write_bytes(file.read_bytes()[:-11])
    assert resumed.ids == killed.ids
    assert sorted(scalars(folder)["stage1/loss"]) == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]
    # Other settings in the same folder: files of their own.
    other = open_tracker(TENSORBOARD, tmp_path / "run")
    other.finish("FINISHED")
    assert other.ids == {"tensorboard": "tensorboard-2"}


class Wandb(types.ModuleType):
    """A stand-in for the package: keeps what it is told, per run id."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: dict[str, Any] = {}
        self.api = types.SimpleNamespace(api_key="key")
        self.Settings = dict
        self.Table = lambda columns, data: ("table", columns, data)
        self.Image = lambda image, caption: ("image", image.size, caption)

    def init(self, **given: Any) -> Any:
        assert given["resume"] == "allow"
        run = self.runs.setdefault(given["id"], WandbRun())
        run.given, run.ended = given, None
        return run


class WandbRun:
    """A run; like W&B's it refuses to log once it has ended."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.axes: dict[str, str] = {}
        self.notes = ""
        self.ended: int | None = None
        self.given: dict[str, Any] = {}

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.axes[name] = step_metric

    def log(self, values: dict[str, Any]) -> None:
        assert self.ended is None, "this run has ended"
        self.logged.append(values)
        self.summary |= values

    def finish(self, *, exit_code: int) -> None:
        self.ended = exit_code


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return module


def test_wandb_has_curves_settings_numbers_table_and_images(tmp_path, wandb):
    run = open_tracker(WANDB, tmp_path / "run")
    tell(run)
    run.finish("FINISHED")
    made = wandb.runs[run.ids["wandb"]]
    assert made.given["project"] == "raypref"
    assert (made.given["name"], made.given["group"]) == ("mine", "ablations/table3")
    assert made.given["config"] == {"lr": "0.1", "tracking.uri": "https://***@host/x"}
    assert made.axes == {"stage1/*": "stage1/step", "stage2/*": "stage2/step"}
    assert made.logged[:4] == [
        {"stage1/loss": 1.0, "stage1/lr": 0.5, "stage1/step": 1},
        {"stage1/loss": 0.5, "stage1/lr": 0.5, "stage1/step": 2},
        {"stage1/loss": 1 / 3, "stage1/lr": 0.5, "stage1/step": 3},
        {"stage2/loss": 2.0, "stage2/step": 1},
    ]
    assert made.summary["gain/stage2/pickscore"] == 0.5
    assert made.summary["evaluation"] == (
        "table",
        ["model", "mean"],
        [["a|b", 21.0], ["base", 20.0]],
    )
    assert made.summary["samples/base"][0] == ("image", (8, 6), "a ball")
    assert made.notes == "PickScore +0.50 (better)."
    assert made.ended == 0


def test_wandb_goes_on_with_the_same_run_and_repeats_nothing(tmp_path, wandb):
    killed = open_tracker(WANDB, tmp_path / "run")
    for step in (1, 2, 3):
        killed.metrics({"stage1/loss": 1.0}, step=step)
    killed.finish("FAILED")
    assert wandb.runs[killed.ids["wandb"]].ended == 1
    resumed = open_tracker(WANDB, tmp_path / "run", killed.ids)
    for step in (3, 4):
        resumed.metrics({"stage1/loss": 2.0}, step=step)
    assert resumed.ids == killed.ids
    (made,) = wandb.runs.values()
    assert [each["stage1/step"] for each in made.logged] == [1, 2, 3, 4]


def test_a_record_that_breaks_is_one_line_and_the_others_go_on(tmp_path, wandb, caplog):
    config = TrackingConfig(uri="none", also=("tensorboard", "wandb"))
    run = open_tracker(config, tmp_path / "run")
    wandb.runs[run.ids["wandb"]].ended = 0  # then it refuses everything
    with caplog.at_level(logging.WARNING):
        tell(run)
    run.finish("FINISHED")
    (said,) = caplog.messages
    assert "W&B failed (AssertionError: this run has ended); continuing without it" in said
    assert len(scalars(tmp_path / "run" / "tensorboard")["stage1/loss"]) == 3


def test_a_service_that_cannot_be_reached_does_not_stop_a_run(tmp_path, wandb, caplog, monkeypatch):
    def unreachable(**given: Any) -> Any:
        raise TimeoutError("no answer in 30 s")

    monkeypatch.setattr(wandb, "init", unreachable)
    with caplog.at_level(logging.WARNING):
        run = open_tracker(WANDB, tmp_path / "run")
        tell(run)
        run.finish("FINISHED")
    assert caplog.messages == [
        "tracking: W&B: TimeoutError: no answer in 30 s; continuing without it"
    ]
    assert run.ids == {}


def test_what_is_missing_is_said_before_work(wandb, monkeypatch):
    require_trackers(WANDB, storage="runs")
    require_trackers(TENSORBOARD, storage="runs")
    with pytest.raises(InputError, match=r"tracking\.also: tensorboard .*=s3://b/runs is not"):
        require_trackers(TENSORBOARD, storage="s3://b/runs")
    wandb.api.api_key = None
    with pytest.raises(InputError, match=r"tracking\.also: wandb has no key; run `wandb login`"):
        require_trackers(WANDB, storage="runs")
    monkeypatch.setenv("WANDB_MODE", "offline")
    require_trackers(WANDB, storage="runs")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"wandb is not installed; pip install 'raypref\[wandb\]'"):
        require_trackers(WANDB, storage="runs")


def test_where_a_run_is_recorded_changes_no_result():
    plain = load(RunConfig, "tiny", [])
    more = load(RunConfig, "tiny", ["tracking.also=['tensorboard', 'wandb']"])
    assert more.tracking.also == ("tensorboard", "wandb")
    assert results_of({"": plain}) == results_of({"": more})
