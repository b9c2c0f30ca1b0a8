"""What progress lines say."""

import logging
import queue
import time
from threading import get_ident

from raypref.core import progress as progress_module
from raypref.core.progress import Progress, waiting


def test_lines_tell_rate_and_time_left_once_something_is_done(caplog):
    caplog.set_level(logging.INFO)
    progress = Progress("painted", total=10, unit="rows", every=0, done=2)
    progress.add(0, note="0 rejected")  # a part of which no row is wanted
    assert caplog.messages == []
    progress.add(2, note="1 rejected")
    progress.add(2, note="1 rejected")
    progress.add(4, note="1 rejected")
    progress.finish(note="1 rejected")
    start, first, last = caplog.messages
    assert start == "painted: 4/10 rows, 1 rejected", "no rate is known yet"
    assert first.startswith("painted: 6/10 rows, ") and ", 1 rejected, ETA " in first
    assert last.startswith("painted: 10/10 rows, ") and ", took " in last


def test_the_time_left_does_not_count_the_start_of_workers(caplog, monkeypatch):
    """Workers start for 100 s; then 4 rows take 2 s each."""
    now, real, here = [0.0], time.monotonic, get_ident()
    clock = lambda: now[0] if get_ident() == here else real()  # noqa: E731
    monkeypatch.setattr(progress_module.time, "monotonic", clock)
    caplog.set_level(logging.INFO)
    progress = Progress("painted", total=10, unit="rows", every=0)
    for now[0], rows in ((100.0, 1), (102.0, 1), (108.0, 3)):
        progress.add(rows, note="-")
    assert "ETA" not in caplog.messages[0]
    assert caplog.messages[1].endswith("0.50 rows/s, -, ETA 16 s")
    assert caplog.messages[2].endswith("0.50 rows/s, -, ETA 10 s")


def test_a_long_silence_is_broken_by_what_is_waited_for(monkeypatch):
    monkeypatch.setattr(progress_module, "SILENCE", 0.2)
    heard: queue.Queue[str] = queue.Queue()

    class Hear(logging.Handler):
        def emit(self, record):
            heard.put(record.getMessage())

    logger, hear, state = logging.getLogger("raypref"), Hear(), ["1 worker starts"]
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.addHandler(hear)
    try:
        with waiting("the step works"), waiting(lambda: state[0]):
            assert heard.get(timeout=60).startswith("1 worker starts (")
            state[0] = "2 workers start"
            while not (line := heard.get(timeout=60)).startswith("2 workers start ("):
                assert line.startswith("1 worker starts ("), "the innermost is told"
    finally:
        logger.removeHandler(hear)
