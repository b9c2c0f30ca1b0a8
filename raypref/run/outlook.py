"""What a job will do and what that takes: the lines that a job begins with, and `--dry-run`."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from raypref.align.reward_groups import all_of
from raypref.core.config import Section, flatten
from raypref.core.ledger import join
from raypref.core.messages import without_secrets
from raypref.core.progress import counted, duration
from raypref.core.schemes import is_embedded, scheme_of
from raypref.evaluate.generate import BASE
from raypref.evaluate.sets import DEFAULT_COUNT
from raypref.models.families.registry import INPAINTING
from raypref.models.hub import hub_id
from raypref.pairs.config import TWINS
from raypref.pairs.kinds import kind_of
from raypref.rewards.rewards import reward
from raypref.run.config import RunConfig
from raypref.run.execute import changes_of, command_of, is_part, needs_of_step, steps_lacking
from raypref.run.memory_plan import CARDS, latents_gib, predicted_gib, too_large
from raypref.run.pipeline import Run, Step

WIDTH = 100  # columns
MOST = 3  # names on a line
MUCH = 4  # GiB of latents that a worker's host may lack
LONG = ("steps", "evaluation", "GPU memory", "changed", "downloads", "note")  # may take two lines
PATHS = ("photographs", "labels", "page")
QUICK = ("card", "report")  # take seconds, and are written anew every time
DOWNLOADS = {"sd15": 12, "sd35m": 33, "sdxl": 22}  # GB of a preset's weights
EMBEDDED = (
    "these are small embedded models: the run checks your data, its scores mean nothing for your "
    "photographs"
)


class Expected(NamedTuple):
    """What a step takes, by earlier runs."""

    seconds: float
    bytes: float


# A step of a run, and how many units of work it is where that is known, to what it takes; None
# where nothing like it was measured.
Estimate = Callable[[Run, Step, float | None], Expected | None]


def outlook(run: Run, *, only: Collection[str] = (), estimate: Estimate) -> list[str]:
    """What a job will do, in at most 15 lines of 100 columns.

    Args:
        run: the run.
        only: names of the steps of this job; empty for all.
        estimate: what a step takes.

    Raises:
        InputError: the data or a setting is wrong.
    """
    states = step_states(run, only=only)
    steps = {step.name: step for step in run.steps}
    waiting = [steps[name] for name, state in states.items() if state != "done"]
    source = f"{kind_of(run.config).terms.input}s"
    told = {
        source: run.curation.described(),
        "steps": " > ".join(states),
        **_trainings(run.config),
        **_trained(run),
        **_painted(run, states),
        **_by_state(states),
        **_actors(run.config, waiting),
        **_needs(steps_lacking(run, only=only)),
        **_changed(run, [steps[name] for name, state in states.items() if state == "changed"]),
        **_expected(run, waiting, estimate),
        "GPU memory": _gpu_memory(run.config, waiting),
        **_host_memory(run, waiting),
        "downloads": _downloads(run, waiting),
    }
    if "report" in states:
        told["page"] = without_secrets(join(run.folder, "report", "index.html"))
    if shows_embedded_models(run.config):
        told["note"] = embedded_note(run.config)
    return [f"run folder   {without_secrets(run.folder)}", *_lines(told)]


def _lines(told: Mapping[str, str]) -> Iterator[str]:
    for name, text in told.items():
        line = f"{name:<12} {text}"
        if name in PATHS:  # to be opened or copied: whole, however long
            yield line
            continue
        yield from textwrap.wrap(
            line,
            WIDTH,
            subsequent_indent=" " * 13,
            max_lines=2 if name in LONG else 1,
            placeholder=" ...",
            break_on_hyphens=False,
        )


def step_states(run: Run, *, only: Collection[str] = ()) -> dict[str, str]:
    """The steps of a job: to do, half done, done, or changed (made with other settings)."""
    return {step.name: _state(step) for step in run.steps if is_part(step, only)}


def embedded_note(config: RunConfig) -> str:
    """What is said where photographs, or labelled images, go through the embedded models."""
    return EMBEDDED.replace("photographs", kind_of(config).terms.images)


def shows_embedded_models(config: RunConfig) -> bool:
    """Whether photographs of one's own go through the small embedded models."""
    models = (config.base.model, config.pickscore.model)
    return not is_embedded(config.source.path) and is_embedded(*models)


def _state(step: Step) -> str:
    states = {ledger.state() for ledger in step.ledgers()}
    if "stale" in states:
        return "changed"
    if states == {"complete"}:
        return "done"
    return "half done" if states - {"absent"} else "to do"


