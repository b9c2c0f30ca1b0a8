"""What a plan costs, by what earlier runs in the storage took; and the plan as text."""

from __future__ import annotations

import json
import statistics
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyarrow import fs as pafs

from raypref.ablate.plan import STEPS, PlannedRow, PlannedStep, distinct_steps
from raypref.core.ledger import absolute, filesystem, join, read_bytes
from raypref.core.messages import without_secrets
from raypref.core.progress import duration
from raypref.pairs.config import CANDIDATES, TWINS
from raypref.pairs.kinds import kind_of


def describe_plan(rows: list[PlannedRow], rates: Rates) -> str:
    """The plan for people: rows, distinct steps, what is done, what the rest costs."""
    steps = distinct_steps(rows)
    lines = []
    for table in dict.fromkeys(row.table for row in rows):
        lines.append(f"{table}:")
        own = [row for row in rows if row.table == table]
        width = max(len(row.label) for row in own)
        for row in own:
            needs = row.problem or " > ".join(step.name for step in row.steps)
            lines.append(f"  {row.label:<{width}}  seed {row.seed}  {needs}")
    lines += ["", f"{'step':<13} {'distinct':>8} {'done':>5} {'time':>13} {'GPU time':>13}  disk"]
    every: list[Cost | None] = []
    for name in dict.fromkeys(step.step.name for step in steps):
        same = [step for step in steps if step.step.name == name]
        todo = [step for step in same if not step.step.done]
        costs = [rates.cost(step) for step in todo]
        every += costs
        lines.append(f"{name:<13} {len(same):>8} {len(same) - len(todo):>5} {_costs(costs)}")
    done = len(steps) - len(every)
    lines.append(f"{'all':<13} {len(steps):>8} {done:>5} {_costs(every)}")
    if any(cost is not None for cost in every):
        lines.append(f"Time: one step after another, by what runs in {rates.storage} took.")
    if None in every:
        lines.append(
            f"not measured: no run in {rates.storage} did such a step with this base model and "
            "number of GPUs; a run of one row measures it."
        )
    trained = [step for step in steps if step.trains]
    todo = [step for step in trained if not step.step.done]
    lines += [
        "",
        f"distinct models to train: {len(trained)}, of which done: {len(trained) - len(todo)}",
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class Cost:
    """What a step takes."""

    seconds: float
    gpus: float
    bytes: float


def _costs(costs: list[Cost | None]) -> str:
    """Sums over steps; where some are not measured, the sum of the others with a plus sign."""
    known = [cost for cost in costs if cost is not None]
    if costs and not known:
        return f"{'not measured':>13} {'not measured':>13}  not measured"
    more = " +" if len(known) < len(costs) else ""
    time = _time(sum(cost.seconds for cost in known)) + more
    gpu = _time(sum(cost.seconds * cost.gpus for cost in known)) + more
    return f"{time:>13} {gpu:>13}  {sum(cost.bytes for cost in known) / 2**20:.0f} MiB{more}"


def _time(seconds: float) -> str:
    return duration(seconds) if seconds else "0"


class Rates:
    """What steps of earlier runs in the storage took, by their `run.json`.

    A rate serves steps of the same name, base model and number of GPUs, and pairs of the same kind.
    It is the median over runs, by unit of the step: an input, a painting where pairs are of
    candidates, a row, a sample of training, an image.
    """

    def __init__(self, storage: str) -> None:
        self.storage = without_secrets(storage)
        self.measured: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
        self.inputs: dict[str, float] = {}  # `source.path` to how many inputs it has
        for config, record in recorded_runs(storage):
            for name, step in record.get("steps", {}).items():
                if not step.get("amount"):
                    continue
                units = _units(config, name, step["amount"])
                if name == "pairs":
                    self.inputs[str(config.get("source", {}).get("path"))] = step["amount"]
                taken = (step["seconds"] / units, step.get("bytes", 0) / units)
                self.measured.setdefault(_kind(config, name), []).append(taken)

    def cost(self, planned: PlannedStep, amount: float | None = None) -> Cost | None:
        """What a step of so many units would take; None where nothing like it was measured."""
        config = planned.run.config.model_dump()
        name = planned.step.name
        taken = self.measured.get(_kind(config, name))
        amount = _amount(planned) if amount is None else amount
        if amount is None and name == "pairs":
            amount = self.inputs.get(planned.run.config.source.path)
        if not taken or amount is None:
            return None
        units = _units(config, name, amount)
        seconds, size = (statistics.median(values) for values in zip(*taken, strict=True))
        return Cost(seconds * units, _gpus(config, name), size * units)


def recorded_runs(storage: str) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Settings and `run.json` of the runs and rows in a storage."""
    fs, root = filesystem(absolute(storage))
    folders = [root]
    for _ in range(3):  # <storage>/<run>/<table>/<row>
        folders = [
            found.path
            for folder in folders
            for found in fs.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
            if found.type == pafs.FileType.Directory and found.base_name != STEPS
        ]
        for folder in folders:
            below = folder.removeprefix(root).strip("/")
            place = folder if "://" not in storage else join(storage, below)
            record, config = read_bytes(join(place, "run.json")), None
            if record is not None:
                config = read_bytes(join(place, "config.toml"))
            if record is not None and config is not None:
                settings = tomllib.loads(config.decode())
                if isinstance(settings.get("train", {}), dict):  # else of an earlier version
                    yield settings, json.loads(record)


def _section(config: Mapping[str, Any], step: str) -> Mapping[str, Any]:
    """The settings of a step that say how many workers it has."""
    names = {"evaluation": "evaluate", "pairs": "perturb"}
    section: Mapping[str, Any] = config.get(names.get(step, step), {})
    trainings = config.get("train", {})
    if step not in trainings:
        return section
    own: Mapping[str, Any] = trainings[step]
    return {**_section(config, own["like"]), **own} if own.get("like") else own


def workers_of(config: Mapping[str, Any], name: str) -> int:
    """Workers of a pass of curation; 1 where it runs as tasks on every free core."""
    section = {"scored": "pickscore", "twins": "perturb"}.get(name, "")
    return max(1, int(config.get(section, {}).get("resources", {}).get("workers", 1)))


def gpus_of(config: Mapping[str, Any], name: str) -> float:
    """The share of a GPU that a worker of a curation pass holds; 1 where no worker holds a GPU."""
    if not float(config.get("perturb", {}).get("resources", {}).get("num_gpus", 0)):
        return 1.0
    sections = {"scored": ("pickscore",), "twins": ("saliency", "perturb", "pickscore")}
    held = (config.get(s, {}).get("resources", {}) for s in sections.get(name, ()))
    return min(1.0, sum(float(resources.get("num_gpus", 0)) for resources in held))


def _units(config: Mapping[str, Any], step: str, amount: float) -> float:
    """How many units of work are in so many inputs, steps, ... of a step."""
    pairs = config.get("pairs", {})
    if step == "pairs" and pairs.get("kind") == CANDIDATES:
        painted = min(pairs.get("limit") or amount, amount)
        return painted * int(config["candidates"]["count"])
    return amount * _batch(config, step)


def _batch(config: Mapping[str, Any], step: str) -> int:
    return int(_section(config, step).get("batch", 1)) if step in config.get("train", {}) else 1


def _gpus(config: Mapping[str, Any], step: str) -> float:
    resources = _section(config, step).get("resources", {})
    each = float(resources.get("num_gpus", 0))
    count = int(resources.get("workers", 1))
    return count * (1.0 if step == "pairs" and each else each) + _reward_gpus(config, step)


def _reward_gpus(config: Mapping[str, Any], step: str) -> float:
    """GPUs of the actors that hold the rewards of a training."""
    own = _section(config, step) if step in config.get("train", {}) else {}
    sections = {"pickscore": config.get("pickscore", {}), **config.get("rewards", {})}
    sections |= sections.get("heads", {})
    names = {*own.get("rewards", ()), *own.get("held_out", ())}
    shares = [sections.get(name, {}).get("resources", {}).get("num_gpus", 0) for name in names]
    return int(own.get("reward_actors", 0)) * sum(min(1.0, float(share)) for share in shares)


def _kind(config: Mapping[str, Any], step: str) -> tuple[Any, ...]:
    of = (config.get("pairs", {}).get("kind", TWINS),) if step == "pairs" else ()
    return step, config.get("base", {}).get("model"), _gpus(config, step), *of


def _amount(planned: PlannedStep) -> float | None:
    """How many units of work a step is."""
    run, name = planned.run, planned.step.name
    if name == "pairs":
        index = run.curation.index
        return index.count() if index.state() == "complete" else run.config.source.limit or None
    if name == "cache":
        return kind_of(run.config).asked(run.config) or None
    if name in run.trained:
        return run.alignment.trainings[name].steps
    if name != "evaluation":
        return 1
    # Images of the row's own model: the base's are made once for all rows.
    return len(run.evaluation.prompts) * len(run.config.evaluate.seeds)
