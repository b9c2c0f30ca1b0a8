"""The reward of docs/extending.md: one file outside the package, and it has all that ours have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import test_reward_contract as contract
from PIL import Image
from worked_examples import ROOT, example, registered, run_python

from raypref.core.config import InputError, flatten, load, results_of
from raypref.core.key_help import describe
from raypref.engine.batches import in_batches
from raypref.evaluate import statistics, tables
from raypref.evaluate.measures import measures
from raypref.images.decode import encode_png
from raypref.rewards.passes import in_one_pass
from raypref.rewards.registry import REWARDS
from raypref.run.config import RunConfig

CODE = example("Add a reward")
CHOSEN = "metrics.rewards=['exposure']"


@pytest.fixture
def exposure(tmp_path: Path) -> Iterator[None]:
    """The reward, registered."""
    with registered("exposure", CODE, REWARDS, tmp_path):
        yield


def test_it_has_a_section_a_line_of_help_and_a_fingerprint(exposure: None) -> None:
    settings = load(RunConfig, "tiny", [CHOSEN, "rewards.exposure.low=10"])
    assert flatten(settings)["rewards.exposure.low"] == 10
    [text] = [text for text in describe(RunConfig) if text.startswith("rewards.exposure.low ")]
    assert text == "rewards.exposure.low  (integer, default 5)\n    grey levels up to it are black"
    decide = results_of(
        measures(settings.metrics, settings.pickscore, settings.rewards)["exposure"].settings
    )
    assert decide == {"exposure.low": 10, "exposure.high": 250}
    with pytest.raises(InputError, match=r"unknown key 'rewards\.exposure\.lo'; .*exposure\.low'"):
        load(RunConfig, "tiny", ["rewards.exposure.lo=10"])
    with pytest.raises(InputError, match=r"rewards\.exposure\.low: it must lie below"):
        load(RunConfig, "tiny", ["rewards.exposure.low=255"]).rewards["exposure"].check()


def test_without_it_there_is_no_such_section() -> None:
    with pytest.raises(InputError, match=r"unknown key 'rewards\.exposure'"):
        load(RunConfig, "tiny", ["rewards.exposure.low=10"])


def test_images_are_scored_and_the_table_shows_it(exposure: None) -> None:
    settings = load(
        RunConfig, "tiny", [CHOSEN, "rewards.exposure.low=100", "metrics.distance=false"]
    )
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (5, 8, 8), dtype=np.uint8)
    rows = [
        {"image": encode_png(Image.fromarray(p).convert("RGB")), "prompt": "a ball"}
        for p in pictures
    ]
    chosen = measures(settings.metrics, settings.pickscore, settings.rewards)
    common, own = in_one_pass({"exposure": chosen["exposure"]}, column="image")
    for stage in (*common, *own["exposure"]):
        stage.setup()
        in_batches(stage, rows)
    expected = [sum(100 < int(v) < 250 for v in p.flat) / 64 for p in pictures]
    assert [row["exposure"] for row in rows] == pytest.approx(expected)
    assert min(expected) > 0 and max(expected) < 1
    frame = pd.DataFrame(
        [
            {"prompt": "a ball", "prompt_id": i, "seed": 0, "model": m, "metric": k, "score": value}
            for m in ("base", "mine")
            for k in ("texture_detail", "exposure")
            for i, value in enumerate(expected)
        ]
    )
    text = tables.markdown(statistics.summarise(frame, base="base", resamples=20))
    assert text.splitlines()[0] == "| model | Exposure ↑ | Texture detail ↑ |"
    assert f"{np.mean(expected):.3f}" in text


def test_it_passes_the_tests_of_every_reward(exposure: None) -> None:
    contract.test_it_says_how_its_scores_are_shown("exposure")
    contract.test_its_model_has_the_phases("exposure")
    contract.test_its_settings_have_defaults_and_say_what_they_do("exposure")
    contract.test_a_name_is_that_of_one_metric()
    contract.test_a_reward_of_a_run_is_that_of_its_section()


def test_a_job_that_imports_it_knows_its_name(tmp_path: Path) -> None:
    (tmp_path / "exposure.py").write_text(CODE, encoding="utf-8")
    job = ROOT / "jobs" / "evaluate.py"
    script = tmp_path / "evaluate_exposure.py"
    text = job.read_text(encoding="utf-8")
    script.write_text(text.replace("import sys\n", "import sys\n\nimport exposure\n", 1))
    settings = [CHOSEN, "rewards.exposure.low=10", f"storage={tmp_path}", "--resolved"]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    for file, code in ((script, 0), (job, 2)):
        ended, said = run_python(str(file), "tiny", *settings, variables=variables)
        assert ended == code, said
    assert "unknown key 'rewards.exposure'" in said
