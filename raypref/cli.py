"""The command line of all jobs: `raypref COMMAND`, and the same as scripts, `jobs/*.py`.

Every command takes a preset or TOML file, then `key=value`, and flags anywhere.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from raypref.ablate import table
from raypref.ablate.plan import AblateConfig, load_config
from raypref.core.config import InputError, Section, load, load_sections, presets, to_toml
from raypref.core.exhausted import exhausted
from raypref.core.key_help import describe
from raypref.core.progress import duration
from raypref.core.versions import own_version
from raypref.engine.cluster import connected, submitted
from raypref.judge.job import JudgingConfig, judge_rewards
from raypref.models.lora_config import FILE_NAME
from raypref.models.lora_formats import shared_name
from raypref.run.config import RunConfig
from raypref.run.execute import ALIGN, CURATE, EVALUATE, execute, plan, require_steps_before
from raypref.run.pipeline import Run
from raypref.run.push import push

# Read when the libraries are imported, which is when a step runs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

C = TypeVar("C", RunConfig, AblateConfig, JudgingConfig)

DEFAULT_PRESET = "tiny"
DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
HELP = {"--help", "-h"}

# What jobs make, in order, with its path in the run's folder.
RESULTS = {
    "Pairs": "pairs",
    "LoRA for ComfyUI": "{final}/{shared}",
    "LoRA": f"{{final}}/{FILE_NAME}",
    "Report": "report/index.html",
}


class Given(NamedTuple):
    """What a command line says."""

    table: str  # the first word of `ablate`; empty for other commands
    source: str  # preset or TOML file
    overrides: list[str]
    flags: frozenset[str]


class Command(NamedTuple):
    """A command: what its help says, and what it does."""

    what: str  # one sentence
    work: Callable[[Given], int]  # returns the exit status
    settings: type[Section] = RunConfig
    flags: Mapping[str, str] = {}
    names_table: bool = False  # whether its first word is a table
    needed: str = ""  # overrides that must be given, for the usage line


class OnRun(NamedTuple):
    """A command on a finished run: it takes no settings and reads its words itself."""

    what: str  # one sentence
    work: Callable[[Sequence[str], str], int]  # the words, how it was called; the exit status


USAGE = """\
usage: raypref COMMAND [PRESET | FILE.toml] [key=value ...] [--dry-run] [--redo]

Align text-to-image diffusion models from real photographs, on one machine or a Ray cluster.

Commands:
{commands}

  --version    the version, and the commit in a checkout
  --help       this text; after a command its arguments and settings

Examples:
  raypref run tiny                    # the whole job on embedded models, no network
  raypref run sd15 source.path=photos/ evaluate.prompts=prompts.txt --dry-run

{status}
"""
STATUS = "Exit status: 0 done, 2 wrong settings or input, 1 failed."
COMMAND_USAGE = """\
usage: {program} {arguments}

{what}

{words}

{status}

Settings (key, type, default, meaning):
{settings}
"""


def console(arguments: Sequence[str] | None = None) -> int:
    """`raypref ...`; returns the exit status.

    Args:
        arguments: the words after `raypref`; by default those of this process.
    """
    words = [*(sys.argv[1:] if arguments is None else arguments)]
    if not words:
        print(_usage(), end="", file=sys.stderr)
        return WRONG_INPUT
    name, *rest = words
    if name in HELP:
        _print_to_a_reader(_usage())
        return DONE
    if name == "--version":
        print(f"raypref {own_version()}")
        return DONE
    if name in ON_RUNS:
        return ended(lambda: ON_RUNS[name].work(rest, f"raypref {name}"))
    if name not in COMMANDS:
        print(f"error: {_no_command(name)}", file=sys.stderr)
        print(
            f"usage: raypref {'|'.join([*COMMANDS, *ON_RUNS])} ...; see raypref --help",
            file=sys.stderr,
        )
        return WRONG_INPUT
    return main(name, rest, program=f"raypref {name}")


def main(name: str, arguments: Sequence[str], *, program: str) -> int:
    """Run a command; returns its exit status.

    Args:
        name: one of `COMMANDS`.
        arguments: the words after the command.
        program: how it was called, for the help text: `raypref run`, `python jobs/curate.py`.
    """
    command = COMMANDS[name]
    if HELP & {*arguments} or (command.names_table and not arguments):
        _print_to_a_reader(_command_usage(command, program))
        return DONE
    return ended(lambda: command.work(parse_command(command, arguments)))


def parse_command(command: Command, arguments: Sequence[str]) -> Given:
    """Sort the words after a command into table, source, overrides and flags.

    Raises:
        InputError: a flag that the command does not have, or no table where it needs one.
    """
    flags = frozenset(word for word in arguments if word.startswith("-"))
    if unknown := flags - {*command.flags}:
        raise InputError(f"unknown option {' '.join(sorted(unknown))}; see --help")
    words = [word for word in arguments if word not in flags]
    if command.names_table and not words:
        raise InputError(f"name a table: {', '.join(table.names())}, all, or a FILE.toml")
    named = words.pop(0) if command.names_table else ""
    source = words.pop(0) if words and "=" not in words[0] else DEFAULT_PRESET
    return Given(named, source, words, flags)


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
        if line := exhausted(error):
            print(f"error: {line}", file=sys.stderr)
            return FAILED
        logging.exception("failed; the same command resumes from the last finished block or step")
        return FAILED


def _run(given: Given, *, only: Collection[str], result: str) -> int:
    """Run steps of the pipeline: all, or those that `only` names; print what they made.

    Args:
        given: the command line.
        only: names of the steps; empty for all.
        result: what the job makes, one of `RESULTS`; named at the end with what it came from.
    """
    began = time.monotonic()
    config = settle_storage(load(RunConfig, given.source, given.overrides))
    if "--dry-run" in given.flags:
        _print_plan(Run(config), only)
        return DONE
    run = execute(config, only=only, redo="--redo" in given.flags)
    if result == "Report":
        print(f"\n{run.evaluations.closing(final=run.alignment.final, labels=run.labels)}\n")
        print(f"Time: {duration(time.monotonic() - began)}")
    names = {"final": run.alignment.final, "shared": shared_name(config.run, run.alignment.final)}
    untrained = () if run.alignment.final else ("Pairs", "LoRA", "LoRA for ComfyUI")
    for name in [*RESULTS][: [*RESULTS].index(result) + 1]:
        if name in untrained:
            continue
        print(f"{name}: {run.folder}/{RESULTS[name].format(**names)}")
    return DONE


def _ablate(given: Given) -> int:
    """Make tables, or print their plan."""
    from raypref.ablate.driver import make, plan_text, tables_of

    tables = tables_of(given.table)
    config = settle_storage(load_config(given.source, given.overrides))
    if "--dry-run" in given.flags:
        print(plan_text(tables, config))
        return DONE
    made = make(tables, config)
    for each in made:
        print(f"\n{each.text}\nPage: {each.page}")
    return FAILED if any(each.failed for each in made) else DONE


def _judge(given: Given) -> int:
    """Compare rewards with people's choices."""
    config = load_sections(JudgingConfig, given.source, given.overrides, of=RunConfig)
    folder, tables = judge_rewards(settle_storage(config))
    for name, made in tables.items():
        print(f"\n{name}\n{made.to_string(index=False, float_format='{:.3f}'.format)}")
    print(f"\nPage: {folder}/index.html")
    return DONE


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
    sys.stdout.flush()
    require_steps_before(run, only=only)  # the job itself would refuse in the same words


