"""From tables to runs: the settings of every row, and the distinct steps of all.

Every row is a run of its own settings. Its ledgers lie in `<storage>/steps/`, named by what they
hold: rows of any table, sweep or machine that need the same pairs, training or images share them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import PrivateAttr

from raypref.ablate.aligned import with_lora
from raypref.ablate.table import Row, Search, Table, in_profile, labelled
from raypref.align import plan as align_plan
from raypref.core.config import (
    InputError,
    Location,
    Section,
    flatten,
    load,
    refuse_renamed,
    replaced,
    setting,
)
from raypref.core.layers import PROFILE
from raypref.core.ledger import absolute, by_content, join
from raypref.core.schemes import scheme_of
from raypref.evaluate.generate import BASE
from raypref.run.config import RunConfig
from raypref.run.pipeline import Run, Step

STEPS = "steps"  # folder of the shared ledgers, below the storage
EMBEDDED_LABELS = "tiny:labelled"


class SweepConfig(Section):
    """How tables are run, and what only the user can give."""

    seeds: int = setting(1, "trainings of each row, from the same pairs", ge=1)
    at_once: int = setting(
        0,
        "rows at once; 0: as many as the cluster has cores and GPUs for",
        affects_result=False,
        ge=0,
    )
    retries: int = setting(1, "further attempts at a row that failed", affects_result=False, ge=0)
    diffusion_dpo: str = setting(
        "",
        "model aligned by Diffusion-DPO, to compare with and to start from: a network, such as "
        "mhdang/dpo-sd1.5-text2image-v1 or its folder; or a LoRA: folder, file, OWNER/REPO[/FILE]",
    )
    spo: str = setting(
        "", "model aligned by SPO, to compare with (SD-1.5): network or LoRA, as diffusion_dpo"
    )
    flowgrpo: str = setting(
        "",
        "LoRA aligned by Flow-GRPO, to compare with and to start from (SD-3.5-M): repository or "
        "folder",
    )
    diffusion_kto: str = setting(
        "",
        "network aligned by Diffusion-KTO (SD-1.5), for figure2a: repository or folder",
        later=True,
    )
    inpo: str = setting(
        "", "network aligned by InPO (SD-1.5), for figure2a: repository or folder", later=True
    )
    grpo_guard: str = setting(
        "", "LoRA aligned by GRPO-Guard (SD-3.5-M), for figure2b: repository or folder", later=True
    )
    diffusionnft: str = setting(
        "",
        "LoRA aligned by DiffusionNFT (SD-3.5-M), for figure2b: repository or folder",
        later=True,
    )
    stylization: Location = setting(
        "", "CSV of OneIG-Bench's style scores, columns method, value, for figure2b", later=True
    )
    votes: Location = setting(
        "",
        "CSV of people's votes, columns prompt_id, category, rater, left, right, choice, for "
        "figure4 and table7a",
        later=True,
    )
    dpg_prompts: Location = setting("", "folder of DPG-Bench's prompts, for table7b", later=True)
    dpg_questions: Location = setting(
        "", "DPG-Bench's question table (dpg_bench.csv), for table7b", later=True
    )
    partiprompts: str = setting("", "prompt file of Parti-Prompts, for table1b and figure10")
    pickapic: str = setting("", "source.path of Pick-a-Pic's images, for table2")
    civitai: str = setting("", "source.path of Civitai's images, for table2 and figure8_civitai")
    labelled: str = setting(
        "",
        "source.path of labelled pairs, for arena and objectives; empty: tiny:labelled where the "
        "base model is an embedded one",
        later=True,
    )
    pixart: str = setting("", "PixArt-alpha/PixArt-XL-2-1024-MS or its folder, for table4")
    sd35m: str = setting(
        "", "stabilityai/stable-diffusion-3.5-medium or its folder, for table4's inpainting"
    )


class AblateConfig(RunConfig):
    """All settings of a run, and these."""

    ablate: SweepConfig = SweepConfig()
    _said: tuple[str, tuple[str, ...]] = PrivateAttr(("", ()))  # source and words they are from


def load_config(source: str, words: Iterable[str]) -> AblateConfig:
    """Read the base settings; without a `run` of their own they are of `ablations`."""
    words = tuple(words)
    config = load(AblateConfig, source, words)
    config._said = (source, words)
    changes: dict[str, Any] = {}
    if config.run == RunConfig.model_fields["run"].default:
        changes["run"] = "ablations"
    if not config.ablate.labelled and scheme_of(config.base.model):
        changes["ablate"] = config.ablate.model_copy(update={"labelled": EMBEDDED_LABELS})
    return config.model_copy(update=changes)


def with_profile(config: AblateConfig, name: object) -> AblateConfig:
    """The same settings with another profile of their preset or file.

    Raises:
        InputError: there is no such profile.
    """
    source, words = config._said
    if name == config.profile:
        return config
    if not source:
        raise InputError(
            f"profile={name}: the settings are of no preset or file that could have it"
        )
    other = load_config(source, (*words, f"{PROFILE}={name}"))
    same = {key: getattr(config, key) for key in ("run", "storage", "ablate")}
    return other.model_copy(update=same)


@dataclass
class PlannedRow:
    """A row with one training seed.

    Attributes:
        table: name of the table.
        row: what the table says.
        label: for people.
        config: its settings; None where there is a problem.
        seed: of its trainings: `seed` + `training_seed` of the settings.
        problem: why it cannot run; empty where it can.
        given: False where it waits for something that the user must give.
    """

    table: str
    row: Row
    label: str
    config: AblateConfig | None
    seed: int
    problem: str = ""
    given: bool = True

    @property
    def name(self) -> str:
        """Unique in its table."""
        return f"{self.row.name}, seed {self.seed}"

    @cached_property
    def run(self) -> Run:
        """The run; the row must have settings."""
        assert self.config is not None
        return open_run(self.config, self.row.model)

    @property
    def model(self) -> str:
        """The model of the run that the row shows."""
        return self.row.model or self.run.alignment.final

    @cached_property
    def steps(self) -> list[Step]:
        """What the run must go through for the row's model."""
        names = step_names(self.run, self.model)
        return [step for step in self.run.steps if step.name in names]


