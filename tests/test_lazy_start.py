"""What only reads settings or plans imports none of the libraries that take seconds to import."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATH = {"PYTHONPATH": str(ROOT)}
HEAVY = {"torch", "diffusers", "peft", "transformers", "ray", "mlflow"}
# Quicker than those, but all of these commands together do without them as well.
LATE = HEAVY | {"pandas", "matplotlib", "scipy", "optuna", "huggingface_hub"}

COMMANDS = [
    (["full_pipeline", "--help"], 0, "train.stage2.beta"),
    (["full_pipeline", "--help", "all"], 0, "train.NAME.resources.num_gpus"),
    (["full_pipeline", "--help", "lora", "rank"], 0, "lora.alpha"),
    (["full_pipeline"], 2, "usage: python jobs/full_pipeline.py PRESET|FILE.toml"),
    (["full_pipeline", "tiny", "--resolved"], 0, "[train.stage2]"),
    (["curate", "--help"], 0, "select.top_k"),
    (["align", "--help"], 0, "lora.rank"),
    (["evaluate", "--help"], 0, "evaluate.seeds"),
    (["judge", "--help"], 0, "judge.pairs"),
    (["ablate", "--help"], 0, "ablate.seeds"),
    (["full_pipeline", "tiny", "train.stage2.bta=1"], 2, "train.stage2.beta"),
    (["judge", "tiny", "judge.pears=x"], 2, "judge.pairs"),
    (["full_pipeline", "tiny", "--dry-run"], 0, " > evaluation > card > report"),
    (["ablate", "table3", "tiny", "--dry-run"], 0, "distinct models to train: 3"),
    (["raypref", "--help"], 0, "raypref run tiny"),
    (["raypref", "--version"], 0, "raypref 0."),
    (["raypref"], 2, "usage: raypref COMMAND"),
    (["raypref", "evalute"], 2, "the nearest is 'evaluate'"),
    (["raypref", "judge", "--help"], 0, "judge.pairs"),
    (["raypref", "arena", "--help"], 0, "pairs.arena.noise"),
    (["raypref", "judge", "tiny", "judge.pears=x"], 2, "judge.pairs"),
    (["raypref", "run", "tiny", "--dry-run"], 0, " > evaluation > card > report"),
    (["raypref", "ablate", "table3", "tiny", "--dry-run"], 0, "distinct models to train: 3"),
    (["raypref", "paper", "table3"], 0, "raypref ablate table3 sd15 "),
]
# CPU time of one command, on cores on which the libraries take 0.25 s to import. Where they take
# longer, the command may take longer in proportion.
SECONDS, LIBRARIES = 2.0, (0.25, "import numpy, pydantic")

# Runs scripts one after another, as `python SCRIPT WORDS` would; tells how each ended.
RUN = """
import contextlib, io, json, runpy, sys
ends = []
for script, *words in json.loads(sys.argv[1]):
    sys.argv, said, code = [script, *words], io.StringIO(), None
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = end.code
    ends.append([code, said.getvalue(), sorted({name.split(".")[0] for name in sys.modules})])
print(json.dumps(ends))
"""


def python(code: str, *arguments: str, folder: Path = ROOT) -> str:
    """Run Python code in a process of its own; returns what it prints."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str, list[str]]]:
    """Exit status, output and imported libraries after each of the commands."""
    files = {"raypref": ROOT / "raypref" / "__main__.py"}
    scripts = [
        [str(files.get(name, ROOT / "jobs" / f"{name}.py")), *words]
        for (name, *words), _, _ in COMMANDS
    ]
    found: list[tuple[int, str, list[str]]] = json.loads(
        python(RUN, json.dumps(scripts), folder=tmp_path_factory.mktemp("start"))
    )
    return found


@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=[" ".join(c) for c, _, _ in COMMANDS])
def test_a_command_that_runs_nothing_imports_no_heavy_library(ends, number):
    _, status, told = COMMANDS[number]
    code, said, libraries = ends[number]
    assert code == status, said
    assert told in said
    assert LATE & set(libraries) == set()


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["evalute"], ["run", "tiny", "--dry-run"]], ids=" ".join
)
def test_the_console_command_answers_quickly(words, tmp_path):
    """The least CPU time of five tries: other work on the machine takes its share of some."""

    def seconds(*arguments: str) -> float:
        command, environment = [sys.executable, *arguments], os.environ | PATH
        before = os.times()
        subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
        after = os.times()
        return sum(after[2:4]) - sum(before[2:4])

    usual, libraries = LIBRARIES

    def quick() -> bool:
        slowness = max(1.0, seconds("-c", libraries) / usual)
        return seconds("-m", "raypref", *words) < SECONDS * slowness

    assert any(quick() for _ in range(5))


def settings_and_stages() -> list[str]:
    """Modules that define a section of the settings or a stage of rows."""
    found = []
    for path in sorted((ROOT / "raypref").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.ClassDef):
                continue
            section = any(ast.unparse(base).endswith(("Section", "Config")) for base in node.bases)
            methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
            protocol = "Protocol" in map(ast.unparse, node.bases)
            if section or ({"setup", "__call__"} <= methods and not protocol):
                found.append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return list(dict.fromkeys(found))


def test_settings_and_stages_can_be_had_without_any_heavy_library():
    names = settings_and_stages()
    assert {"raypref.run.config", "raypref.curate.perturb", "raypref.evaluate.metrics"} <= {*names}
    blocked = f"import sys; sys.modules |= dict.fromkeys({sorted(HEAVY)})\n"
    python(blocked + "\n".join(f"import {name}" for name in names))


def test_a_reward_loads_without_the_libraries_of_diffusion_models():
    python("""
import sys
sys.modules |= dict.fromkeys(["diffusers", "peft", "ray", "mlflow"])
from raypref.rewards.pickscore import PickScoreConfig
PickScoreConfig(model="tiny:pickscore", processor="tiny:pickscore").load()
""")
