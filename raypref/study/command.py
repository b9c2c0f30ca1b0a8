"""`raypref study`: makes a blind study of a run's images, serves it, reads its votes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from raypref.core.command_line import Words, sorted_words
from raypref.core.config import InputError, Section, build, fields_of
from raypref.core.key_help import describe
from raypref.core.progress import counted
from raypref.core.terminal import say, say_place
from raypref.core.values import parse_value
from raypref.study.config import ResultsConfig, ServeConfig, StudyConfig
from raypref.study.folder import DAMAGED, PAGE, read_study
from raypref.study.votes import VoteStore

DONE = 0
HELP = {"--help", "-h"}
USAGE = """\
usage: {program} make RUN|FOLDER [RUN|FOLDER ...] out=STUDY [key=value ...]
       {program} serve STUDY [--host ADDRESS] [--port NUMBER]
       {program} votes STUDY [FILE ...]
       {program} results STUDY [least_checks=0.75]

Ask people which of two images they prefer, without telling them which model made which.

  make     from a run's evaluation (its own model and the base, unless models= names others), or
           from folders of images of the same names; static=true also makes a page without a server
  serve    the page for raters, on this machine alone unless --host says otherwise
  votes    takes over the FILEs that a page without a server saved, then writes votes.parquet,
           votes.csv and pairs.csv, which train: pairs.kind=labelled source.path=STUDY/pairs.csv
  results  who wins, with intervals; agreement, habits, attention checks, Bradley-Terry strengths;
           of a STUDY whose votes were written, or of a table of votes

Settings of make:
{make}

Settings of serve:
{serve}

Exit status: 0 done, 2 wrong words or input, 1 failed.
"""

S = TypeVar("S", bound=Section)


def study(words: Sequence[str], program: str) -> int:
    """Do what a command line says; returns the exit status.

    Args:
        words: after the command.
        program: how it was called, for the help text.

    Raises:
        InputError: wrong words, or nothing that can be asked about; says the fix.
    """
    if HELP & {*words}:
        print(_usage(program), end="")
        return DONE
    doing, *rest = words or ("",)
    if doing not in DOINGS:
        said = f"'{doing}' is none of" if doing else "say what to do:"
        raise InputError(f"{said} {', '.join(DOINGS)}; see {program} --help")
    DOINGS[doing](rest)
    return DONE


def _usage(program: str) -> str:
    make, serve = (
        "\n".join("\n".join(f"  {line}" for line in text.splitlines()) for text in describe(model))
        for model in (StudyConfig, ServeConfig)
    )
    return USAGE.format(program=program, make=make, serve=serve)


def _read(model: type[S], words: Sequence[str]) -> tuple[list[str], S]:
    """The words that are no settings, and the settings."""
    fields = dict(fields_of(model))
    found: Words = sorted_words(words, keys=fields, flags=(), options={})
    values = {}
    for override in found.overrides:
        key, _, text = override.partition("=")
        values[key] = parse_value(text, fields[key].annotation if key in fields else None)
    return found.bare, build(model, values)


def _make(words: Sequence[str]) -> None:
    from raypref.study.make import make_study

    named, config = _read(StudyConfig, words)
    made, cropped = make_study(named, config)
    kinds = [task.kind for task in made.tasks.values()]
    models = {side.model for item in made.items.values() for side in item.sides} - {DAMAGED}
    prompts = {item.prompt_id for item in made.items.values()}
    say(
        f"{counted(kinds.count('item'), 'pair')} of {', '.join(sorted(models))} on "
        f"{counted(len(prompts), 'prompt')}, {counted(kinds.count('repeat'), 'repeat')}, "
        f"{counted(kinds.count('check'), 'attention check')}"
    )
    if cropped:
        say(f"Of {cropped} pairs both images had other shapes: their centre squares are shown.")
    say_place("Study", str(made.folder))
    if config.static:
        say_place("Page without a server", str(made.folder / PAGE))
    say(f"Next: raypref study serve {config.out}")
    say("Keep study.json from raters: it says which model made which image.")


def _serve(words: Sequence[str]) -> None:
    from raypref.study.server import serve_study

    named, config = _read(ServeConfig, words)
    serve_study(read_study(_one(named, "serve")), config, say=say)


def _votes(words: Sequence[str]) -> None:
    from raypref.study.export import export_votes, read_in, told_of

    named, _ = _read(Section, words)
    if not named:
        _one(named, "votes")
    own = read_study(named[0])
    store = VoteStore(own.folder)
    try:
        if files := named[1:]:
            new = read_in(own, store, files)
            say(f"{counted(new, 'new vote')} of {counted(len(files), 'file')}")
        exported = export_votes(own, store)
    finally:
        store.close()
    say(told_of(exported))
    say_place("Votes", str(own.folder / "votes.parquet"))
    say_place("Pairs", str(own.folder / "pairs.csv"))
    say(f"{counted(exported.pairs, 'pair')} by majority, {counted(exported.ties, 'tie')} left out")
    if exported.pairs:
        path = own.folder / "pairs.csv"
        say(f"Next: raypref run tiny pairs.kind=labelled source.path={path}    # sd15 for real")


def _results(words: Sequence[str]) -> None:
    from raypref.study.summary import result_lines, summarise_votes

    named, config = _read(ResultsConfig, words)
    folder, results = summarise_votes(_one(named, "results"), least_checks=config.least_checks)
    for line in result_lines(results):
        say(line)
    say_place("Table", str(folder / "results.md"))
    say_place("Page", str(folder / "results.html"))


def _one(named: Sequence[str], doing: str) -> str:
    if len(named) != 1:
        raise InputError(f"name one study: raypref study {doing} FOLDER")
    return named[0]


DOINGS: dict[str, Callable[[Sequence[str]], None]] = {
    "make": _make,
    "serve": _serve,
    "votes": _votes,
    "results": _results,
}
