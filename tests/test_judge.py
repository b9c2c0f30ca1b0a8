"""Rewards against people: accuracy with the benchmarks' ties, agreement, biases, the layouts."""

import hashlib
import io
import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raypref.core.config import InputError, Resources, build, results_of
from raypref.core.ledger import Ledger
from raypref.engine.stream import StreamConfig
from raypref.images.decode import encode_png
from raypref.judge import statistics as judge
from raypref.judge.pairs import PROPERTIES, JudgeConfig, Judging, Load, Properties
from raypref.report.judged import render
from raypref.rewards.config import RewardConfig
from raypref.sources.base import Pair, Ref

# ------------------------------------------------------------------ numbers


def pairs(labels: list[float], gaps: list[float], **more: list[float]) -> pd.DataFrame:
    prompts = [f"prompt {i}" for i in range(len(labels))]
    return pd.DataFrame({"prompt": prompts, "label": labels, "pickscore": gaps, **more})


def test_accuracy_without_ties_by_counting() -> None:
    frame = pairs([1, 1, 0, 0, 1], [2.0, -1.0, -0.5, 0.0, float("nan")])
    [row] = judge.accuracy(frame, ["pickscore"], resamples=200).to_dict("records")
    assert row["accuracy"] == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert (row["n_pairs"], row["n_unscored"]) == (4, 1)
    assert (
        row["low"] <= row["accuracy"] <= row["high"]
        and np.isnan(row["tie_gap"])
        and row["chance"] == 0.5
    )


def test_ties_count_as_in_pick_a_pic() -> None:
    """Small gaps are ties for people: saying so is right, a one-sided tie is worth a half."""
    rng = np.random.default_rng(0)
    gaps = rng.normal(0, 1, 600)
    labels = np.where(np.abs(gaps) < 0.3, 0.5, (gaps > 0).astype(float))
    assert 0.25 < judge.best_tie_gap(gaps, labels) < 0.35
    frame = pairs(labels.tolist(), gaps.tolist())
    [row] = judge.accuracy(frame, ["pickscore"], resamples=200).itertuples()
    assert row.accuracy > 0.98 and row.tie_gap == pytest.approx(0.3, abs=0.05)
    # A reward that never says tie: right where people choose, half where they do not.
    sure = pairs([0.5, 1, 1, 0.5], [1.0, 1.0, 1.0, -1.0])
    [row] = judge.accuracy(sure, ["pickscore"], resamples=200).itertuples()
    assert row.accuracy == pytest.approx(0.75)


def test_the_tie_gap_is_not_fitted_to_what_it_is_tested_on() -> None:
    """Random labels leave nothing to find; fitted to themselves, accuracy would lie above."""
    rng = np.random.default_rng(1)
    labels = rng.choice([0.0, 0.5, 1.0], 2000, p=(0.4, 0.2, 0.4))
    frame = pairs(labels.tolist(), rng.normal(0, 1, 2000).tolist())
    [row] = judge.accuracy(frame, ["pickscore"], resamples=200).itertuples()
    # Always saying tie is right for a fifth, and half right for the rest.
    assert row.chance == pytest.approx(0.6, abs=0.02) and row.accuracy < row.chance + 1e-9


def test_agreement_by_counting() -> None:
    frame = pairs([1, 0, 1, 0.5], [1, -1, -1, 1], hpsv3=[1, 1, -1, 1])
    rows = judge.agreement(frame, ["pickscore", "hpsv3"]).set_index(["first", "second"])
    assert rows.loc[("pickscore", "hpsv3"), "percent"] == 75
    assert rows.loc[("pickscore", "hpsv3"), "kendall"] == 0.5
    assert rows.loc[("pickscore", "people"), "percent"] == pytest.approx(200 / 3)
    assert rows.loc[("pickscore", "people"), "kendall"] == pytest.approx(1 / np.sqrt(4 * 3))


def test_a_bias_is_measured_against_people() -> None:
    rng = np.random.default_rng(2)
    more = rng.normal(0, 1, 800)
    labels = (rng.random(800) < 0.5).astype(float)
    others = {name: rng.normal(0, 1, 800).tolist() for name in PROPERTIES}
    others["brightness"] = more.tolist()
    likes_light = np.where(rng.random(800) < 0.8, more, -more)
    rows = judge.bias(pairs(labels.tolist(), likes_light.tolist(), **others), ["pickscore"])
    bright, contrast = (rows.set_index("property").loc[n] for n in ("brightness", "contrast"))
    assert bright["share"] == pytest.approx(0.8, abs=0.04)
    assert bright["people"] == pytest.approx(0.5, abs=0.05) and bright["low"] > 0.15
    assert contrast["low"] < 0 < contrast["high"]


