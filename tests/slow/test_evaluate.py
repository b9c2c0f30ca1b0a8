"""What an evaluation has made is not made again: killed, then with more models and rewards.

The results do not depend on the number of workers. More prompts: tests/test_prompt_sets.py.
"""

import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from in_process import job_here
from report_runs import scene, write_curation

from jobs import start
from raypref.core.config import load
from raypref.models import adapters, lora
from raypref.models.backbone import load_denoiser
from raypref.models.lora_config import LoraConfig
from raypref.run.config import RunConfig
from raypref.run.pipeline import Run

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(1800)]

PROMPTS, SEEDS = 5, (42, 7)
IMAGES = PROMPTS * len(SEEDS)  # of one model
OURS = ("base", "stage1", "stage2_alone", "stage2")
SETTINGS = (
    *("evaluate.steps=2", f"evaluate.limit={PROMPTS}", f"evaluate.seeds={list(SEEDS)}"),
    *("evaluate.resources.workers=1", "evaluate.resources.batch=4", "stream.block_rows=4"),
    "pickscore.resources.workers=1",
    *("metrics.distance=false", "metrics.critic=''", "tracking.uri=none"),
    "stream.progress_seconds=0",
)


def save_lora(run: Run, folder: Path, *, rank: int, seed: int) -> None:
    """A LoRA that changes the images, of any rank."""
    config = LoraConfig(rank=rank, alpha=rank)
    denoiser = load_denoiser(run.config.base, device=torch.device("cpu"))
    adapters.attach(denoiser.module, config, names=("learner",), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    values = {
        key: 0.1 * torch.randn(value.shape, generator=generator)
        for key, value in adapters.state(denoiser.module, "learner").items()
    }
    lora.save(values, config, folder=str(folder), component=denoiser.component)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A run that is curated and trained as far as its ledgers tell, and a second one's LoRA."""
    storage = tmp_path_factory.mktemp("storage")
    chosen = (*SETTINGS, f"storage={storage}")
    run = Run(load(RunConfig, "tiny", chosen))
    folder = Path(run.folder)
    write_curation(folder, [(scene(i, 64), f"a disc, number {i}") for i in range(4)], pairs=4)
    for number, name in enumerate(run.trained):
        save_lora(run, folder / name, rank=8, seed=number)
    save_lora(run, storage / "second", rank=2, seed=9)
    for step in run.steps:
        if step.name not in ("evaluation", "report"):
            for ledger in step.ledgers():
                for name in (".started.json", ".manifest.json"):
                    (Path(ledger.path) / name).unlink(missing_ok=True)
                ledger.begin()
                ledger.commit(expected=ledger.count(), counts={})
    return chosen


def run_folder(settings: tuple[str, ...]) -> Path:
    return Path(settings[-1].removeprefix("storage=")) / "run"


def parts(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every finished part, and of what says that a ledger is complete."""
    files = [*folder.rglob("part-*.parquet"), *folder.rglob(".manifest.json")]
    found = {str(path.relative_to(folder)): path.stat() for path in files}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def ids(folder: Path) -> Counter[str]:
    tables = (pq.read_table(file, columns=["id"]) for file in folder.rglob("part-*.parquet"))
    return Counter(id_ for table in tables for id_ in table["id"].to_pylist())


def pixels(folder: Path) -> dict[str, bytes]:
    """Every image's PNG, by its id."""
    tables = (
        pq.read_table(file, columns=["id", "image"]) for file in folder.rglob("part-*.parquet")
    )
    return {row["id"]: row["image"] for table in tables for row in table.to_pylist()}


def evaluate(settings: tuple[str, ...], *more: str) -> str:
    code, output = job_here("evaluate", "tiny", *settings, *more)
    assert code == 0, output
    return output


def test_nothing_is_made_twice_whoever_makes_it(settings: tuple[str, ...]) -> None:
    folder = run_folder(settings)
    images, scores = folder / "evaluation" / "images", folder / "evaluation" / "scores"

    # By two workers of everything, killed in the middle of the scores: every image is made.
    two = ("evaluate.resources.workers=2", "pickscore.resources.workers=2")
    with start("evaluate", "tiny", *settings, *two, folder=folder / "logs") as running:
        running.wait_for(lambda: len(parts(scores)) >= 8)
        running.kill_driver()
    before, scored = parts(images), parts(scores)
    assert ids(images).total() == len(OURS) * IMAGES

    # Gone on with, a model more and a reward more. Of the images only those of the new model are
    # made; of the others nothing is measured twice.
    second = f"evaluate.loras={{second = '{folder.parent / 'second'}'}}"
    critic = "metrics.critic=tiny:critic.safetensors"
    output = evaluate(settings, second, critic)
    assert before.items() <= parts(images).items() and scored.items() <= parts(scores).items()
    assert {name.split("/")[0] for name in parts(images).keys() - before} == {"second"}
    assert f"images: {IMAGES}/{IMAGES} rows" in output
    made = ids(images)
    assert made.total() == len(made) == (len(OURS) + 1) * IMAGES
    for ledger in {manifest.parent for manifest in scores.rglob(".manifest.json")}:
        measured = ids(ledger)
        assert measured.total() == len(measured) == IMAGES, ledger
    long = pd.read_parquet(folder / "evaluation" / "scores.parquet")
    assert {"prompt", "prompt_id", "category", "seed", "model", "metric", "score"} == {*long}
    assert set(long["model"]) == {*OURS, "second"}
    assert (long.groupby(["model", "metric"]).size() == IMAGES).all()
    table = (folder / "evaluation" / "table.md").read_text()
    assert "| second | " in table and "(+" in table and "Prompt accuracy" in table
    for name in ("table.tex", "wins.csv", "categories.md"):
        assert (folder / "evaluation" / name).stat().st_size > 0
    assert (folder / "report" / "side_by_side.html").stat().st_size > 0

    # The same by one process, in a run that has nothing yet: equal to the bit.
    again = folder.with_name("again")
    shutil.copytree(folder, again, ignore=shutil.ignore_patterns("evaluation", "report"))
    evaluate(settings, second, critic, "run=again")
    key = ["model", "metric", "prompt_id", "seed"]
    scores_of = {
        run: pd.read_parquet(run / "evaluation" / "scores.parquet").sort_values(
            key, ignore_index=True
        )
        for run in (folder, again)
    }
    pd.testing.assert_frame_equal(*scores_of.values(), check_exact=True)
    assert pixels(again / "evaluation" / "images") == pixels(images)
