"""Rewards in actors on two nodes: the scores of the worker to the bit, also where an actor dies."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from raypref.align.pooled_scores import HeldRewards, PooledScores
from raypref.align.reward_groups import RewardGroup
from raypref.core.config import Resources
from raypref.engine.actors import Actors
from raypref.rewards.config import RewardConfig
from raypref.rewards.pickscore import PickScoreConfig

PICKSCORE = PickScoreConfig(
    model="tiny:pickscore", processor="tiny:pickscore", resources=Resources(batch=4)
)
COUNT = 22  # five batches and a half


class Noting:
    """Rewards that note where and how often they score; the process ends where a file is not."""

    def __init__(self, rewards: Mapping[str, RewardConfig], folder: Path) -> None:
        self.held, self.folder = HeldRewards(rewards), folder

    def __call__(self, images_NHWC: np.ndarray, prompts: list[str]) -> dict[str, np.ndarray]:
        if prompts[0] == "image 8" and not (self.folder / "died").exists():
            (self.folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        node = ray.get_runtime_context().get_node_id()
        (self.folder / f"{node}-{prompts[0]}").touch()
        return self.held(images_NHWC, prompts)


@pytest.fixture(scope="module")
def nodes() -> Iterator[None]:
    """Two nodes of one core each."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="r") as folder:  # short, for its sockets
        about = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
        own = {"include_dashboard": False, "temp_dir": folder}
        cluster = Cluster(initialize_head=True, head_node_args={**about, **own})
        cluster.add_node(**about)
        ray.init(address=cluster.address, log_to_driver=False)
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it
        yield
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def images() -> tuple[np.ndarray, list[str]]:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)
    return pixels, [f"image {n}" for n in range(COUNT)]


def test_scores_are_those_of_the_worker_and_a_lost_actor_costs_a_retry(
    nodes: None, images: tuple[np.ndarray, list[str]], tmp_path: Path
) -> None:
    rewards = {"pickscore": PICKSCORE}
    group = RewardGroup(rewards, Resources(workers=2), None)
    actors = Actors(partial(Noting, rewards, tmp_path), group.need, runtime_env=None)

    @ray.remote(num_cpus=0)
    def asked(rank: int) -> dict[str, np.ndarray]:
        """A training's worker, in a process of its own."""
        scored = PooledScores([(group, actors.handles)], rank=rank)(*images)
        return {name: scores_N.numpy() for name, scores_N in scored.items()}

    ours = HeldRewards(rewards)(*images)["pickscore"]
    for scores in ray.get([asked.remote(rank) for rank in (0, 1)]):
        np.testing.assert_array_equal(scores["pickscore"], ours)
    assert (tmp_path / "died").exists()
    seen = {path.name.split("-")[0] for path in tmp_path.glob("*-*")}
    assert len(seen) == 2, "both nodes"
    actors.close()