def _usage() -> str:
    told = [(name, command.what) for name, command in COMMANDS.items()]
    told += [(name, command.what) for name, command in ON_RUNS.items()]
    commands = "\n".join(f"  {name:<11}{what}" for name, what in told)
    return USAGE.format(commands=commands, status=STATUS)


def _command_usage(command: Command, program: str) -> str:
    first = {
        "TABLE": f"one of: {', '.join(table.names())}",
        "all": "every table and figure of the paper; or FILE.toml: your own table or sweep",
    }
    words = {
        **(first if command.names_table else {}),
        "PRESET": f"one of: {', '.join(presets())}   (default {DEFAULT_PRESET})",
        "FILE.toml": 'your own settings; may begin with: extends = "PRESET"',
        "key=value": "overrides one setting, as train.stage2.beta=1000",
        **command.flags,
        "--help": "this text",
    }
    arguments = [
        *(["TABLE|FILE.toml|all"] if command.names_table else []),
        "[PRESET | FILE.toml]",
        *([command.needed] if command.needed else []),
        "[key=value ...]",
        *(f"[{flag}]" for flag in command.flags),
    ]
    failed = ", also where a row failed" if command.names_table else ""
    return COMMAND_USAGE.format(
        program=program,
        arguments=" ".join(arguments),
        what=command.what,
        words="\n".join(f"  {word:<11}{meaning}" for word, meaning in words.items()),
        status=STATUS.removesuffix(".") + f"{failed}.",
        settings="\n".join(f"  {line}" for line in describe(command.settings)),
    )


def _no_command(word: str) -> str:
    """What is wrong with a first word that is no command, and what may have been meant."""
    if word in presets() or word.endswith(".toml"):
        return f"'{word}' names settings; the command comes first: raypref run {word}"
    near = difflib.get_close_matches(word, [*COMMANDS, *ON_RUNS], n=1, cutoff=0.0)
    return f"no command '{word}'; the nearest is '{near[0]}'"


def _print_to_a_reader(text: str) -> None:
    """Print a text; its reader may stop in the middle, as `head` does."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        # What is still buffered would raise again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_FLAGS = {
    "--dry-run": "print the resolved settings and what each step would do, then stop",
    "--redo": "replace results in the run's folder that were made with other settings",
}
COMMANDS = {
    "run": Command(
        "Photographs to an aligned LoRA, an evaluation table and a page: the whole run.",
        partial(_run, only=(), result="Report"),
        flags=_FLAGS,
    ),
    "curate": Command(
        "Photographs to preference pairs.",
        partial(_run, only=CURATE, result="Pairs"),
        flags=_FLAGS,
    ),
    "align": Command(
        "Preference pairs to an aligned LoRA: the trainings that `train` names.",
        partial(_run, only=ALIGN, result="LoRA"),
        flags=_FLAGS,
    ),
    "evaluate": Command(
        "The base model and a run's LoRAs on prompts: images, scores, table, page.",
        partial(_run, only=EVALUATE, result="Report"),
        flags=_FLAGS,
    ),
    "ablate": Command(
        "Tables and figures of the paper, or a sweep of your own.",
        _ablate,
        settings=AblateConfig,
        flags={
            "--dry-run": "print the rows, the distinct steps, what is done and what the rest "
            "costs, then stop"
        },
        names_table=True,
    ),
    "judge": Command(
        "How often rewards agree with people's choices and with each other, and what sways them.",
        _judge,
        settings=JudgingConfig,
        needed="judge.pairs=FILE",
    ),
}
ON_RUNS = {
    "push": OnRun("A run's pairs and LoRA to the model hub, with their cards.", push),
}