def _trainings(config: RunConfig) -> dict[str, str]:
    """Which trainings the kind of pairs has by default; nothing for photographs."""
    default = kind_of(config).trainings
    if config.pairs.kind == TWINS or config.trainings != default:
        return {}
    named = ", ".join(default)
    what = {
        "candidates": "Diffusion-DPO on candidates",
        "labelled": "Diffusion-DPO on labelled pairs",
        "images": "Diffusion-KTO on images",
        "prompts": "DiffusionNFT on images of the prompts",
    }
    return {"trainings": f"{named}, {what[config.pairs.kind]}; trainings=NAME names others"}


def _painted(run: Run, states: Collection[str]) -> dict[str, str]:
    """What a base that inpaints is evaluated on; nothing for others."""
    config = run.config
    if "evaluation" not in states or config.base.family not in INPAINTING:
        return {}
    if not config.evaluate.hole_files:
        return {
            "evaluation": "paints whole pictures from prompts; evaluate.holes=PATH paints holes"
        }
    return {"evaluation": f"paints {'; '.join(each.origin for each in run.evaluations.sets.all)}"}


def _trained(run: Run) -> dict[str, str]:
    """What is trained, where that is not a LoRA on the base as it is."""
    kind = run.config.base.quantise
    if not run.alignment.trainings or (run.config.lora.rank and not kind):
        return {}
    if kind:
        return {"trained": f"a LoRA on the network with its linear layers in {kind}"}
    chosen = run.config.trainings
    shared = [name for name in chosen if run.config.train[name].sharded]
    sharded = f"; sharded over its workers: {', '.join(shared)}" if shared else ""
    return {"trained": f"all weights of the network (lora.rank=0){sharded}"}


def _by_state(states: dict[str, str]) -> dict[str, str]:
    """Which steps are done or half done; nothing where none is."""
    found = {
        state: ", ".join(name for name, own in states.items() if own == state)
        for state in ("done", "half done")
    }
    return {state: names for state, names in found.items() if names}


def _actors(config: RunConfig, waiting: Iterable[Step]) -> dict[str, str]:
    """What trainings and their rewards hold at once, where rewards have actors of their own."""
    found = []
    for step in waiting:
        groups = config.reward_groups(step.name) if step.trains else []
        if groups:
            needs = [need for _, need, _ in needs_of_step(config, step)]
            held = all_of(needs)
            workers = counted(needs[0].workers, "worker")
            actors = [
                f"{counted(g.need.workers, 'actor')} ({', '.join(g.rewards)})" for g in groups
            ]
            both = {"CPU cores": held.num_cpus, "GPUs": held.num_gpus}
            asked = ", ".join(f"{count:g} {what}" for what, count in both.items() if count)
            found.append(f"{step.name}: {workers}, {', '.join(actors)}; {asked or 'no core'}")
    return {"at once": "; ".join(found)} if found else {}


def _needs(lacking: list[Step]) -> dict[str, str]:
    """The first step that must be done before, by another command."""
    first = next(iter(lacking), None)
    return {"needs first": f"{first.name} (raypref {command_of(first)})"} if first else {}


def _changed(run: Run, steps: Iterable[Step]) -> dict[str, str]:
    """What was made with other settings, told of the first step of all that were."""
    first = next(iter(steps), None)
    if first is None:
        return {}
    changes = changes_of(run, first)
    return {"changed": f"{first.name}: {changes}; take run=NEW, or --redo to replace it"}


def _expected(run: Run, waiting: list[Step], estimate: Estimate) -> dict[str, str]:
    """Minutes and disk, as far as steps like these were measured in the storage."""
    timed = [step for step in waiting if step.name not in QUICK]
    expected = {step.name: estimate(run, step, _amount(run, step)) for step in timed}
    found = [taken for taken in expected.values() if taken is not None]
    lacking = [name for name, taken in expected.items() if taken is None]
    free = _free_bytes(run.config.storage)
    if not timed:
        return {"time": "seconds: all is done but what is written anew every time"}
    if not found:
        time, disk = "not measured on this machine", "not measured"
        embedded = is_embedded(run.config.source.path) and is_embedded(run.config.base.model)
        if embedded and run.config.pairs.kind == TWINS:
            time += "; the demo took 4 min on 2 cores"
    else:
        but = f"; not measured: {_few(lacking)}" if lacking else ""
        time = f"{_minutes(sum(t.seconds for t in found))} by earlier runs here{but}"
        disk = f"about {_size(sum(t.bytes for t in found))}{' and more' if lacking else ''}"
    return {"time": time, "disk": disk + (f"; {_size(free)} free" if free is not None else "")}


def _minutes(seconds: float) -> str:
    """A rough time: `less than 10 s`, `about 43 s`, `about 12 min`, `about 2 h 14 min`."""
    if seconds < 10:
        return "less than 10 s"
    rounded = seconds if seconds < 60 else 60 * round(seconds / 60)
    return f"about {duration(rounded).removesuffix(' 0 s')}"


