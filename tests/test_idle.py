"""Settings on a command line that the kind of pairs never reads are refused, defaults are not."""

from __future__ import annotations

import re

import pytest

from raypref import cli
from raypref.ablate.plan import load_config
from raypref.core.config import load
from raypref.run.config import RunConfig


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fyp_tiny", "select.top_k=8"], "select.top_k: nothing reads it with pairs.kind=candid"),
        (
            ["tiny", "candidates.count=8"],
            "candidates.count: nothing .* with pairs.kind=twins",
        ),
        (["fyp_tiny", "source.pool_size=8"], "source.pool_size: nothing .* take pairs.kind=twins"),
        (["tiny", "choice.by=capo"], "choice.by: nothing .* take pairs.kind=candidates"),
        (
            ["tiny", "pairs.kind=labelled", "source.path=tiny:labelled", "holes.grow=3"],
            "holes.grow: nothing .* take pairs.kind=twins or candidates",
        ),
        (
            [
                *("tiny", "pairs.kind=candidates", "perturb.kind=text2image"),
                *("perturb.model=tiny:sd15", "--holes.kind", "brush"),
            ],
            "holes.kind: candidates of perturb.kind=text2image have no hole",
        ),
    ],
)
def test_a_setting_that_does_nothing_is_refused_in_a_line(words, said, tmp_path, capsys):
    given = [*words, f"storage={tmp_path}", "--dry-run"]
    assert cli.console(["run", *given]) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    assert re.search(said, line), line


def test_what_presets_say_of_other_kinds_is_no_mistake(tmp_path, capsys):
    """The rows of a table switch the kind of one preset, and take what stands on its command."""
    assert cli.console(["run", "fyp_tiny", "pairs.kind=twins", "--resolved", "pairs.limit=0"]) == 0
    assert "[choice]" in capsys.readouterr().out
    assert load(RunConfig, "tiny", ["choice.by=capo"]).choice.by == "capo"
    assert load_config("fyp_tiny", ["select.top_k=8"]).select.top_k == 8
