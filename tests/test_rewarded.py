"""Trainings on rewards as settings: what is refused, what stops them, what is part of a result."""

from __future__ import annotations

from pathlib import Path

import pytest
from training import training

from raypref.align.online_config import OnlineConfig
from raypref.core.config import InputError, load
from raypref.core.fingerprints import fingerprint
from raypref.run.config import RunConfig
from raypref.run.outlook import _models
from raypref.run.pipeline import Run


def config_of(*words: str, objective: str = "nft", preset: str = "tiny") -> RunConfig:
    mine = ["trainings=mine", f"train.mine.objective={objective}"]
    return load(RunConfig, preset, [*mine, *words])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("batch=20",), "group=8.* so a multiple of 8"),
        (("reuse=2",), "take a multiple of reuse"),
        (("flip=0.5",), r"train\.mine\.flip=0\.5"),
        (("caption_dropout=0.1",), r"train\.mine\.caption_dropout=0\.1"),
        (("curriculum=easy_first",), "learns from images that it draws; set curriculum=off"),
        (("region=hole",), "set region=image"),
        (("rewards={pickscore=0}",), "a weight other than 0"),
        (("rewards={nothing=1}",), r"train\.mine\.rewards=\['nothing'\].* one of: pickscore"),
        (("held_out=pickscore",), "held_out=pickscore: it is trained on"),
        (("held_out=nothing",), r"train\.mine\.held_out=\['nothing'\]"),
        (("group=1",), r"train\.mine\.group=1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        config_of(*(f"train.mine.{word}" for word in words))


def test_a_limit_of_a_distance_that_nobody_measures_is_refused() -> None:
    class Careless(OnlineConfig):
        against = ""

    with pytest.raises(ValueError, match="does not look at the reference; set kl too"):
        Careless(objective="careless", max_kl=0.1)


def test_a_step_has_as_many_workers_as_prompts() -> None:
    words = ("train.mine.batch=32", "train.mine.group=8", "train.mine.timesteps=2")
    config = config_of(*words, "train.mine.resources.workers=2")
    assert config.train["mine"].pairs_per_step == 2
    Run(config).alignment.check_training("mine")
    told = r"^train\.mine\.resources\.workers=3: it must be 1 to 2, the prompts in .*batch=32"
    with pytest.raises(InputError, match=told):
        Run(config_of(*words, "train.mine.resources.workers=3")).alignment.check_training("mine")


def test_a_training_stops_far_from_its_reference_or_when_images_are_alike() -> None:
    def stopped(history: list[dict[str, float]], **settings: float) -> str:
        stage = training("online_rwr", max_error_ratio=1e9, **settings)
        known = {"ref_image": 1.0, "image_gap": 0.0, "image_error": 1.0}
        return stage.health([{**known, **row} for row in history], key="train.mine")

    far = [{"kl": 0.01 * step, "diversity": 0.5 - 0.02 * step} for step in range(20)]
    assert stopped(far) == ""
    assert stopped(far, max_kl=0.2) == ""
    assert stopped(far, max_kl=0.15) == "kl is 0.19, more than train.mine.max_kl=0.15"
    # The mean of the first ten is 0.41, the last one 0.12.
    assert stopped(far, min_diversity=0.29) == ""
    told = stopped(far, min_diversity=0.3)
    assert told.startswith("diversity is 0.12, less than train.mine.min_diversity=0.3 times the")
    assert "0.41" in told
    assert stopped([{"diversity": 0.5}], min_diversity=0.3) == ""  # no distance is known


def test_the_rewards_that_it_is_trained_on_are_part_of_a_result(tmp_path: Path) -> None:
    def of(*words: str) -> str:
        run = Run(config_of(f"storage={tmp_path}", *words))
        return run.alignment.trained["mine"].fingerprint

    both = "train.mine.rewards={pickscore=1, aesthetic=0.5}"
    plain = of(both)
    other = "rewards.aesthetic.model=tiny:other"
    assert of(both, other) != plain
    assert of("train.mine.rewards={pickscore=1, aesthetic=0.6}") != plain
    assert of("train.mine.rewards={aesthetic=0.5, pickscore=1}") == plain
    for word in (
        "train.mine.held_out=clipscore",
        "train.mine.held_out_every=3",
        "train.mine.reward_actors=1",
        "train.mine.max_kl=3",
        "pickscore.resources.batch=3",
        "rewards.clipscore.model=tiny:other",
    ):
        assert of(both, word) == plain, word
    assert of(other, "train.mine.held_out=aesthetic") == of()  # it is not trained on


def test_other_trainings_have_the_fingerprint_that_they_had(tmp_path: Path) -> None:
    run = Run(config_of(f"storage={tmp_path}", objective="dpo"))
    own, align = run.config.train["mine"], run.alignment
    assert not any(key.startswith("rewards") for key in align.trained["mine"].settings)
    assert align.rewards_of(own) == {} and not align.jobs["mine"].rewards
    assert fingerprint(align.trained["mine"].settings) == align.trained["mine"].fingerprint


def test_a_missing_reward_is_told_before_any_work(tmp_path: Path) -> None:
    words = (f"storage={tmp_path}", "train.mine.held_out=imagereward")
    run = Run(config_of(*words, "rewards.imagereward.model=nobody/knows"))
    (step,) = [step for step in run.steps if step.name == "mine"]
    with pytest.raises(InputError, match=r"rewards\.imagereward"):
        for need in step.needs:
            need()
    assert "nobody/knows" in _models(run, {"mine"})
    assert "nobody/knows" not in _models(run, {"pairs"})
    job = run.alignment.jobs["mine"]
    assert [*job.rewards] == ["pickscore", "imagereward"]
    assert job.pairs is run.curation.pairs  # for the prompts as they are written
