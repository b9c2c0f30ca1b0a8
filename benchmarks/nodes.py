"""How pairs made on 2 to 16 nodes compare with N times what the first number of nodes makes.

The real scheduling on models that sleep (simulation.py), on logical nodes of one machine: each a
Ray node of its own with one core and one GPU, by its word. Waves and blocks are the defaults'.
Sixteen nodes are some 60 processes and several GiB of memory; they take minutes to start here.

    python benchmarks/nodes.py [--nodes 1 2 4 8 16] [--seconds 0.25] [--wanted 512]
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from simulation import PASSING, PHOTOGRAPHS, Outcome, run

from raypref.engine.cluster import start_ray

STORE = 100 * 2**20  # bytes of a node's object store; only counts pass through


@contextmanager
def cluster(nodes: int) -> Iterator[None]:
    """A head that does no work and nodes with a GPU each."""
    head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            made.add_node(wait=False, num_cpus=1, num_gpus=1, object_store_memory=STORE)
        made.wait_for_nodes(timeout=600)
        ray.init(made.address, logging_level=logging.ERROR, log_to_driver=False)
        start_ray()
        yield
    finally:
        ray.shutdown()
        made.shutdown()


def rate(outcome: Outcome) -> float:
    """Pairs a second from when every worker is at work to when the last one ends."""
    firsts: dict[int, float] = {}
    for batch in outcome.batches:
        firsts.setdefault(batch.worker, batch.start)
    start, end = max(firsts.values()), max(batch.end for batch in outcome.batches)
    return sum(
        batch.rows * max(0.0, batch.end - max(batch.start, start)) / (batch.end - batch.start)
        for batch in outcome.batches
    ) / (end - start)


def main() -> None:
    """Run on each number of nodes and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=0.25, help="a pair")
    parser.add_argument("--wanted", type=int, default=0, help="pairs; 0: 128 a node")
    given = parser.parse_args()
    print(f"{given.seconds} s a pair; efficiency: of pairs made, of those needed, with the start")
    print("| nodes | wanted | needed | made | seconds | pairs/s | efficiency | needed | start |")
    print("|---|---|---|---|---|---|---|---|---|")
    first: list[float] = []
    for nodes in given.nodes:
        wanted = given.wanted or 128 * nodes
        photographs = max(PHOTOGRAPHS, int(4 * wanted * PHOTOGRAPHS / PASSING))
        with tempfile.TemporaryDirectory() as folder, cluster(nodes):
            outcome = run(
                Path(folder), given.seconds, workers=nodes, photographs=photographs, top_k=wanted
            )
        assert len(outcome.selected) == wanted
        needed = int(outcome.selected[-1]) + 1  # ids are ranks
        rates = (rate(outcome), needed / outcome.span, needed / outcome.took)
        each = [value / nodes for value in rates]
        first = first or each
        efficiency = " | ".join(f"{now / one:.2f}" for now, one in zip(each, first, strict=True))
        print(
            f"| {nodes} | {wanted} | {needed} | {outcome.made} | {outcome.span:.0f} "
            f"of {outcome.took:.0f} | {rates[0]:.1f} | {efficiency} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
