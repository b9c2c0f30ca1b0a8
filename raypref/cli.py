"""The command line that all jobs share: preset, `key=value`, --dry-run, --redo, --help."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

from raypref.cluster import connected, submitted
from raypref.config import InputError, load, presets, to_toml
from raypref.diffusion.lora_config import FILE_NAME
from raypref.evaluate.closing import closing
from raypref.execute import execute, plan
from raypref.key_help import describe
from raypref.pipeline import Run, RunConfig
from raypref.progress import duration
from raypref.room import no_room

# Read when the libraries are imported, which is when a step runs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

C = TypeVar("C", bound=RunConfig)

DEFAULT_PRESET = "tiny"
DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130

# What jobs make, in order, with its place in the run's folder.
RESULTS = {
    "Pairs": "pairs",
    "LoRA": f"{{final}}/{FILE_NAME}",
    "Report": "report/index.html",
}

USAGE = """\
usage: python {script} [PRESET | FILE.toml] [key=value ...] [--dry-run] [--redo]

{what}

  PRESET        one of: {presets}   (default {default})
  FILE.toml     your own settings; may begin with: extends = "PRESET"
  key=value     overrides one setting, as train.stage2.beta=1000
  --dry-run     print the resolved settings and what each step would do, then stop
  --redo        replace results in the run's folder that were made with other settings
  --help        this text

Exit status: 0 done, 2 wrong settings or input, 1 failed.

Settings (key, type, default, meaning):
"""


def main(
    arguments: Sequence[str], *, script: str, what: str, only: Collection[str], result: str
) -> int:
    """Run a job; returns its exit status.

    Args:
        arguments: the command line without the script's name.
        script: the script's name, for the help text.
        what: one sentence that says what the job does.
        only: names of the pipeline's steps it runs; empty for all.
        result: what the job makes, one of `RESULTS`; named at the end with what it came from.
    """
    if "--help" in arguments or "-h" in arguments:
        names = ", ".join(presets())
        print(USAGE.format(script=script, what=what, presets=names, default=DEFAULT_PRESET), end="")
        print("\n".join(f"  {line}" for line in describe(RunConfig)))
        return DONE
    return ended(lambda: _work(arguments, only=only, result=result))


def ended(work: Callable[[], int]) -> int:
    """Do a job's work; returns its exit status, having told what went wrong."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout
    )
    for library in ("httpx", "urllib3", "ray", "datasets", "alembic"):
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        return work()
    except InputError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print("Interrupted. Run the same command again to resume.", file=sys.stderr, flush=True)
        if connected():
            # Not by the interpreter's own way out: while Ray is left there, a thread that still
            # waits for it ends the process with status 1. A Ray started here ends with its driver.
            sys.stdout.flush()
            os._exit(INTERRUPTED)
        return INTERRUPTED
    except Exception as error:
        if line := no_room(error):
            print(f"error: {line}", file=sys.stderr)
            return FAILED
        logging.exception("failed; the same command goes on from the last finished block or step")
        return FAILED


def _work(arguments: Sequence[str], *, only: Collection[str], result: str) -> int:
    began = time.monotonic()
    config, flags = _parse(arguments)
    config = settle_storage(config)
    if "--dry-run" in flags:
        _print_plan(Run(config), only)
        return DONE
    run = execute(config, only=only, redo="--redo" in flags)
    if result == "Report":
        print(
            f"\n{closing(run.evaluation.summary, final=run.alignment.final, labels=run.labels)}\n"
        )
        print(f"Time: {duration(time.monotonic() - began)}")
    for name in [*RESULTS][: [*RESULTS].index(result) + 1]:
        print(f"{name}: {run.folder}/{RESULTS[name].format(final=run.alignment.final)}")
    return DONE


def _parse(arguments: Sequence[str]) -> tuple[RunConfig, set[str]]:
    flags = {argument for argument in arguments if argument.startswith("-")}
    unknown = flags - {"--dry-run", "--redo"}
    if unknown:
        raise InputError(f"unknown option {' '.join(sorted(unknown))}; see --help")
    words = [argument for argument in arguments if argument not in flags]
    source = DEFAULT_PRESET
    if words and "=" not in words[0]:
        source = words.pop(0)
    return load(RunConfig, source, words), flags


def settle_storage(config: C) -> C:
    """A submitted job runs in a copy of the working directory that Ray deletes: do not write there.

    A relative storage then means a folder below the home directory.
    """
    if not submitted() or "://" in config.storage or config.storage.startswith(("/", "~")):
        return config
    storage = str(Path.home() / config.storage)
    logging.info("submitted as a Ray job: storage=%s is %s", config.storage, storage)
    return config.model_copy(update={"storage": storage})


def _print_plan(run: Run, only: Collection[str]) -> None:
    print(to_toml(run.config))
    print(f"# Steps of {run.folder}:")
    for line in plan(run, only=only):
        print(f"#   {line}")
