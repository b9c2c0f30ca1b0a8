"""Promise 1 on a hostile folder: every input ends exactly once, the bad ones with a reason."""

import csv
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from corpus import images, scene, write_folder
from in_process import job_here
from PIL import Image, ImageOps

SIZE = 64
SETTINGS = (
    "tiny",
    f"images.size={SIZE}",
    "perturb.steps=3",
    "source.license=cc-by-4.0",
    "color.enabled=false",  # all sound photographs go through the models
    "select.min_gap=-100.0",
    "select.top_k=500",
    "saliency.resources.workers=1",
    "pickscore.resources.workers=1",
    "tracking.uri=none",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder, and the reason expected of every file."""
    root = tmp_path_factory.mktemp("bad") / "photos"
    expected = write_folder(root)
    real = Path(__file__).resolve().parents[2] / "shared" / "data" / "photos"
    found = sorted(real.rglob("*.jpg"))[:4] if real.is_dir() else []
    with (root / "captions.csv").open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for number, photo in enumerate(found):
            name = f"real_{number}.jpg"
            shutil.copy(photo, root / name)
            writer.writerow([name, f"a real photograph, number {number}"])
            expected[name] = "ok"
    return root, expected


@pytest.fixture(scope="module")
def curated(
    folder: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The run's folder and what the job said."""
    storage = tmp_path_factory.mktemp("runs")
    code, output = job_here("curate", *SETTINGS, f"source.path={folder[0]}", f"storage={storage}")
    assert code == 0, output
    return storage / "run", output


def table(folder: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(part) for part in sorted(folder.glob("part-*.parquet"))])


def test_every_input_ends_exactly_once(folder, curated) -> None:
    run, _ = curated
    photos, rejects, pairs = (table(run / name) for name in ("photos", "rejects", "pairs"))
    _, expected = folder
    assert photos["id"].is_unique and rejects["id"].is_unique and pairs["id"].is_unique
    assert set(photos["uri"]) == set(expected)
    ended = {status: set(photos[photos["status"] == status]["id"]) for status in set(photos.status)}
    assert ended.keys() <= {"pair", "not_selected", "rejected"}
    assert sum(len(ids) for ids in ended.values()) == len(expected)
    assert ended["pair"] == set(pairs["id"])
    assert ended["rejected"] == set(rejects["id"])


def test_bad_ones_have_their_reason_and_good_ones_pass(folder, curated) -> None:
    run, _ = curated
    _, expected = folder
    rejects = table(run / "rejects").set_index("uri")
    bad = {name: reason for name, reason in expected.items() if reason != "ok"}
    assert rejects["reason"].to_dict() == bad
    assert rejects["message"].str.len().gt(0).all()
    photos = table(run / "photos").set_index("uri")
    for name in expected.keys() - bad.keys():
        assert photos.loc[name, "status"] == "pair", name


def crop(image: Image.Image) -> np.ndarray:
    """The centre square by Pillow's own hand."""
    size = (SIZE, SIZE)
    return np.asarray(ImageOps.fit(image, size, Image.Resampling.LANCZOS), dtype=float)


@pytest.mark.parametrize("name", ["orientation_6.png", "cmyk.jpg", "sixteen.png"])
def test_tricky_photographs_look_right(curated, name: str) -> None:
    run, _ = curated
    ids = table(run / "photos").set_index("uri")["id"]
    pair = table(run / "pairs").set_index("id").loc[ids[name]]
    ours = np.asarray(Image.open(io.BytesIO(pair["chosen"]["bytes"])), dtype=float)
    if name == "orientation_6.png":  # stored as the scene, said to be turned right by 90 degrees
        expected = crop(scene().transpose(Image.Transpose.ROTATE_270))
    elif name == "cmyk.jpg":
        expected = crop(scene())
    else:  # the middle of a ramp over all 16 bits, as wide as it is high
        ramp = np.linspace(63.75, 191.25, SIZE)
        expected = np.broadcast_to(ramp[None, :, None], ours.shape)
    assert ours.shape == (SIZE, SIZE, 3)
    assert np.abs(ours - expected).mean() < 4, "another picture, or other colours"
    assert np.abs(ours[:, ::-1] - expected).mean() > 4, "the comparison sees no turn"


def test_pairs_open_elsewhere(curated) -> None:
    datasets = pytest.importorskip("datasets")
    run, _ = curated
    files = [str(path) for path in (run / "pairs").glob("*.parquet")]
    loaded = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(run / "hf")
    )
    frame = table(run / "pairs")
    assert len(loaded) == len(frame)
    for row in loaded:
        for column in ("chosen", "rejected", "mask"):
            assert isinstance(row[column], Image.Image)
            assert row[column].size == (SIZE, SIZE)
    assert sorted(loaded["rank"]) == sorted(frame["rank"]) == list(range(len(frame)))
    for column in ("chosen", "rejected", "mask"):
        for value in frame[column]:
            assert Image.open(io.BytesIO(value["bytes"])).size == (SIZE, SIZE)


def test_the_dataset_card_says_what_became_of_the_inputs(folder, curated) -> None:
    hub = pytest.importorskip("huggingface_hub")
    run, _ = curated
    card = hub.DatasetCard.load(run / "pairs" / "_README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.configs == [{"config_name": "default", "data_files": "*.parquet"}]
    _, expected = folder
    assert f"What became of the {len(expected)} inputs" in card.text
    funnel = dict(re.findall(r"^\| (\w+) \| (\d+) \|$", card.text, re.MULTILINE))
    assert int(funnel["pair"]) == len(table(run / "pairs"))
    assert int(funnel["truncated"]) == list(expected.values()).count("truncated") > 0


def test_other_settings_are_refused_then_redone(folder, curated) -> None:
    run, _ = curated
    twins = run / "curate" / "twins"
    before = {path.name: path.stat().st_mtime_ns for path in twins.glob("part-*")}
    changed = [s for s in SETTINGS if not s.startswith("select.top_k")]
    command = [*changed, "select.top_k=3", f"source.path={folder[0]}", f"storage={run.parent}"]

    code, output = job_here("curate", *command)
    assert code == 2, output
    assert "select.top_k: 500 -> 3" in output and "--redo" in output
    assert len(table(run / "pairs")) > 3

    code, output = job_here("curate", *command, "--redo")
    assert code == 0, output
    assert sorted(table(run / "pairs")["rank"]) == [0, 1, 2]
    assert re.search(r"twins: (\d+) of \1 rows were done before", output)
    after = {path.name: path.stat().st_mtime_ns for path in twins.glob("part-*")}
    assert after == before, "inpainted again"
    counts = table(run / "photos")["reason"].value_counts()
    assert counts["not_needed"] > 0


def test_corpus_has_what_is_tested_here() -> None:
    assert {"orientation_6.png", "cmyk.jpg", "sixteen.png"} <= images().keys()
