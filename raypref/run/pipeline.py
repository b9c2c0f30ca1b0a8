"""The whole run: the order of its steps.

    pairs -> cache -> the trainings that `trainings` names -> evaluation -> card -> report

How steps are run, skipped, resumed or refused is in `execute.py`. Torch, diffusers, Ray and MLflow
take seconds to import, and to read settings and to plan needs none of them: a module that holds
settings or a row stage imports such a library in the functions that use it, a step imports it here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from raypref.align import plan
from raypref.align.check import check_pairs
from raypref.align.graph import Alignment
from raypref.align.latents import rows_to_encode
from raypref.align.prompt_latents import encoding
from raypref.core.config import InputError, Section, results_of
from raypref.core.imports import quick_imports
from raypref.core.ledger import (
    Ledger,
    Place,
    absolute,
    in_folder,
    join,
    placed,
    read_bytes,
    write_bytes,
)
from raypref.core.progress import Progress, Work
from raypref.core.tracking import Tracker
from raypref.curate.export import export
from raypref.engine.stream import stream
from raypref.evaluate import tables
from raypref.evaluate.every import Evaluations
from raypref.evaluate.generate import Adapter, other_loras
from raypref.evaluate.graph import Evaluation
from raypref.evaluate.sets import PromptSet, PromptSets
from raypref.models import checks
from raypref.models.fuse import fuse
from raypref.models.lora_formats import shared_name
from raypref.pairs.kinds import kind_of, maker_of
from raypref.pairs.maker import PairMaker
from raypref.rewards.rewards import reward
from raypref.run.config import RunConfig

if TYPE_CHECKING:
    from raypref.align.watch import StepMetrics

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """One step: done when all its ledgers are complete; always runs if it has none."""

    name: str
    # Called late: a job that only curates must not need a prompt file to know its ledgers.
    ledgers: Callable[[], tuple[Ledger, ...]]
    run: Callable[[], Work]
    needs: tuple[Callable[[], object], ...] = ()  # each raises InputError for a missing model
    read: bool = True  # whether later steps read what it makes
    trains: bool = False  # whether it is a training

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        ledgers = self.ledgers()
        return bool(ledgers) and all(ledger.state() == "complete" for ledger in ledgers)


class Run:
    """A configured run.

    Args:
        config: all settings.
        place: where its ledgers lie; by default in its folder.
        models: the models to evaluate besides the base; by default all that are trained.
        redo: whether results that were made with other settings are replaced.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        place: Place | None = None,
        models: Collection[str] | None = None,
        redo: bool = False,
    ) -> None:
        self.config = config
        self.folder = absolute(join(config.storage, config.run))
        self.place = place or in_folder(self.folder)
        self.models = models
        self.redo = redo
        self.tracker: Tracker | None = None  # set when the run is executed
        self.page_told = False  # whether the log says where the page is

    @cached_property
    def curation(self) -> PairMaker:
        """Photographs, or labels, to pairs."""
        return maker_of(self.config, place=self.place)

    @cached_property
    def cache(self) -> Ledger:
        """Encoded pairs."""
        c = self.config
        size = {} if kind_of(c).sides else {"images.size": c.images.size}  # no image has it
        parts = {"pairs": self.curation.pairs.fingerprint, "base": c.base.unquantised, **size}
        return self._ledger("cache", {**parts, "cache": c.cache.of_family(c.base.family)})

    @cached_property
    def alignment(self) -> Alignment:
        """Encoded pairs to LoRAs."""
        c = self.config
        return Alignment(
            plan.in_order(c.trainings, c.train),
            base=c.base,
            lora=c.lora,
            cache=self.cache,
            pairs=self.curation.pairs,
            columns=kind_of(c).columns.names,
            sides=kind_of(c).sides,
            place=self.place,
            seed=c.seed + c.training_seed,
            run=c.run,
            reward=lambda name: reward(name, c.pickscore, c.rewards),
            vae_dtype=c.cache.vae_dtype,
        )

    @property
    def trained(self) -> dict[str, Ledger]:
        """The ledgers of the trainings."""
        return self.alignment.trained

    @property
    def labels(self) -> dict[str, str]:
        """Names for people of the models that this run makes and of the base, in order."""
        return plan.labels(self.alignment.trainings)

    @cached_property
    def evaluations(self) -> Evaluations:
        """Images, scores and tables of all prompt sets."""
        c, inputs = self.config, self.curation.inputs
        sets = PromptSets(
            c.evaluate, folder=self.folder, photos=inputs, seed=c.seed, redo=self.redo
        )
        return Evaluations(sets, self._evaluation)

    @property
    def evaluation(self) -> Evaluation:
        """Images, scores, table of the first prompt set."""
        return self.evaluations.first

    def _evaluation(self, prompt_set: Callable[[], PromptSet]) -> Evaluation:
        c = self.config
        return Evaluation(
            c.base,
            c.evaluate,
            c.pickscore,
            c.rewards,
            c.measured,
            c.table,
            prompt_set=prompt_set,
            pairs=self.curation.pairs,
            needs_pairs=bool(c.trainings),
            loras=self._adapters,
            labels=self.labels,
            run_folder=self.folder,
            place=self.place,
        )

    @property
    def made(self) -> dict[str, Adapter]:
        """What is compared with the base: what the trainings make, and weights they start from."""
        whole, shown = not self.config.lora.rank, self.alignment.shown
        return {n: Adapter(own.path, own.fingerprint, whole) for n, own in shown.items()}

    def _adapters(self) -> dict[str, Adapter]:
        """The LoRAs that are evaluated: those trained here under their names in tables, others."""
        made, models = self.made, self.models
        trained = {name: own for name, own in made.items() if models is None or name in models}
        own = {name: made[name] for name in self.trained}
        others = other_loras(self.config.evaluate.loras, own)
        if taken := sorted({*others} & {*self.labels}):
            raise InputError(f"evaluate.loras.{taken[0]}: the run already has a model of this name")
        return trained | others

    @cached_property
    def steps(self) -> list[Step]:
        """The steps in order."""
        c, ev, align = self.config, self.evaluation, self.alignment
        base = partial(checks.check_base, c.base)
        crops = partial(checks.check_crops, c.base, c.images)
        drawn = partial(checks.check_side, c.base, c.evaluate.size, key="evaluate.size")
        starts: tuple[Callable[[], object], ...] = (base,)
        if align.weights:
            starts = (base, align.check_starts)
        adapter = partial(checks.check_adapter, c.base, c.lora)

        def ledgers() -> tuple[Ledger, ...]:
            return self.evaluations.ledgers

        train = [
            Step(
                name,
                partial(tuple, [self.trained[name]]),
                partial(self._train, name),
                (*starts, adapter, *align.checks(name)),
                trains=True,
            )
            for name in align.trainings
        ]
        return [
            Step(
                "pairs",
                lambda: self.curation.ledgers,
                self._curate,
                self.curation.needs,
                read=bool(train),  # LoRAs of others can be evaluated without
            ),
            *(
                [Step("export", self._exports, self._export, read=False)]
                if c.export.formats
                else []
            ),
            *([Step("cache", lambda: (self.cache,), self._encode, (base, crops))] if train else []),
            *(
                [Step("start", lambda: tuple(align.starts.values()), self._bring_in, starts)]
                if align.weights
                else []
            ),
            *train,
            Step("evaluation", ledgers, self._evaluate, (base, *ev.checks(), drawn)),
            *(
                [Step("fused", lambda: (self.fused,), self._fuse)]
                if c.model.fused and train
                else []
            ),
            Step("card", tuple, self._card),
            # Made again after every step, too; its pictures are written once.
            Step("report", tuple, self._report),
        ]

    def _curate(self) -> Work:
        return self.curation.run(self.config.stream)

    def _exports(self) -> tuple[Ledger, ...]:
        return tuple(
            self._ledger(f"export/{form}", {"pairs": self.curation.pairs.fingerprint})
            for form in self.config.export.formats
        )

    def _export(self) -> Work:
        for form, target in zip(self.config.export.formats, self._exports(), strict=True):
            export(self.curation.pairs, target, form)
        return Work(len(self.config.export.formats), "formats")

    def _encode(self) -> Work:
        check_pairs(self.curation.pairs, trainings=self.alignment.trainings)
        if not {*self.cache.parts()} <= {*self.curation.pairs.parts()}:
            self.cache.clear()  # begun by a version that cut the pairs in another way
        c = self.config
        stage = encoding(c.base, c.cache, c.images, images=bool(kind_of(c).sides))
        rows = rows_to_encode(self.curation.pairs, stage.reads)
        streamed = stream(
            rows, stages=[stage], ledger=self.cache, keep=stage.writes.names, config=c.stream
        )
        return Work(rows.count(), "rows", streamed.busy)

    def _bring_in(self) -> Work:
        self.alignment.bring_in_starts()
        return Work(len(self.alignment.starts), "LoRAs")

    def _train(self, name: str) -> Work:
        with quick_imports():
            from raypref.align.train import train_on_workers

        job, ledger = self.alignment.jobs[name], self.trained[name]
        ledger.begin()
        busy = 0.0

        def on_step(metrics: StepMetrics) -> None:
            nonlocal busy
            busy += metrics["seconds"]
            follow(metrics)

        follow = self._follower(name, job.training.steps)
        train_on_workers(job, on_step=on_step)
        ledger.commit(expected=0, counts={"steps": job.training.steps})
        return Work(job.training.steps, "steps", busy)

    def _follower(self, name: str, steps: int) -> Callable[[StepMetrics], None]:
        """Turns a training's metrics into progress lines and MLflow metrics."""
        progress: Progress | None = None

        def follow(metrics: StepMetrics) -> None:
            nonlocal progress
            step, note = int(metrics["step"]), f"loss {metrics['loss']:.5f}"
            if progress is None:  # counts from the first step, not from the start of the workers
                every = self.config.stream.progress_seconds
                progress = Progress(name, total=steps, done=step, unit="steps", every=every)
            else:
                # A restarted worker repeats steps since its checkpoint: its own number counts.
                progress.add(step - progress.done, note=note)
            if step == steps:
                progress.finish(note=note)
            assert self.tracker is not None
            self.tracker.metrics(
                {f"{name}/{key}": value for key, value in metrics.items() if key != "step"},
                step=step,
            )

        return follow

    def _evaluate(self) -> Work:
        return self.evaluations.run(trained=self.trained, streaming=self.config.stream)

    @cached_property
    def fused(self) -> Ledger:
        """The pipeline with the final LoRA merged."""
        model = self.config.model
        lora = self.trained[self.alignment.final].fingerprint
        facts = {"base": self.config.base, "lora": lora, "dtype": model.fused_dtype}
        return self._ledger("fused", facts | ({"file": True} if model.fused_file else {}))

    def _fuse(self) -> Work:
        c, ledger, lora = self.config, self.fused, self.trained[self.alignment.final].path
        ledger.begin()
        file = f"{c.run.rpartition('/')[2]}.safetensors" if c.model.fused_file else ""
        fuse(c.base, lora=lora, dtype=c.model.fused_dtype, folder=ledger.path, file=file)
        ledger.commit(expected=0, counts={})
        return Work(1, "pipelines")

    @property
    def banner(self) -> str:
        """What must be said before any number of the run; empty for nothing."""
        from raypref.report.embedded import banner

        models = (self.config.base.model, self.config.pickscore.model)
        return banner(models, self.config.source.path, kind_of(self.config).terms.images)

    def _card(self) -> Work:
        from raypref.report.card import model_card

        c, final, pairs = self.config, self.trained.get(self.alignment.final), self.curation.pairs
        if final is None or {final.state(), pairs.state()} != {"complete"}:
            return Work(0, "cards")
        self.alignment.write_missing_shared()
        trainings = self.alignment.trainings
        chain = plan.lineage(self.alignment.final, trainings)
        first = trainings[chain[0]].start
        card = model_card(
            name=c.run,
            base=c.base,
            draw=c.evaluate,
            shared=shared_name(c.run, self.alignment.final),
            licence=c.model.license,
            photographs=c.source.license,
            kind=kind_of(c),
            counts=pairs.manifest()["counts"],
            starts_from=first if plan.is_weights(first, trainings) else "",
            trainings={name: _results_of(trainings[name]) for name in chain},
            lora=_results_of(c.lora),
            table=tables.several(self.evaluations.tables(), labels=self.labels),
            fused=c.model.fused,
            commits=read_record(self.folder).get("models", {}),
            banner=self.banner,
        )
        write_bytes(join(final.path, "README.md"), card.encode())
        return Work(1, "cards")

    def _report(self) -> Work:
        from raypref.run.page import write_page

        return Work(int(write_page(self, last=True)), "pages")

    def _ledger(self, name: str, parts: Mapping[str, Any]) -> Ledger:
        return placed(self.place, name, results_of(parts))


def _results_of(section: Section) -> dict[str, Any]:
    """The settings of one section that decide what comes out."""
    return {key.removeprefix("."): v for key, v in results_of({"": section}).items()}


def read_record(folder: str) -> dict[str, Any]:
    """What `run.json` says, or an empty record."""
    data = read_bytes(join(folder, "run.json"))
    return {"steps": {}} if data is None else json.loads(data)