# ------------------------------------------------------------------ layouts


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 80), (shade, shade, shade)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_pick_a_pic(tmp_path: Path) -> None:
    file = tmp_path / "test.parquet"
    columns = {
        "caption": ["a cat", "a dog", "none"],
        "jpg_0": [jpeg(0), jpeg(50), jpeg(9)],
        "jpg_1": [{"bytes": jpeg(200)}, {"bytes": jpeg(250)}, {"bytes": jpeg(9)}],
        "label_0": [0.0, 0.5, 1.0],
        "has_label": [True, True, False],
    }
    pd.DataFrame(columns).to_parquet(file)
    config = JudgeConfig(pairs=str(file))
    found = config.read()
    assert [(p.prompt, p.label) for p in found] == [("a cat", 0.0), ("a dog", 0.5)]
    rows = [found[1].first._asdict(), found[1].second._asdict()]
    for stage in (Load(config), Properties()):
        stage.setup()
        stage(rows)
    assert [round(row["brightness"] * 255) for row in rows] == [50, 250]


def without_ids(found: list[Pair]) -> list[Pair]:
    return [pair._replace(id="") for pair in found]


def test_hpd_and_imagereward(tmp_path: Path) -> None:
    layouts = {
        "imagereward": {"prompt": "x", "generations": ["a", "b", "c"], "ranking": [2, 1, 2]},
        "hpdv2": {"prompt": "x", "image_path": ["a", "b"], "rank": [1.5, 2.5]},
        "hpdv3": {"prompt": "x", "path1": "a", "path2": "b", "confidence": 0.9},
    }
    read = {}
    for layout, record in layouts.items():
        (tmp_path / f"{layout}.json").write_text(json.dumps([record, record]))
        config = JudgeConfig(pairs=str(tmp_path / f"{layout}.json"), layout=layout)
        read[layout] = without_ids(config.read())
    a, b, c = map(Ref, "abc")
    assert read["imagereward"][:2] == [Pair("x", a, b, 0.0), Pair("x", b, c, 1.0)]
    assert read["hpdv2"][0] == Pair("x", a, b, 1.0)
    assert read["hpdv3"] == [Pair("x", a, b, 1.0, 0.9), Pair("x", b, a, 0.0, 0.9)]
    train = {"prompt": "x", "file_path": ["a", "b"], "human_preference": [0, 1]}
    (tmp_path / "train.json").write_text(json.dumps([train]))
    config = JudgeConfig(pairs=str(tmp_path / "train.json"), layout="hpdv2")
    assert without_ids(config.read()) == [Pair("x", a, b, 0.0)]
    sure = JudgeConfig(pairs=str(tmp_path / "hpdv3.json"), layout="hpdv3", min_confidence=0.95)
    with pytest.raises(InputError, match="holds no pair"):
        sure.read()
    layouts["hpdv3"]["confidence"] = 0
    (tmp_path / "hpdv3.json").write_text(json.dumps([layouts["hpdv3"]]))
    with pytest.raises(InputError, match="holds no pair"):
        sure.model_copy(update={"min_confidence": 0.1}).read()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is not of the layout hpdv3"),
        ('[{"prompt": "x"}]', "is not of the layout hpdv3"),
        ('[{"prompt": "x", "path1": "../a", "path2": "b"}]', "lies outside"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "d").mkdir()
    file = tmp_path / "d" / "all.json"
    file.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        JudgeConfig(pairs=str(file), layout="hpdv3").read()
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"judge\.pairs is required"):
        JudgeConfig().read()


