"""The settings of the job that judges rewards: a part of a run's, from files written for runs."""

import json
import os
from pathlib import Path

import pytest
from filelock import FileLock

from raypref.core.config import InputError, flatten, load, load_sections, results_of
from raypref.judge.job import JudgingConfig, judge_rewards
from raypref.models import hub
from raypref.run.config import RunConfig


def judging(source: str, *overrides: str) -> JudgingConfig:
    return load_sections(JudgingConfig, source, overrides, of=RunConfig)


def test_every_setting_is_that_of_a_run():
    given = ["source.path=p", "evaluate.prompts=p", "judge.rewards=['hpsv3']", "run=mine"]
    for preset in ("tiny", "sd15", "sd35m"):
        part, whole = flatten(judging(preset, *given)), flatten(load(RunConfig, preset, given))
        assert part == {key: whole[key] for key in part}
        for section in ("judge", "pickscore", "rewards"):
            mine = results_of({section: getattr(judging(preset, *given), section)})
            assert mine == results_of({section: getattr(load(RunConfig, preset, given), section)})


def test_nothing_of_a_run_is_required():
    with pytest.raises(InputError, match=r"'source\.path' is required"):
        load(RunConfig, "sd15")
    settings = flatten(judging("sd15"))
    assert {key.split(".")[0] for key in settings} == {*JudgingConfig.model_fields}
    assert "source" not in JudgingConfig.model_fields


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("judge.pears=x", "'judge.pairs'"),
        ("train.stage2.bta=1", "'train.stage2.beta'"),
        ("train.stage2.beta=-1", "train.stage2.beta=-1"),
        ("judge.rewards=['pickscor']", "pickscore"),
        ("sauce.path=x", "'sauce'"),
        ("judge.pairs", "not key=value"),
    ],
)
def test_what_a_run_would_refuse_is_refused(override, says):
    with pytest.raises(InputError) as error:
        judging("sd15", override)
    assert says in str(error.value)


def test_a_file_of_a_run_serves(tmp_path: Path):
    own = tmp_path / "own.toml"
    own.write_text('extends = "sd15"\nrun = "mine"\n[source]\npath = "p"\n[judge]\nlimit = 3\n')
    config = judging(str(own))
    assert (config.run, config.judge.limit) == ("mine", 3)


def test_one_job_at_a_time_in_its_folder(tmp_path: Path):
    pair = {"prompt": "x", "path1": "a", "path2": "b", "confidence": 0.9}
    (tmp_path / "all.json").write_text(json.dumps([pair]))
    config = judging(
        *("tiny", f"storage={tmp_path}", f"judge.pairs={tmp_path / 'all.json'}"),
        "judge.layout=hpdv3",
    )
    folder = tmp_path / "run" / "judge"
    folder.mkdir(parents=True)
    with (
        FileLock(folder / "job.lock"),
        pytest.raises(InputError, match=r"run/judge is in use by another job"),
    ):
        judge_rewards(config)


def test_its_workers_load_the_commits_that_it_found(tmp_path: Path, monkeypatch):
    (tmp_path / "all.json").write_text(
        json.dumps([{"prompt": "x", "path1": "a", "path2": "b", "confidence": 0.9}])
    )
    config = judging(
        *("tiny", f"storage={tmp_path}", f"judge.pairs={tmp_path / 'all.json'}"),
        "judge.layout=hpdv3",
    )
    monkeypatch.setattr(hub, "_found", {"some/model@v1": "a" * 40})
    monkeypatch.setenv(hub.COMMITS, "{}")

    def start() -> None:
        raise InputError(os.environ[hub.COMMITS])

    monkeypatch.setattr("raypref.judge.job.start_ray", start)
    with pytest.raises(InputError) as told:
        judge_rewards(config)
    assert json.loads(str(told.value)) == {"some/model@v1": "a" * 40}
