"""What a command says, in each form: bars on a terminal, lines, JSON."""

import io
import json
import logging
import os
import re
import time
import tomllib
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from datetime import UTC, datetime
from pathlib import Path

import pytest

from raypref import cli
from raypref.core.config import InputError
from raypref.core.progress import Progress, at_step, since_start, waiting
from raypref.core.terminal import say, say_error, say_place, spoken

log = logging.getLogger("raypref.test")
PATH = "/somewhere/with a space/" + "long/" * 30 + "index.html"


class Terminal(io.StringIO):
    """A terminal that remembers what was written to it."""

    def isatty(self) -> bool:
        return True

    def written(self) -> str:
        """What it was told, without what moves the cursor or colours."""
        return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]|\r", "", self.getvalue())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return Terminal()


def ended_on(terminal: Terminal, work: Callable[[], int], *, form: str = "auto") -> int:
    """Do a job whose stdout is the terminal (pytest puts its own there until the test begins)."""
    with redirect_stdout(terminal):
        return cli.ended(work, form=form)


def a_pass(watch: Callable[[int], None] = lambda row: None) -> int:
    """A job of one pass; `watch` is called after each row."""
    say("run folder   /runs/mine")
    with at_step("pairs"), waiting("pairs: working"):
        progress = Progress("scored", total=4, unit="rows", every=0.0)
        for row in range(4):
            progress.add(1, note="0 dropped")
            watch(row)
        log.warning("a [red]line[/red] of a stranger")
        progress.finish(note="0 dropped")
    say_place("Report", PATH)
    say_place("Pairs", "s3://bucket/runs/pairs")
    return 0


def test_lines_are_plain_and_whole(capsys):
    assert cli.ended(a_pass) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "run folder   /runs/mine"
    assert re.fullmatch(r"\d\d:\d\d:\d\d scored: 1/4 rows, 0 dropped", out[1])
    assert sum("scored: " in line for line in out) == 4, "three on the way, and the last"
    assert re.match(r"\d\d:\d\d:\d\d scored: 4/4 rows, .* rows/s, 0 dropped, took ", out[-3])
    assert out[-2:] == [f"Report: {PATH}", "Pairs: s3://bucket/runs/pairs"]
    assert "\x1b" not in "".join(out)


def test_json_is_one_object_per_line_with_the_step_and_the_pass(capsys):
    before = datetime.now(UTC).replace(microsecond=0)  # lines tell milliseconds
    assert cli.ended(a_pass, form="json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    keys = ["time", "level", "step", "pass", "done", "total", "rate", "message"]
    assert all([*line] == keys for line in lines)
    assert all(before <= datetime.fromisoformat(line["time"]) for line in lines)
    passes = [line for line in lines if line["pass"]]
    assert [(x["step"], x["pass"], x["done"], x["total"]) for x in passes] == [
        ("pairs", "scored", done, 4) for done in (1, 2, 3, 4)
    ]
    assert passes[0]["rate"] is None and passes[-1]["rate"] > 0
    assert [x["level"] for x in lines if "stranger" in x["message"]] == ["warning"]
    assert (lines[0]["step"], lines[0]["message"]) == (None, "run folder   /runs/mine")
    assert lines[-2]["message"] == f"Report: {PATH}"


@pytest.mark.parametrize(
    ("error", "status", "level", "says"),
    [
        (InputError("run=: wrong\nseed=: wrong"), 2, "error", "error: run=: wrong"),
        (ValueError("a bug"), 1, "error", "ValueError: a bug"),
        (KeyboardInterrupt(), 130, "error", "Interrupted. Run the same command again to resume."),
    ],
)
def test_what_goes_wrong_is_json_too(error, status, level, says, capsys):
    def work() -> int:
        raise error

    assert cli.ended(work, form="json") == status
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in (out + err).splitlines()]
    assert says in lines[0]["message"] and lines[0]["level"] == level
    assert len(lines) == (2 if status == 2 else 1)


