"""Blocks onto Ray Data: a pool of actors that stays for the passes that follow, or tasks.

An actor pool is one Ray Data execution that is fed block by block. It ends when a pass needs
workers of another shape, not when a pass ends: the processes, their imports, and models that the
next pass uses too, stay.
"""

from __future__ import annotations

import gc
import itertools
import queue
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray import cloudpickle
from ray.data import ActorPoolStrategy, Datasource, ReadTask, TaskPoolStrategy
from ray.data.block import BlockMetadata
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raypref.core.config import Resources
from raypref.engine import loaded
from raypref.engine.board import Board
from raypref.engine.worker import Worker

PATIENCE = 5.0  # seconds without an answer after which lost nodes are looked for


def run_tasks(
    worker: Worker, blocks: Sequence[pa.Table], *, size: int, runtime_env: Mapping[str, Any] | None
) -> Iterator[dict[str, Any]]:
    """Send blocks through stateless tasks on every free core; yields what each answers.

    Args:
        worker: pickled into every task.
        blocks: in the order in which they should be begun.
        size: rows of a block.
        runtime_env: Ray's description of an environment of the tasks' own.
    """
    dataset = ray.data.from_arrow(list(blocks)).map_batches(
        worker,
        compute=TaskPoolStrategy(),
        batch_size=size,
        **_remote(worker.need, runtime_env),
    )
    dataset.context.execution_no_progress_timeout_s = -1  # a block may take its time
    yield from dataset.iter_rows()


def _remote(need: Resources, runtime_env: Mapping[str, Any] | None) -> dict[str, Any]:
    """What `map_batches` is told of a worker."""
    return {
        "batch_format": "pyarrow",
        "zero_copy_batch": True,
        "num_cpus": need.num_cpus,
        "num_gpus": need.num_gpus or None,
        "memory": int(need.memory_gib * 2**30) or None,
        "runtime_env": dict(runtime_env) if runtime_env else None,
    }


def at_once(need: Resources, *, ranked: bool) -> int:
    """Blocks that an actor has in hand: with a GPU, some are read while it works on another.

    Of ranked blocks the fewest: those begun after the last one needed are made for nothing.
    """
    readers = 1 if ranked else max(1, int(need.num_cpus))
    return 1 + readers if need.num_gpus else 1