def require_prompts(config: RunConfig) -> None:
    """See that there is one set of prompts or holes: other pairs hold out other captions.

    Raises:
        InputError: there is none, or several.
    """
    if len(config.evaluate.hole_files or config.evaluate.files) != 1:
        key = "evaluate.holes" if config.evaluate.hole_files else "evaluate.prompts"
        raise InputError(f"{key}: a table compares its rows on one set of prompts: add {key}=FILE")


def open_run(config: RunConfig, model: str) -> Run:
    """The run of a row; its ledgers lie in the shared `steps/`. Without a model: the final one."""
    require_prompts(config)
    place = by_content(absolute(join(config.storage, STEPS)))
    trained = align_plan.in_order(config.trainings, config.train)
    shown = model or align_plan.final(trained)
    return Run(config, place=place, models=() if shown == BASE else (shown,))


def step_names(run: Run, model: str) -> list[str]:
    """Names of the steps that a model and its evaluation need.

    Raises:
        InputError: the run has no such model.
    """
    align = run.alignment
    known = [BASE, *align.starts, *align.trainings, *run.config.evaluate.loras]
    if model not in known:
        raise InputError(f"model={model}: the models of the run are {', '.join(known)}")
    trained = align.trainings
    chain = align_plan.lineage(model, trained) if model in trained else []
    brought = model in align.starts or any(
        align_plan.is_weights(trained[name].start, trained) for name in chain
    )
    # The distance to the photographs of the pairs needs the pairs.
    pairs = ["pairs"] if chain or run.config.metrics.distance else []
    return [
        *pairs,
        *(["cache"] if chain else []),
        *(["start"] if brought else []),
        *chain,
        "evaluation",
    ]