def test_what_libraries_print_is_json_too(capsys):
    def work() -> int:
        print("\x1b[33m(raylet)\x1b[0m WARNING: 8 PYTHON", "worker processes")
        print("without an end", end="")
        return 0

    assert cli.ended(work, form="json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["message"] == "(raylet) WARNING: 8 PYTHON worker processes"


def test_settings_are_toml_in_any_form(capsys):
    assert cli.console(["run", "tiny", "--resolved", "--log", "json"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["run"] == "run"


def test_a_terminal_shows_bars_and_links(terminal):
    seen: list[str] = []

    def watch(row: int) -> None:
        deadline = time.monotonic() + 20
        while f"{row + 1}/4" not in terminal.written() and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.append(terminal.written())

    assert ended_on(terminal, lambda: a_pass(watch)) == 0
    assert all(f"{row + 1}/4" in told for row, told in enumerate(seen)), "the bar follows"
    assert all("scored: " not in told for told in seen), "no lines beside the bar"
    written = terminal.written()
    assert "a [red]line[/red] of a stranger" in written
    assert re.search(r"scored: 4/4 rows, .*, took ", written)
    # OSC 8, by which a terminal knows a link; the path is whole, however narrow the terminal.
    link = f"file://{PATH.replace(' ', '%20')}"
    assert re.search(rf"\x1b]8;[^;]*;{re.escape(link)}\x1b\\{PATH}\x1b]8;;\x1b\\\n", written)
    assert "Pairs: s3://bucket/runs/pairs\n" in written
    # The cursor is there again, and nothing is left of the bar.
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")
    assert "4/4 " not in written[written.index("took ") :]


def test_a_terminal_says_what_is_waited_for_where_nothing_is_counted(terminal):
    def work() -> int:
        with waiting("starting Ray"):
            deadline = time.monotonic() + 20
            while "starting Ray (" not in terminal.written() and time.monotonic() < deadline:
                time.sleep(0.01)
        return 0

    assert ended_on(terminal, work) == 0
    assert re.search(r"starting Ray \(\d\.\d s so far\)", terminal.written())


@pytest.mark.parametrize(("form", "term"), [("lines", "xterm"), ("auto", "dumb"), ("auto", "")])
def test_a_terminal_gets_lines_when_asked_or_unable(form, term, terminal, monkeypatch):
    monkeypatch.setenv("TERM", term)
    assert ended_on(terminal, a_pass, form=form) == 0
    assert "\x1b" not in terminal.getvalue()
    assert f"Report: {PATH}\n" in terminal.getvalue()


def test_the_log_is_as_before_when_the_job_has_ended(capsys):
    root = logging.getLogger()
    before = [*root.handlers], root.level
    for form in ("lines", "json"):
        cli.ended(lambda: 0, form=form)
    assert ([*root.handlers], root.level) == before


def test_time_counts_from_the_start_of_the_process():
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    assert since_start() == pytest.approx(uptime - ticks / os.sysconf("SC_CLK_TCK"), abs=2)


def test_advice_of_ray_on_its_own_settings_is_not_shown():
    def work() -> int:
        for module in ("ray.data._internal.execution", "raypref.engine.pool"):
            warnings.warn_explicit(f"from {module}", UserWarning, "file.py", 1, module=module)
        return 0

    with pytest.warns(UserWarning) as seen:
        assert cli.ended(work) == 0
    assert [str(one.message) for one in seen] == ["from raypref.engine.pool"]


def test_no_password_of_an_address_reaches_the_terminal(capsys):
    address = "s3://key:secret@bucket/runs"
    with spoken("lines"):
        say(f"planning in {address}")
        say_place("Page", f"{address}/index.html")
        say_error(f"error: {address} is in use")
    out, err = capsys.readouterr()
    assert out == "planning in s3://***@bucket/runs\nPage: s3://***@bucket/runs/index.html\n"
    assert err == "error: s3://***@bucket/runs is in use\n"
    assert cli.console(["run", "tiny", f"{address}=", "no-key"]) == 2
    assert "secret" not in capsys.readouterr().err
