"""The page of a run, as far as the run is: gathered and written after every step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from raypref.core.config import InputError, to_toml
from raypref.core.ledger import Ledger, join, write_bytes
from raypref.core.messages import without_secrets
from raypref.models.families.registry import INPAINTING

if TYPE_CHECKING:
    from raypref.report.views import StepState
    from raypref.run.pipeline import Run

log = logging.getLogger(__name__)

NAMES = {"cache": "latents", "start": "starting weights", "fused": "merged pipeline"}
UNTOLD = ("card", "report")  # of no news to who reads the page


def write_page(run: Run, *, last: bool = False) -> bool:
    """Write the page with what there is, and say where it is the first time.

    Args:
        run: the run.
        last: whether this is the page that the run ends in: a failure is one of the run. A page on
            the way that fails stops nothing; False is returned then.
    """
    path = join(run.folder, "report", "index.html")
    try:
        write_bytes(path, _html(run).encode())
    except Exception:
        if last:
            raise
        log.warning("page: %s could not be written", without_secrets(path), exc_info=True)
        return False
    if not run.page_told:
        log.info("page: %s", without_secrets(path))
        run.page_told = True
    return True


def _html(run: Run) -> str:
    from raypref.report.collect import collect
    from raypref.report.page import render
    from raypref.run.pipeline import read_record

    c, images = run.config, _images(run)
    made = run.evaluations.complete if images else []
    found = run.evaluations.tables() if made else []
    ev = made[0] if made else run.evaluation
    data = collect(
        name=c.run,
        config_toml=without_secrets(to_toml(c)),
        seed=c.seed,
        record=read_record(run.folder),
        folder=run.folder,
        curated_by=c,
        pairs=run.curation.pairs,
        trained=run.trained,
        labels=run.labels,
        images=ev.images.ledgers if images else {},
        table=found[0].table if found else None,
        categories=ev.categories if made else None,
        sets=found,
        final=run.alignment.final,
        published=(ev.published() or {}) if made else {},
        tracking_uri=c.tracking.uri,
        banner=run.banner,
        steps=_steps(run),
        sampled=[*ev.texts.values()][: c.evaluate.samples] if images else [],
        use=_use(run),
        on_own_samples=on_own_samples(run),
        inpaints=c.base.family in INPAINTING,
        photographs=ev.photographs if images else None,
    )
    return render(data)


def on_own_samples(run: Run) -> list[str]:
    """Names of the trainings whose rejected side is drawn by the policy."""
    from raypref.align.rollout_config import RolloutConfig

    trainings = run.alignment.trainings
    return [
        name
        for name, own in trainings.items()
        if isinstance(own, RolloutConfig) and "rejected" in own.sides
    ]


def _images(run: Run) -> Mapping[str, Ledger]:
    """The ledgers of the evaluation's images; none where there are no prompts to know them by."""
    try:
        return run.evaluation.images.ledgers if run.evaluations.all else {}
    except InputError:
        return {}


def _steps(run: Run) -> list[StepState]:
    """The steps that a reader of the page knows."""
    from raypref.report.views import StepState

    steps = []
    for step in run.steps:
        if step.name in UNTOLD:
            continue
        try:
            done = step.done
        except InputError:  # its prompts are not named yet
            done = False
        label = run.labels[step.name] if step.trains else NAMES.get(step.name, step.name)
        steps.append(StepState(step.name, label, done))
    return steps


def _use(run: Run) -> str:
    """Code that loads the final LoRA or network; empty before there is one."""
    from raypref.report.use import snippet

    c, lora = run.config, run.trained.get(run.alignment.final)
    if lora is None or lora.state() != "complete":
        return ""
    prompts = run.evaluation.prompts if _images(run) else []
    prompt = prompts[0].text if prompts else "a photograph"
    return snippet(
        c.base,
        lora=lora.path,
        prompt=prompt,
        side=c.evaluate.size,
        steps=c.evaluate.steps,
        guidance=c.evaluate.guidance,
        whole=not c.lora.rank,
    )