def planned_rows(
    name: str, table: Table, config: AblateConfig, *, read: bool = True
) -> list[PlannedRow]:
    """The rows that a table has for the base's family, for every training seed.

    The untrained model has no training seeds. A row whose settings are wrong is planned all the
    same, with its problem. Without `read` the files that settings name are not looked at.
    """
    if table.shows != "runs":
        return []
    return [
        plan_row(name, row, config, seed=config.seed + config.training_seed + number, read=read)
        for row in table.all_rows()
        if not row.families or config.base.family in row.families
        for number in range(1 if _untrained(row.model) else config.ablate.seeds)
    ]


def _untrained(model: str) -> bool:
    """Whether a model is there before any training: the base, and weights to start from."""
    return model == BASE or align_plan.is_start(model)


def plan_row(
    name: str, row: Row, base: AblateConfig, *, seed: int, read: bool = True
) -> PlannedRow:
    """Work out a row's settings from those of the base.

    Args:
        name: of the table.
        row: what the table says.
        base: the settings of the command.
        seed: of the trainings; all else keeps the base's, so that trainings share their pairs.
        read: whether to look at the files that its settings name.
    """
    changes: dict[str, Any] = {
        "training_seed": seed - base.seed,
        "run": join(base.run, name, _slug(row.name, seed)),
    }
    try:
        base = with_profile(base, row.set_.get(PROFILE, base.profile))
        row, settings = in_profile(row, base.profile), flatten(base)
        for training in base.train:
            changes[f"train.{training}.sample_every"] = 0  # samples are for one run's page
        for key, factor in row.times.items():
            if not isinstance(settings.get(key), int | float):
                refuse_renamed(RunConfig, {key.split(".")[0]: {key.partition(".")[2]: 0}})
                raise InputError(f"times: '{key}' is not a number among the settings")
            whole = isinstance(settings[key], int)
            changes[key] = round(settings[key] * factor) if whole else settings[key] * factor
        for key, source in row.copy_.items():
            if source not in settings:
                raise InputError(f"copy: there is no setting '{source}'")
            if not settings[source]:
                told = f"not given: add {source}=..."
                label = labelled(row, replaced(base, changes | row.set_))
                return PlannedRow(name, row, label, None, seed, told, given=False)
            changes[key] = settings[source]
        changes |= row.set_
        if read:  # may ask the hub
            row, changes = with_lora(row, changes, base)
        config = replaced(base, changes)
        planned = PlannedRow(name, row, labelled(row, config), config, seed)
        for step in planned.steps if read else ():
            step.ledgers()  # reads what the settings name, as prompts and LoRAs: here it can fail
        return planned
    except InputError as error:
        return PlannedRow(name, row, labelled(row, base), None, seed, str(error))


def _slug(name: str, seed: int) -> str:
    return re.sub(r"[^\w.=-]+", "-", name).strip("-") + f"-seed{seed}"


def check_search(search: Search, config: AblateConfig) -> int:
    """See that a search can be decided; returns the whole budget.

    Raises:
        InputError: the budget is no whole number, or the metric is not measured.
    """
    whole = flatten(config).get(search.budget)
    if not isinstance(whole, int) or not search.budget.startswith("train."):
        raise InputError(f"search.budget='{search.budget}' is not train.NAME.steps of a training")
    measures = open_run(config, BASE).evaluation.measures.values()
    measured = [name for measure in measures for name in measure.scores]
    measured += config.metrics.distances if config.metrics.distance else []
    if search.metric not in measured:
        raise InputError(
            f"search.metric='{search.metric}' is not measured (metrics.rewards); there are: "
            f"{', '.join(measured)}"
        )
    return whole


@dataclass
class PlannedStep:
    """A step of one or more rows."""

    step: Step
    run: Run
    rows: list[PlannedRow] = field(default_factory=list)

    @property
    def trains(self) -> bool:
        """Whether it is a training."""
        return self.step.name in self.run.trained


def distinct_steps(rows: Iterable[PlannedRow]) -> list[PlannedStep]:
    """Each step once, in an order in which they can be done."""
    found: dict[tuple[str, ...], PlannedStep] = {}
    for row in rows:
        for step in row.steps if row.config else ():
            identity = tuple(ledger.path for ledger in step.ledgers())
            found.setdefault(identity, PlannedStep(step, row.run)).rows.append(row)
    return list(found.values())
