"""`raypref rubric`: what a run painted, as requests for a model that judges by a rubric.

Nothing is sent. Answers are read back as `metrics.rubric`.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Sequence

from pyarrow import fs as pafs

from raypref.core.config import InputError
from raypref.core.ledger import Ledger, filesystem, join, write_bytes
from raypref.core.progress import counted
from raypref.curate.select import SOUND
from raypref.evaluate.painting import PHOTOGRAPHS
from raypref.evaluate.rubric import question, read_answers, request_id, told
from raypref.evaluate.sets import ROOT
from raypref.images.decode import open_png
from raypref.run.words import DONE, RunWords, find_run

REQUESTS, PICTURES = "requests.jsonl", "pictures"


def ask(words: Sequence[str], program: str) -> int:
    """Do what a command line says; returns the exit status.

    Args:
        words: after the command.
        program: how it was called, for the help text.

    Raises:
        InputError: wrong words, no such run, or nothing that was painted; says the fix.
    """
    parser = RunWords(
        prog=program,
        allow_abbrev=False,
        description="Write a run's painted holes as requests for a model that judges by a rubric "
        "(Follow-Your-Preference's: 40 points for aesthetics, 30 for structure, 30 for meaning). "
        "Nothing is sent anywhere.",
        epilog='Answers are a file with one line per request, {"id": "...", "answer": "..."}; '
        "`raypref evaluate ... metrics.rubric=FILE` makes a column of them.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="folder or URI of a run, or the name of one below runs/")
    add("--set", metavar="NAME", default="", help="of the set of holes; the first by default")
    add("--answers", metavar="FILE", default="", help="leave out what it answers")
    if {"--help", "-h"} & {*words}:
        print(parser.format_help(), end="")
        return DONE
    given = parser.parse_args(words)
    folder, _ = find_run(given.run)
    at = join(folder, ROOT, *([given.set] if given.set else []))
    asked, text = write_requests(at, answers=given.answers)
    print(f"{counted(asked, 'request')} ({text}): {join(at, 'rubric', REQUESTS)}")
    return DONE


def write_requests(at: str, *, answers: str = "") -> tuple[int, str]:
    """Write `rubric/requests.jsonl` and the pictures that it names, below a set's folder.

    A line has `id`, `prompt`, `question`, and the files `photograph`, `mask` and `result`, relative
    to it. Lines are in the order of their ids, which tell no model: who answers is blind.

    Args:
        at: folder of a set of holes, local or URI.
        answers: file of answers; requests that it answers are left out. Empty: there are none.

    Returns:
        The number of requests, and what became of all images, for people.

    Raises:
        InputError: the set has no holes, or its images are not finished.
    """
    photographs, images = Ledger(join(at, PHOTOGRAPHS), {}), image_ledgers(at)
    if not photographs.committed() or not images:
        raise InputError(
            f"{at} holds no finished images of painted holes; run raypref evaluate with "
            "evaluate.holes=... first"
        )
    marks, unreadable = read_answers(answers) if answers else ({}, set())
    folder = join(at, "rubric")
    requests: dict[str, dict[str, str]] = {}
    wanted: set[str] = set()
    holes: set[int] = set()
    for ledger in images:
        for row in ledger.rows(["prompt_id", "prompt", "image"], where=SOUND):
            own = request_id(open_png(row["image"]), row["prompt"])
            wanted.add(own)
            if own in marks or own in requests:
                continue
            number, result = row["prompt_id"], f"{PICTURES}/{own}.png"
            write_bytes(join(folder, result), row["image"])
            holes.add(number)
            requests[own] = {
                "id": own,
                "prompt": row["prompt"],
                "photograph": f"{PICTURES}/hole-{number}-photograph.png",
                "mask": f"{PICTURES}/hole-{number}-mask.png",
                "result": result,
                "question": question(row["prompt"]),
            }
    for row in photographs.rows(["prompt_id", "photograph", "mask"], where=SOUND):
        if row["prompt_id"] in holes:
            for name in ("photograph", "mask"):
                file = f"{PICTURES}/hole-{row['prompt_id']}-{name}.png"
                write_bytes(join(folder, file), row[name])
    lines = (f"{json.dumps(requests[own], ensure_ascii=False)}\n" for own in sorted(requests))
    write_bytes(join(folder, REQUESTS), "".join(lines).encode())
    return len(requests), told(marks, unreadable, wanted)


def image_ledgers(at: str) -> list[Ledger]:
    """The ledgers below `images/`, one per model of a set, that are complete."""
    return [ledger for ledger in _ledgers(join(at, "images")) if ledger.committed()]


def _ledgers(folder: str) -> Iterator[Ledger]:
    files, path = filesystem(folder)
    listed = files.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    for name in sorted(posixpath.basename(info.path) for info in listed if not info.is_file):
        yield Ledger(join(folder, name), {})