def test_a_missing_or_broken_image_is_a_reject(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    for name in ("good.png", "good #1#2.png"):
        (tmp_path / name).write_bytes(encode_png(Image.new("RGB", (80, 80))))
    names = ("gone.png", "broken.png", "good.png", "good #1#2.png")
    rows = [Ref(name)._asdict() for name in names]
    load = Load(JudgeConfig(images=str(tmp_path), pairs=str(tmp_path)))
    load.setup()
    load(rows)
    assert [row.get("reject_reason") for row in rows] == ["missing", "unreadable", None, None]


def test_the_page() -> None:
    rng = np.random.default_rng(3)
    more = {name: rng.normal(0, 1, 60).tolist() for name in (*PROPERTIES, "<hpsv3>")}
    frame = pairs(rng.integers(0, 2, 60).tolist(), rng.normal(0, 1, 60).tolist(), **more)
    rewards = ["pickscore", "<hpsv3>"]
    page = render(
        accuracy=judge.accuracy(frame, rewards, resamples=100),
        agreement=judge.agreement(frame, rewards),
        bias=judge.bias(frame, rewards, resamples=100),
    )
    assert page.count("<svg") == len(PROPERTIES)
    assert "PickScore and &lt;hpsv3&gt;" in page and "<hpsv3>" not in page


def test_a_file_that_is_damaged_meanwhile_is_a_dropped_row(tmp_path):
    file = tmp_path / "pairs.parquet"
    file.write_bytes(b"PAR1 no more")
    stage = Load(JudgeConfig(pairs=str(file)))
    stage.setup()
    [row] = rows = [{"file": file.name, "row": 0, "column": "jpg_0"}]
    stage(rows)
    assert row["reject_reason"] == "unreadable_file"
    assert str(file) in row["reject_message"]


def test_an_empty_cell_or_a_huge_image_is_dropped_with_its_reason(tmp_path):
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(2**40)
    cells = {"jpg_0": pa.array([None], pa.binary()), "jpg_1": [b""]}
    pq.write_table(pa.table(cells), tmp_path / "pairs.parquet")
    refs = [Ref("huge.png"), *(Ref("pairs.parquet", 0, column) for column in cells)]
    rows = [ref._asdict() for ref in refs]
    load = Load(JudgeConfig(pairs=str(tmp_path / "pairs.parquet")))
    load.setup()
    load(rows)
    assert [row["reject_reason"] for row in rows] == ["too_many_bytes", "empty", "empty"]


def test_what_is_judged_is_known_by_full_names_with_links_followed(tmp_path):
    """Ids drive resume: a ledger of an earlier version must stay whole."""
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "link.png").symlink_to("a.png")
    record = {"prompt": "x", "image_path": ["./link.png", "b.png"], "rank": [1, 2]}
    (tmp_path / "test.json").write_text(json.dumps([record]))
    config = JudgeConfig(pairs=str(tmp_path / "test.json"), layout="hpdv2")
    judging = Judging(config, {}, folder=str(tmp_path))
    [pair] = judging.pairs
    a, b = ([f"{tmp_path}/{name}", 0, ""] for name in ("a.png", "b.png"))
    assert json.loads(judging.id(pair.first, "x")) == [*a, "x"]
    text = json.dumps([["x", a, b, 1.0]])
    assert judging.digest == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_of_a_reward_of_which_less_is_better_the_image_with_less_is_preferred(tmp_path):
    class Noise(RewardConfig):
        label: ClassVar[str] = "Noise"
        lower_is_better: ClassVar[bool] = True
        resources: Resources = Resources()

    record = {"prompt": "x", "image_path": ["a.png", "b.png"], "rank": [1, 2]}
    (tmp_path / "test.json").write_text(json.dumps([record]))
    config = JudgeConfig(pairs=str(tmp_path / "test.json"), layout="hpdv2")
    judging = Judging(config, {"noise": Noise()}, folder=str(tmp_path))
    [pair] = judging.pairs
    ids = [judging.id(ref, "x") for ref in (pair.first, pair.second)]
    scored = {"noise": {"noise": [0.25, 1.0]}, "properties": {name: [0, 0] for name in PROPERTIES}}
    for name, columns in scored.items():  # as a run before this one left them
        own = {"noise": Noise()} if name == "noise" else {"properties": ""}
        ledger = Ledger(str(tmp_path / name), results_of({"pairs": judging.digest, **own}))
        ledger.begin()
        ledger.write_part(pa.table({"id": ids, **columns}))
        ledger.commit(expected=2, counts={})
    [row] = judging.run(StreamConfig()).to_dict("records")
    assert row["label"] == 1 and row["noise"] == 0.75


def test_a_layout_that_is_none_is_refused_with_those_there_are():
    with pytest.raises(InputError, match=r"layout='folder'.*pickapic.*imagereward.*hpdv2"):
        build(JudgeConfig, {"layout": "folder"})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": None, "path1": "a", "path2": "b"}, "a prompt is NoneType"),
        ({"prompt": "\ud800", "path1": "a", "path2": "b"}, "UnicodeEncodeError"),
        ({"prompt": "x", "path1": 3, "path2": "b"}, "a path is int"),
        ("x", "AttributeError"),
    ],
)
def test_a_record_of_another_form_is_named(tmp_path, record, message):
    (tmp_path / "all.json").write_text(json.dumps([record]).replace("\\\\", "\\"))
    with pytest.raises(InputError, match=f"is not of the layout hpdv3 .*{message}"):
        JudgeConfig(pairs=str(tmp_path / "all.json"), layout="hpdv3").read()
