"""Fingerprints: what tells two sets of settings apart, and what does not."""

import subprocess
import sys
from pathlib import Path

from raypref.core.fingerprints import changed_keys, fingerprint


def test_a_fingerprint_does_not_depend_on_order_or_process():
    settings = {"b": [1, 2], "a": 0.1, "c": "ü"}
    here = fingerprint(settings)
    assert here == fingerprint(dict(sorted(settings.items())))
    code = (
        "from raypref.core.fingerprints import fingerprint\n"
        "print(fingerprint({'c': 'ü', 'a': 0.1, 'b': [1, 2]}))"
    )
    there = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "7", "PYTHONUTF8": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == here
    assert here != fingerprint(settings | {"a": 0.2})
    assert len(here) == 16
    assert int(here, 16) >= 0


def test_a_list_read_back_from_json_has_the_fingerprint_of_the_tuple():
    assert fingerprint({"seeds": (1, 2)}) == fingerprint({"seeds": [1, 2]})


def test_changed_keys_are_told_with_old_and_new():
    before = {"beta": 1, "lr": 2, "gone": "x"}
    after = {"beta": 1, "lr": 3, "new": None}
    assert changed_keys(before, after) == [
        "gone: 'x' -> '(absent)'",
        "lr: 2 -> 3",
        "new: '(absent)' -> None",
    ]
