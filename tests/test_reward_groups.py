"""Which rewards share an actor, what a job asks for with them, and what they make of images.

No Ray; on two nodes: slow/test_reward_actors.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import ray
import torch
from PIL import Image

from raypref.ablate import cost, sweep
from raypref.align import pooled_scores
from raypref.align.image_scores import Scores, WorkerScores
from raypref.align.objectives.registry import OBJECTIVES
from raypref.align.online_config import OnlineConfig, RewardedConfig
from raypref.align.pooled_scores import PooledScores
from raypref.align.reward_groups import RewardGroup, all_of, check_actors, hold, reward_groups
from raypref.core.config import InputError, Resources, load, setting
from raypref.engine import cluster
from raypref.rewards.base import Reward
from raypref.rewards.config import RewardConfig
from raypref.rewards.pickscore import PickScoreConfig
from raypref.run import execute
from raypref.run.config import RunConfig
from raypref.run.memory_plan import predicted_gib
from raypref.run.outlook import outlook
from raypref.run.pipeline import Run

PICKSCORE = PickScoreConfig(
    model="tiny:pickscore", processor="tiny:pickscore", resources=Resources(batch=4)
)


class LevelConfig(RewardConfig):
    """How bright an image is. It embeds nothing."""

    label: ClassVar[str] = "level"
    resources: Resources = Resources(batch=3)

    def check(self) -> None:
        """It has no weights."""

    def load(self) -> Level:
        return Level()


class Level(Reward):
    """The mean level, 0 to 255."""

    def prepare(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        return np.stack([np.asarray(image) for image in images])

    def compute(self, batch: np.ndarray) -> np.ndarray:
        return batch.mean((1, 2, 3)).astype(np.float32)


class JudgedConfig(OnlineConfig):
    """A training on rewards, as planning reads it."""

    objective: Literal["judged"] = setting("judged", "for tests")


@pytest.fixture(autouse=True)
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "judged", JudgedConfig)


def config_of(*words: str, preset: str = "tiny") -> RunConfig:
    mine = ["train.mine.objective=judged", "trainings=mine", "train.mine.batch=16"]
    return load(RunConfig, preset, [*mine, *words])


def shapes(config: RunConfig) -> dict[tuple[str, ...], tuple[float, ...]]:
    return {
        tuple(group.rewards): (group.need.workers, group.need.num_cpus, group.need.num_gpus)
        for group in config.reward_groups("mine")
    }


def test_actors_say_what_the_worker_says_of_all_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same embeddings, by whichever group, and for each choice of names.

    Each holder has a copy of the model of its own, and where weights lie in memory moves the last
    bit of a product on some processors.
    """
    rewards = {"level": LevelConfig(), "pickscore": PICKSCORE, "again": PICKSCORE.model_copy()}
    training = JudgedConfig(reward_actors=2)
    whole = RewardGroup(rewards, Resources(workers=2), None, "pickscore")
    (group,) = reward_groups(training, rewards)
    assert group == whole
    apart = [whole._replace(rewards={name: rewards[name]}, embeds=None) for name in rewards]
    apart[1] = apart[1]._replace(embeds="pickscore")
    held: dict[str, WorkerScores] = {}
    calls: list[str] = []

    def ask(handles: Any, arguments: Any, *, name: str, first: int) -> list[Scores]:
        assert first == 1
        calls.extend(name for _ in arguments)
        scores = held.setdefault(name, hold(handles))
        return [scores(*each) for each in arguments]

    monkeypatch.setattr(pooled_scores, "answers_of", ask)
    images_NHWC = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)
    prompts = [f"a picture of {n}" for n in range(11)]
    for names in ([*rewards], ["again"], ["level"]):
        expected = WorkerScores(rewards)(images_NHWC, prompts, names)
        for groups in ([whole], apart):
            calls.clear()
            pooled = PooledScores([(each, each) for each in groups], 1)
            found = pooled(images_NHWC, prompts, names)
            assert [*found.by_reward] == names
            for name in names:
                torch.testing.assert_close(
                    found.by_reward[name], expected.by_reward[name], rtol=1e-6, atol=0
                )
            torch.testing.assert_close(
                found.embedding_ND, expected.embedding_ND, rtol=1e-6, atol=1e-7
            )
        asked = set(calls)
        assert asked == {each.name for each in apart if {*names} & {*each.rewards} or each.embeds}


def test_small_rewards_share_actors_and_large_ones_and_environments_are_alone() -> None:
    rewards = "train.mine.rewards={pickscore=1, hpsv3=1, imagereward=0.5, deqa=1}"
    held_out = "train.mine.held_out=aesthetic"
    resources = [
        "pickscore.resources.num_gpus=0.25",
        "rewards.imagereward.resources.num_cpus=2",
        "rewards.aesthetic.resources.num_gpus=0.5",
        "rewards.hpsv3.resources.num_gpus=1",
    ]
    assert shapes(config_of(rewards, held_out, *resources)) == {}  # in the workers
    config = config_of(rewards, held_out, "train.mine.reward_actors=3", *resources)
    assert shapes(config) == {
        ("pickscore", "imagereward", "aesthetic"): (3, 2, 0.75),
        ("hpsv3",): (3, 1, 1),
        ("deqa",): (3, 1, 0),
    }
    pins = [group.runtime_env for group in config.reward_groups("mine")]
    assert pins[:2] == [None, None] and pins[2] is not None
    assert "transformers==4.36.1" in pins[2]["pip"]
    # What does not fit one GPU is apart.
    full = config_of(
        "train.mine.rewards={pickscore=1, imagereward=1}",
        "train.mine.reward_actors=1",
        "pickscore.resources.num_gpus=0.75",
        "rewards.imagereward.resources.num_gpus=0.5",
    )
    assert shapes(full) == {("pickscore",): (1, 0.5, 0.75), ("imagereward",): (1, 1, 0.5)}


