"""Three hosts, an object store that is out of order now and then, and hosts that die."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hosts
import pytest
from hosts import Host, ray_node
from object_store import BUCKET, BURST, SECRET, ObjectStore, object_store
from safetensors.torch import load

from jobs import RAY, REPOSITORY, STEPS, TOKEN, WHOLE, running
from raypref.core.ledger import Ledger, join, read_bytes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.chaos,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not hosts.possible(), reason="may not make network namespaces here"),
]

RUN = join(BUCKET, "runs", "run")
TWINS, CHECKPOINT = "curate/twins/part-", "stage1/checkpoints/step-"
LOOK = 0.2  # seconds between two looks into the store
SETTINGS = (
    *WHOLE,
    "saliency.resources.workers=2",
    "train.stage1.resources.workers=2",
    "train.stage1.resources.num_cpus=1",  # a host each
    "train.stage1.min_workers=1",
    'trainings=["stage1"]',
    "run=run",
    *("evaluate.limit=1", "evaluate.seeds=[1]"),
    *("metrics.rewards=[]", "metrics.distance=false", "metrics.critic=''"),
    *("train.stage1.sample_every=0", "tracking.uri=none"),
)


@dataclass(frozen=True)
class Outcome:
    """What came of the disturbed run."""

    output: str
    costs: dict[str, float]  # seconds from each kill to the next finished piece of work
    store: ObjectStore


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """The same run on three hosts, of which one dies in curation and one in training."""
    folder = tmp_path_factory.mktemp("hosts")
    with ExitStack() as stack:
        stack.enter_context(hosts.bridge())
        head, first, second = machines = [Host(number) for number in (1, 2, 3)]
        for machine in machines:
            stack.callback(machine.remove)
        store = stack.enter_context(object_store(hosts.GATEWAY))
        env = {**store.variables, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        # Seconds that Ray Train waits for a lost host before it starts with fewer workers.
        env["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "15"

        def node(machine: Host, *arguments: str) -> None:
            stack.enter_context(ray_node(machine, *arguments, folder=folder, env=env))

        node(head, "--head", "--port=6379", f"--dashboard-host={head.address}", "--num-cpus=0")
        for machine in (first, second):
            node(machine, f"--address={head.address}:6379", "--num-cpus=1")

        costs = {}
        killings = {
            # the host to kill, its worker, the files counted, how many are enough, and the file
            # that must not exist yet
            "curation": (first, "MapWorker", TWINS, 2, "curate/twins/.manifest.json"),
            "training": (second, "RayTrainWorker", CHECKPOINT, 1, f"{CHECKPOINT}{STEPS:08d}"),
        }
        with submitted(head, folder=folder) as job:
            for part, (victim, worker, counted, enough, last) in killings.items():
                job.wait_for(
                    lambda: len(latest(store, counted)) >= enough and victim.runs(worker),  # noqa: B023
                    every=LOOK,
                )
                victim.kill()
                before, began = latest(store, counted), time.monotonic()
                assert not latest(store, last), "the host died too late to test anything"
                job.wait_for(lambda: latest(store, counted) != before, every=LOOK)  # noqa: B023
                costs[part] = time.monotonic() - began
                if part == "curation":
                    node(victim, f"--address={head.address}:6379", "--num-cpus=1")
            assert job.wait() == 0, job.output
            yield Outcome(job.output, costs, store)


def submitted(head: Host, *, folder: Path) -> Any:
    """`ray job submit` of the whole job, from the head."""
    return running(
        *(*head.inside, RAY, "job", "submit", f"--address=http://{head.address}:8265"),
        *(f"--working-dir={REPOSITORY}", "--", "python", "jobs/full_pipeline.py", *SETTINGS),
        f"storage={join(BUCKET, 'runs')}",
        folder=folder,
        env=TOKEN,
    )


def latest(store: ObjectStore, prefix: str) -> set[str]:
    """Files of the run whose path begins so."""
    return {name for name in store.names() if name.startswith(f"runs/run/{prefix}")}


def test_pairs_and_lora_are_those_of_an_undisturbed_run(
    disturbed: Outcome, request: pytest.FixtureRequest
) -> None:
    """That one had a worker of each kind, on one host and a disk."""
    quiet = str(request.getfixturevalue("full")[0])  # may be made while this one is disturbed
    for part, seconds in disturbed.costs.items():
        print(f"a host lost in {part}: {seconds:.0f} s until the next piece of work was done")
    ours, theirs = (Ledger(join(run, "pairs"), {}).table().to_pylist() for run in (RUN, quiet))
    assert ours == theirs and len(ours) == 8
    name = "stage1/pytorch_lora_weights.safetensors"
    one, other = (load(read_bytes(join(run, name)) or b"") for run in (RUN, quiet))
    assert one.keys() == other.keys()
    for key in one:
        # Two workers add two halves of a gradient, one worker adds it in one go.
        assert one[key].allclose(other[key], rtol=0, atol=1e-6), key


def test_the_store_was_out_of_order(disturbed: Outcome) -> None:
    app = disturbed.store.app
    print(f"{app.refused} of {app.seen} requests were refused with 500 or 503")
    assert app.refused > 2 * BURST


def test_the_job_follows_and_keeps_the_secret(disturbed: Outcome) -> None:
    assert re.search(r"twins: \d+/\d+ rows", disturbed.output)
    assert f"Report: {RUN}/report/index.html" in disturbed.output
    assert SECRET not in disturbed.output
    files = disturbed.store.files(RUN)
    hidden = [uri for uri in files if uri.rsplit("/", 1)[-1].startswith(".")]
    assert not [uri for uri in hidden if not uri.endswith(".json")], "unfinished files"
    stored = dict(disturbed.store.contents())
    assert files and {uri.removeprefix(f"{BUCKET}/") for uri in files} <= stored.keys()
    for name, data in stored.items():
        assert SECRET.encode() not in data, name