class Pool:
    """A started pool of actors.

    Args:
        need: how many there are and what each holds.
        concurrency: blocks that each has in hand.
        runtime_env: Ray's description of an environment of their own.
    """

    def __init__(
        self, need: Resources, *, concurrency: int, runtime_env: Mapping[str, Any] | None
    ) -> None:
        self.alive = True
        self.started = False  # once one has answered
        # On the driver's node: on a host that is lost they would take blocks with them.
        node = ray.get_runtime_context().get_node_id()
        here = NodeAffinitySchedulingStrategy(node, soft=False)
        self._board = Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        feed = ray.data.read_datasource(
            _Feed(self._board),
            override_num_blocks=1,
            num_cpus=0,
            label_selector={"ray.io/node-id": node},
        )
        self._dataset = feed.map_batches(
            _Host,
            fn_constructor_args=(self._board,),
            compute=ActorPoolStrategy(
                size=need.workers,
                max_concurrent_calls_per_actor=concurrency,
                # Ray would queue as many more: the best blocks in the worker that starts first.
                max_tasks_in_flight_per_actor=concurrency,
                enable_true_multi_threading=True,  # our own lock guards the models
            ),
            batch_size=1,
            **_remote(need, runtime_env),
        )
        # Blocks are handed on as they come, not gathered, and none may come for hours.
        self._dataset.context.target_max_block_size = 1
        self._dataset.context.target_min_block_size = 1
        self._dataset.context.execution_no_progress_timeout_s = -1
        self._nodes = _nodes()
        self._answers: queue.Queue[pa.Table | BaseException | None] = queue.Queue()
        self._drain = threading.Thread(target=self._collect, daemon=True)
        self._drain.start()

    def run(self, worker: Worker, blocks: Sequence[pa.Table]) -> Iterator[dict[str, Any]]:
        """Send the blocks of one pass through the actors; yields what each answers.

        Args:
            worker: what to do with them.
            blocks: in the order in which they should be begun.
        """
        # Stages by themselves: a pass with the same ones goes on with the models as they are.
        stages = cloudpickle.dumps((worker.stages, [branch.stages for branch in worker.branches]))
        data = [cloudpickle.dumps(block) for block in blocks]
        self.alive = False  # until all are done: what is left of a pass that fails is not wanted
        first = ray.get(self._board.post.remote(stages, cloudpickle.dumps(worker), data))
        left = set(range(first, first + len(blocks)))
        ended = False
        while left:
            try:
                answers = self._answers.get(timeout=PATIENCE)
            except queue.Empty:
                # The worker of a lost node waits for cores that idle ones hold: Ray Data ends those
                # once it knows that no block comes after these. This pool serves no other pass.
                if not ended and self._nodes - _nodes():
                    ray.get(self._board.end.remote())
                    ended = True
                continue
            if not isinstance(answers, pa.Table):
                raise answers or RuntimeError("the pool of workers ended")
            self.started = True
            for answer in answers.to_pylist():
                if answer["block"] in left:  # else Ray did a block again
                    left.remove(answer["block"])
                    yield answer
        self.alive = not ended

    def close(self) -> None:
        """End the actors; blocks that are not begun are left out."""
        if self.alive:
            ray.get(self._board.end.remote())
        else:
            ray.kill(self._board)  # the feed fails, and with it the execution
        self.alive = False
        self._drain.join(timeout=30)

    def _collect(self) -> None:
        """Hand on what comes out of the execution."""
        try:
            for bundle in self._dataset.iter_internal_ref_bundles():
                for ref in bundle.block_refs:
                    self._answers.put(ray.get(ref))
            self._answers.put(None)
        except BaseException as error:  # raised where the answers are read
            self._answers.put(error)


def _nodes() -> set[str]:
    """Ids of the nodes that are alive."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


class _Feed(Datasource):
    """The blocks on a board, as they come."""

    def __init__(self, board: Any) -> None:
        super().__init__()
        self.board = board

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown."""
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """One task that reads to the end."""
        board = self.board

        def read() -> Iterator[pa.Table]:
            # By number: a task that Ray starts again must yield the same once more.
            for number in itertools.count():
                if (block := ray.get(board.block.remote(number))) is None:
                    return
                data = pa.array([block], pa.large_binary())
                yield pa.table({"number": [number], "block": data})

        return [
            ReadTask(
                read,
                BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None),
            )
        ]


class _Host:
    """An actor: does with a block what its pass says."""

    def __init__(self, board: Any) -> None:
        self.board = board
        self.numbers = range(0)  # blocks of the pass at hand
        self.stages = b""
        self.worker: Worker | None = None
        self.used: list[Any] = []  # models of the pass before that this one uses too
        self.switching = threading.Lock()

    def __call__(self, batch: pa.Table) -> pa.Table:
        number, block = batch["number"][0].as_py(), batch["block"][0].as_py()
        with self.switching:
            if number >= self.numbers.stop:
                self._switch()
        if number not in self.numbers:  # of a pass that has ended
            return pa.table({"block": [number]})
        assert self.worker is not None
        answer = self.worker(cloudpickle.loads(block))
        return answer.append_column("block", pa.array([number]))

    def _switch(self) -> None:
        """Take over the next pass; models that it uses too stay loaded."""
        first, end, stages, pickled = ray.get(self.board.current.remote())
        worker: Worker = cloudpickle.loads(pickled)
        if self.worker is not None and stages == self.stages:
            worker.take_over(self.worker)
        else:
            self.used, self.worker = loaded.used_by(worker.all_stages), None
            free_memory()
        self.numbers, self.stages, self.worker = range(first, end), stages, worker


def free_memory() -> None:
    """Return the memory of models that nobody holds any more."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