def _amount(run: Run, step: Step) -> float | None:
    """How many units of work a step is, where the settings alone do not say it."""
    if step.name == "pairs":
        return run.curation.entries()
    if step.name == "evaluation":
        return _images(run) * len(run.config.evaluate.seeds)
    return None


def _images(run: Run) -> int:
    """How many images per seed are lacking, of all models and prompt sets."""
    if not run.evaluations.sets.ready:  # as many held-out prompts as there can be
        models = [BASE, *run.evaluation.loras]
        return len(models) * (run.config.evaluate.limit or DEFAULT_COUNT)
    return sum(
        len(ev.prompts)
        for ev in run.evaluations.all
        for own in ev.images.ledgers.values()
        if own.state() != "complete"
    )


def _free_bytes(storage: str) -> int | None:
    """What is free where the runs lie; None for an object store."""
    if "://" in storage:
        return None
    folder = Path(storage).expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _size(count: float) -> str:
    """Bytes for people: `1 MiB` and more, `1.2 GiB`."""
    return f"{max(count / 2**20, 1):.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"


def _gpu_memory(config: RunConfig, waiting: list[Step]) -> str:
    needs = [need for step in waiting for _, need, _ in needs_of_step(config, step)]
    if not any(need.num_gpus for need in needs):
        return "none: no step asks for a GPU"
    if scheme_of(config.base.model):
        return "little: the embedded models are small"
    parts = {
        "pairs": ("captions", "scored", "twins", "holes", "candidates"),
        "evaluation": ("images", "scores"),
    }
    shown = tuple(name for step in waiting for name in parts.get(step.name, (step.name,)))
    gib = {name: peak for name, peak in predicted_gib(config).items() if name.startswith(shown)}
    peaks = ", ".join(f"{name} {peak:g}" for name, peak in gib.items())
    return f"{_card(gib)}: {peaks} GiB per GPU (predicted)" if peaks else "not predicted"


def _card(peaks: dict[str, float]) -> str:
    """The smallest card with room for steps, a tenth of it left free; else those with no room."""
    for gb, free in CARDS.items():
        if not (missing := too_large(peaks, card=free)):
            return f"a card of {gb} GB has room"
    return f"a card of {gb} GB has no room for {', '.join(missing)}"


def _host_memory(run: Run, waiting: list[Step]) -> dict[str, str]:
    """What the encoded pairs take in every worker of a training, where that is much."""
    config, kind = run.config, kind_of(run.config)
    if scheme_of(config.base.model) or not any(step.trains for step in waiting):
        return {}
    known = [n for n in (kind.asked(config), run.curation.entries()) if n]
    gib = latents_gib(config, min(known, default=0))
    if gib <= MUCH:
        return {}
    lower = ".".join(kind.limit)
    return {"host memory": f"latents {gib:.0f} GiB per training worker; less with a lower {lower}"}


def _downloads(run: Run, waiting: list[Step]) -> str:
    """Models that are not on this machine yet."""
    names = [name for name in _models(run, {step.name for step in waiting}) if _absent(name)]
    if not names:
        return "none"
    size = DOWNLOADS.get(run.config.base.family)
    return _few(names) + (f" (all of the preset: about {size} GB)" if size else "")


def _few(names: list[str]) -> str:
    more = f" and {len(names) - MOST} more" if names[MOST:] else ""
    return ", ".join(names[:MOST]) + more


def _models(run: Run, steps: Collection[str]) -> list[str]:
    """Hub ids and weight files of the models that steps read, each once."""
    config = run.config
    sections: list[Section] = []
    if "pairs" in steps:
        sections += kind_of(config).used(config).values()
    if {*steps} - {"pairs", "export", "card", "report"}:
        sections.append(config.base)
    if "evaluation" in steps:
        named = [*config.metrics.rewards]
        named += [config.metrics.embedder] if config.measured.distance else []
        sections += [reward(name, config.pickscore, config.rewards) for name in named]
    for name, training in run.alignment.trainings.items():
        sections += run.alignment.rewards_of(training).values() if name in steps else ()
    refs: list[object] = [value for section in sections for value in flatten(section).values()]
    refs += [ref for ref, _ in run.alignment.weights.values()] if {*steps} & {*run.trained} else []
    file = config.saliency.weights if config.saliency in sections else None
    names = (ref for ref in refs if isinstance(ref, str) and ref)
    return list(dict.fromkeys(name for name in names if name == file or hub_id(name)))


def _absent(name: str) -> bool:
    """Whether a model is neither a local file or folder nor in the hub's cache."""
    if scheme_of(name) is not None or Path(name).expanduser().exists():
        return False
    named = hub_id(name)
    if named is None:
        return True
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=named.repo, repo_type="model")
    return not any(Path(constants.HF_HUB_CACHE, folder, "snapshots").glob("*/*"))
