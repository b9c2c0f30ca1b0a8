"""The command line of all jobs: `raypref COMMAND`, and the same as scripts, `jobs/*.py`.

Every command takes a preset or TOML file, then `key=value` or `--key value`, and flags anywhere.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from raypref.ablate import table
from raypref.ablate.paper import show_paper
from raypref.ablate.plan import AblateConfig
from raypref.commands import (
    DONE,
    FAILED,
    INTERRUPTED,
    WRONG_INPUT,
    Given,
    judge,
    make_tables,
    run_steps,
    sample,
    show_arena,
)
from raypref.core.command_help import (
    HelpOf,
    commands_help,
    print_to_a_reader,
    settings_help,
    short_help,
    usage_line,
)
from raypref.core.command_line import sorted_words
from raypref.core.config import InputError, Section, flatten, load, presets
from raypref.core.exhausted import exhausted
from raypref.core.messages import without_secrets
from raypref.core.terminal import FORMS, say_error, spoken
from raypref.core.versions import own_version
from raypref.engine.cluster import connected
from raypref.judge.arenas import ArenaJobConfig
from raypref.judge.job import JudgingConfig
from raypref.run.config import RunConfig
from raypref.run.execute import ALIGN, CURATE, EVALUATE
from raypref.run.push import push
from raypref.run.rubric import ask
from raypref.sample.config import SampleJobConfig
from raypref.study.command import study

# Read when the libraries are imported, which is when a step runs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

HELP = {"--help", "-h"}
OPTIONS = {"--log": FORMS}


class Command(NamedTuple):
    """A command: what its help says, and what it does."""

    what: str  # one sentence
    work: Callable[[Given], int]  # returns the exit status
    settings: type[Section]
    flags: Mapping[str, str]
    first: str  # keys of the settings that people set first
    names_table: bool = False  # whether its first word is a table
    needed: str = ""  # overrides that must be given, for the usage line
    data: str = ""  # the key that data sets which stands in the place of the preset
    on_run: bool = False  # whether a run's folder may stand in the place of the preset


class OnRun(NamedTuple):
    """A command that does no step of a run, as one on a finished run; it reads its own words."""

    what: str  # one sentence
    work: Callable[[Sequence[str], str], int]  # the words, how it was called; the exit status


STATUS = "Exit status: 0 done, 2 wrong settings or input, 1 failed."


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
        print_to_a_reader(_usage())
        return DONE
    if name == "--version":
        print(f"raypref {own_version()}")
        return DONE
    if name in ON_RUNS:
        # As lines: what it asks would be lost among bars.
        return ended(lambda: ON_RUNS[name].work(rest, f"raypref {name}"), form="lines")
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
    about = _help_of(command, program)
    if not arguments:
        print(f"{usage_line(about)}\n\n{about.what}", file=sys.stderr)
        print(f"Presets: {', '.join(presets())}. See {program} --help.", file=sys.stderr)
        return WRONG_INPUT
    try:
        if asked := [number for number, word in enumerate(arguments) if word in HELP]:
            topic = [word for word in arguments[asked[0] + 1 :] if not word.startswith("-")]
            text = settings_help(command.settings, topic) if topic else short_help(about)
            print_to_a_reader(text)
            return DONE
        given = parse_command(command, arguments, program=program)
    except InputError as error:
        print(without_secrets(f"error: {error}"), file=sys.stderr)
        return WRONG_INPUT
    form = "lines" if "--resolved" in given.flags else given.log  # TOML is TOML in any form
    return ended(lambda: command.work(given), form=form)


def parse_command(command: Command, arguments: Sequence[str], *, program: str) -> Given:
    """Sort the words after a command into table, source, overrides and flags.

    Args:
        command: whose words they are.
        arguments: the words; flags and settings stand anywhere.
        program: how the command was called, for errors.

    Raises:
        InputError: a flag that the command does not have, or no table, preset or file.
    """
    words = sorted_words(
        arguments, keys=_keys(command.settings), flags=command.flags, options=OPTIONS
    )
    bare = words.bare
    if command.names_table and not bare:
        raise InputError(f"name a table: {', '.join(table.names())}, all, or a FILE.toml")
    named = bare.pop(0) if command.names_table else ""
    if not bare:
        start = " ".join(filter(None, [program, named, "tiny"]))
        raise InputError(f"name a preset ({', '.join(presets())}) or FILE.toml, as in: {start}")
    source = bare.pop(0)
    if command.on_run and Path(source, "config.toml").is_file():
        folder = Path(source).resolve()
        words.overrides[:0] = [f"storage={folder.parent}", f"run={folder.name}"]
        source = str(folder / "config.toml")
    is_settings = source in presets() or source.endswith(".toml")
    if command.data and not is_settings:
        words.overrides.insert(0, f"{command.data}={source}")
        source = "tiny"
    elif not is_settings and Path(source).exists():
        key = "judge.pairs" if command.settings is JudgingConfig else "source.path"
        raise InputError(f"'{source}' is no preset or TOML file; data is named so: {key}={source}")
    if bare:
        raise InputError(f"'{bare[0]}' is not key=value (for example train.stage2.beta=1000)")
    return Given(named, source, words.overrides, words.flags, words.options.get("--log", "auto"))


@cache
def _keys(settings: type[Section]) -> list[str]:
    """The settings as they are written: with the names of the trainings that every run has."""
    whole = RunConfig if settings in (JudgingConfig, ArenaJobConfig) else settings
    return [*flatten(load(whole, "tiny"))]


def ended(work: Callable[[], int], *, form: str = "auto") -> int:
    """Do a job's work; returns its exit status, having told what went wrong.

    Args:
        work: the job.
        form: of what is said, one of `FORMS`.
    """
    with spoken(form):
        try:
            return work()
        except InputError as error:
            for line in str(error).splitlines():
                say_error(f"error: {line}")
            return WRONG_INPUT
        except KeyboardInterrupt:
            say_error("Interrupted. Run the same command again to resume.")
        except Exception as error:
            if line := exhausted(error):
                say_error(f"error: {line}")
            else:
                logging.exception(
                    "failed; the same command resumes from the last finished block or step"
                )
            return FAILED
    if connected():
        # Not by the interpreter's own way out: while Ray is left there, a thread that still waits
        # for it ends the process with status 1. A Ray started here ends with its driver.
        sys.stdout.flush()
        os._exit(INTERRUPTED)
    return INTERRUPTED


def _usage() -> str:
    about = {name: command.what for name, command in COMMANDS.items()}
    about |= {name: command.what for name, command in ON_RUNS.items()}
    return commands_help(about, status=STATUS)


def _help_of(command: Command, program: str) -> HelpOf:
    of_table = {
        "TABLE": f"one of: {', '.join(table.names())}",
        "all": "every table and figure of the paper; or TABLE.toml: your own table or sweep",
    }
    arguments = [
        *(["TABLE|TABLE.toml|all"] if command.names_table else []),
        "SOURCE|PRESET|FILE.toml"
        if command.data
        else "PRESET|FILE.toml" + "|RUN-FOLDER" * command.on_run,
        *([command.needed] if command.needed else []),
        "[key=value ...]",
        *(f"[{flag}]" for flag in [*command.flags, "--log FORM"]),
    ]
    words = {
        **(of_table if command.names_table else {}),
        **({"SOURCE": f"the labels, as {command.data} names them"} if command.data else {}),
        "PRESET": f"one of: {', '.join(presets())}",
        "FILE.toml": 'your own settings; may begin with: extends = "PRESET"',
        "key=value": "a setting, e.g. train.stage2.beta=1000 or --train.stage2.beta 1000; a list "
        "is a,b",
        **command.flags,
        "--log": "lines: no progress bars, also on a terminal; json: one JSON object per line",
        "--help": "this text; --help WORD ...: the settings of a section, or with these words, "
        "e.g. --help stage2; --help all: every setting",
    }
    failed = ", also where a row failed" if command.names_table else ""
    status = STATUS.removesuffix(".") + f"{failed}."
    settings, first = command.settings, command.first.split()
    return HelpOf(program, command.what, arguments, words, settings, first, status)


def _no_command(word: str) -> str:
    """What is wrong with a first word that is no command, and what may have been meant."""
    if word in presets() or word.endswith(".toml"):
        return f"'{word}' names settings; the command comes first: raypref run {word}"
    if word and Path(word).is_dir():
        return f"'{word}' is a folder; of photographs: raypref run tiny source.path={word}"
    near = difflib.get_close_matches(word, [*COMMANDS, *ON_RUNS], n=1, cutoff=0.0)
    return f"no command '{word}'; the nearest is '{near[0]}'"


_RESOLVED = {"--resolved": "print all settings as TOML, then stop"}
_FLAGS = {
    "--dry-run": "print what the job would do and what that takes, then stop",
    **_RESOLVED,
    "--redo": "replace results in the run's folder that were made with other settings",
}
COMMANDS = {
    "run": Command(
        "Photographs to an aligned LoRA, an evaluation table and a page: the whole run.",
        partial(run_steps, only=(), result="Report"),
        RunConfig,
        _FLAGS,
        first="source.path evaluate.prompts run storage seed select.top_k lora.rank trainings "
        "train.NAME.steps metrics.rewards",
    ),
    "curate": Command(
        "Photographs to preference pairs.",
        partial(run_steps, only=CURATE, result="Pairs"),
        RunConfig,
        _FLAGS,
        first="source.path source.layout source.limit run storage seed images.size color.enabled "
        "select.top_k select.min_gap",
    ),
    "align": Command(
        "Preference pairs to an aligned LoRA: the trainings that `trainings` names.",
        partial(run_steps, only=ALIGN, result="LoRA"),
        RunConfig,
        _FLAGS,
        first="run storage trainings train.NAME.objective train.NAME.start train.NAME.steps "
        "train.NAME.lr lora.rank lora.alpha training_seed",
    ),
    "evaluate": Command(
        "The base model and a run's LoRAs on prompts: images, scores, table, page.",
        partial(run_steps, only=EVALUATE, result="Report"),
        RunConfig,
        _FLAGS,
        first="run storage evaluate.prompts evaluate.limit evaluate.seeds evaluate.loras "
        "evaluate.steps evaluate.guidance evaluate.size metrics.rewards",
    ),
    "ablate": Command(
        "Tables and figures of the paper, or a sweep of your own.",
        make_tables,
        AblateConfig,
        {
            "--dry-run": "print the rows, the distinct steps, what is done and what the rest "
            "costs, then stop",
            **_RESOLVED,
        },
        first="source.path evaluate.prompts run storage ablate.seeds ablate.at_once ablate.retries "
        "train.NAME.steps evaluate.seeds metrics.rewards",
        names_table=True,
    ),
    "sample": Command(
        "Images of a run's LoRA or of a soup of LoRAs, chosen or steered by rewards.",
        sample,
        SampleJobConfig,
        {
            "--dry-run": "print what would be drawn and what that takes, then stop",
            **_RESOLVED,
            "--redo": "replace images of this name that were made with other settings",
        },
        first="sample.method sample.rewards sample.loras sample.negative sample.candidates "
        "sample.name evaluate.prompts evaluate.seeds run storage",
        on_run=True,
    ),
    "judge": Command(
        "How often rewards agree with people's choices and with each other, and what sways them.",
        judge,
        JudgingConfig,
        _RESOLVED,
        first="judge.pairs judge.layout judge.images judge.limit judge.rewards "
        "judge.min_confidence run storage pickscore.model table.resamples",
        needed="judge.pairs=FILE",
    ),
    "arena": Command(
        "Which image generator people prefer, from their choices between labelled images.",
        show_arena,
        ArenaJobConfig,
        _RESOLVED,
        first="source.path source.layout source.limit pairs.min_confidence pairs.arena.noise "
        "pairs.arena.draw_probability pairs.arena.spread seed run storage",
        data="source.path",
    ),
}
ON_RUNS = {
    "paper": OnRun(
        "The paper's tables and figures: commands, what they need, what was run here.", show_paper
    ),
    "push": OnRun("A run's pairs and LoRA to the model hub, with their cards.", push),
    "rubric": OnRun("A run's painted holes as requests for a model that judges by a rubric.", ask),
    "study": OnRun("People choose between images, blind: make, serve and read a study.", study),
}
