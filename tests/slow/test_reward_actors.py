"""Rewards in actors on two nodes: the scores of the worker, also where an actor dies."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from raypref.align.image_scores import Scores
from raypref.align.pooled_scores import PooledScores
from raypref.align.reward_groups import RewardGroup, hold
from raypref.core.config import Resources
from raypref.engine.actors import Actors
from raypref.rewards.pickscore import PickScoreConfig

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(1800)]

PICKSCORE = PickScoreConfig(
    model="tiny:pickscore", processor="tiny:pickscore", resources=Resources(batch=4)
)
COUNT = 22  # five batches and a half


class Noting:
    """Rewards that note on which node they score; a process ends at its first sight of an image."""

    def __init__(self, group: RewardGroup, folder: Path) -> None:
        self.held, self.folder = hold(group), folder

    def __call__(
        self, images_NHWC: np.ndarray, prompts: Sequence[str], names: Sequence[str]
    ) -> Scores:
        if prompts[0] == "image 8" and not (self.folder / "died").exists():
            (self.folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        node = ray.get_runtime_context().get_node_id()
        (self.folder / f"{node}-{prompts[0]}").touch()
        return self.held(images_NHWC, prompts, names)


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
    group = RewardGroup({"pickscore": PICKSCORE}, Resources(workers=2), None, "pickscore")
    actors = Actors(partial(Noting, group, tmp_path), group.need, runtime_env=None)

    @ray.remote(num_cpus=0)
    def asked(pickled: bytes, rank: int) -> Scores:
        """A training's worker: a process of its own, which gets its job as bytes."""
        scored_by = ray.cloudpickle.loads(pickled)
        return PooledScores(scored_by, rank)(*images, ["pickscore"])

    expected = hold(group)(*images, ["pickscore"])
    pickled = ray.cloudpickle.dumps(((group, actors.handles),))
    for scores in ray.get([asked.remote(pickled, rank) for rank in (0, 1)]):
        for found, ours in (
            (scores.by_reward["pickscore"], expected.by_reward["pickscore"]),
            (scores.embedding_ND, expected.embedding_ND),
        ):
            torch.testing.assert_close(found, ours, rtol=1e-6, atol=1e-7)
    assert (tmp_path / "died").exists()
    nodes_seen = {path.name.split("-")[0] for path in tmp_path.glob("*-*")}
    assert len(nodes_seen) == 2
    actors.close()
