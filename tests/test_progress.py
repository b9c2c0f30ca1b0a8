"""What progress lines say."""

import logging

from raypref.progress import Progress


def test_lines_tell_rate_and_time_left_once_something_is_done(caplog):
    caplog.set_level(logging.INFO)
    progress = Progress("painted", total=10, unit="rows", every=0, done=2)
    progress.add(0, note="0 rejected")  # a part of which no row is wanted
    assert caplog.messages == []
    progress.add(4, note="1 rejected")
    progress.add(4, note="1 rejected")
    progress.finish(note="1 rejected")
    first, last = caplog.messages
    assert first.startswith("painted: 6/10 rows, ") and ", 1 rejected, ETA " in first
    assert last.startswith("painted: 10/10 rows, ") and ", took " in last