def test_workers_of_several_kinds_hold_what_all_of_them_hold() -> None:
    both = all_of(
        [
            Resources(workers=3, num_cpus=2, num_gpus=1, memory_gib=4),
            Resources(workers=2, num_cpus=0.5, num_gpus=0.25),
        ]
    )
    assert (both.workers, both.num_cpus, both.num_gpus, both.memory_gib) == (1, 7.0, 3.5, 12.0)


def test_what_can_never_work_is_refused_with_the_key() -> None:
    def check(*words: str) -> None:
        config = config_of(*words)
        training, rewards = config.train["mine"], {"pickscore": config.pickscore}
        if "deqa" in training.rewards:  # type: ignore[attr-defined]
            rewards = {"deqa": config.rewards["deqa"]}  # type: ignore[dict-item]
        check_actors(training, rewards, key="train.mine")

    # 16 images over two workers, four at a time: two batches each.
    words = ["train.mine.resources.workers=2", "pickscore.resources.batch=4"]
    check(*words, "train.mine.reward_actors=4")
    with pytest.raises(InputError, match=r"^train\.mine\.reward_actors=5: at most 4 .* 8 images"):
        check(*words, "train.mine.reward_actors=5")
    with pytest.raises(InputError, match=r"^train\.mine\.reward_actors=0: deqa .* set .*actors=1$"):
        check("train.mine.rewards={deqa=1}")
    check("train.mine.rewards={deqa=1}", "train.mine.reward_actors=1")
    backprop = RewardedConfig(objective="by gradient", reward_actors=1)
    with pytest.raises(InputError, match=r"reward_actors=1: objective=by gradient needs the grad"):
        check_actors(backprop, {"pickscore": PICKSCORE}, key="train.mine")


WORDS = [
    "train.mine.resources.workers=2",
    "train.mine.reward_actors=3",
    "pickscore.resources.num_cpus=1",
]


def test_a_machine_that_has_workers_or_actors_but_not_both_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config_of(*WORDS)
    steps = [step for step in Run(config).steps if step.trains]
    needs = {
        key: (need.workers, count) for key, need, count in execute.needs_of_step(config, steps[0])
    }
    assert needs == {
        "train.mine.resources": (2, 2),
        "train.mine: reward actors (pickscore)": (3, 3),
    }
    monkeypatch.setenv(cluster.ALONE, "1")
    monkeypatch.setattr(execute, "idle_gpus", lambda asked: "")
    waiting = [dataclasses.replace(step, ledgers=lambda: ()) for step in steps]
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 5.0})
    execute._require_nodes(config, waiting)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    with pytest.raises(InputError, match=r"^train\.mine with its rewards: needs 5 cores \(4 on "):
        execute._require_nodes(config, waiting)


def test_planning_tells_of_both(tmp_path: Any) -> None:
    def lines(*words: str) -> dict[str, str]:
        run = Run(config_of(f"storage={tmp_path}", *words))
        told = outlook(run, estimate=lambda *_: None)
        return {line[:12].strip(): line[13:] for line in told}

    assert "at once" not in lines()
    gpus = ["train.mine.resources.num_gpus=1", "pickscore.resources.num_gpus=0.5"]
    assert lines(*WORDS)["at once"] == "mine: 2 workers, 3 actors (pickscore); 5 CPU cores"
    said = lines(*WORDS, *gpus)["at once"]
    assert said == "mine: 2 workers, 3 actors (pickscore); 5 CPU cores, 3.5 GPUs"


def test_rows_of_a_table_find_room_for_both_and_gpu_hours_count_both() -> None:
    config = config_of(
        *WORDS, "train.mine.resources.num_gpus=1", "pickscore.resources.num_gpus=0.5"
    )
    run = Run(config)
    assert sweep._need(run, "num_cpus") == 5
    assert sweep._need(run, "num_gpus") == 3.5
    settings: Mapping[str, Any] = config.model_dump()
    assert cost._gpus(settings, "mine") == 3.5
    assert cost._gpus(settings, "cache") == 0
    plain = config_of("train.mine.resources.num_gpus=1").model_dump()
    assert cost._gpus(plain, "mine") == 1


def test_memory_of_a_gpu_is_predicted_for_actors() -> None:
    given = ["source.path=photos", "evaluate.prompts=prompts.txt", "saliency.weights=u2net.pth"]
    config = config_of(*given, "train.mine.reward_actors=2", preset="sd15")
    actors = predicted_gib(config)["mine reward actors (pickscore)"]
    # The same model and batch scores the images of an evaluation; two actors on halves share one.
    need = config.reward_groups("mine")[0].need
    sharing = min(2, int(1 / need.num_gpus))
    weights = 0.986e9 * 4 / 2**30
    batch = config.pickscore.resources.batch * 0.019
    assert actors == pytest.approx(sharing * (weights + batch + 1.5), abs=0.1)
    assert reward_groups(config.train["mine"], {}) == []
