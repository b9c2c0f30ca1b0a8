"""Everything about one GPU that can be measured in half an hour, with what was predicted.

    python benchmarks/gpu.py all --out results
    python benchmarks/gpu.py env build check train --seconds 500 --out results
    python benchmarks/gpu.py all --device cpu --size small --seconds 120 --out results

Sections run in the order given. Each figure is appended to OUT/results.jsonl at once, so that an
end by force loses nothing; a table of predictions and figures comes last. Sections that fail are
recorded and do not end the others. No network, no Ray, no weights: the models are of the published
sizes with random weights (`full.py`). On a CPU the same code runs, to try it: times are the
process's own, and what only a GPU has is left out. What each section answers: README.md beside.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu_sections.bench import Bench

SECTIONS = (
    "env",
    "build",
    "check",
    "train",
    "inpaint",
    "score",
    "lock",
    "evaluate",
    "sd35",
    "compile",
)
HIDDEN = "deterministic"  # a part of `check`, in a process of its own


def sections() -> dict[str, Callable[[Bench], None]]:
    """The sections by name."""
    from gpu_sections import check, curation, evaluation, machine, training

    return {
        "env": machine.env,
        "build": machine.build,
        "check": check.check,
        "train": training.train,
        "inpaint": curation.inpaint,
        "score": curation.score,
        "lock": curation.lock,
        "evaluate": evaluation.evaluate,
        "compile": training.compile_,
        "sd35": training.sd35,
        HIDDEN: check.deterministic,
    }


def run(bench: Bench, names: Sequence[str], known: dict[str, Callable[[Bench], None]]) -> None:
    """Run sections in order, until the deadline.

    Args:
        bench: the bench.
        names: sections.
        known: what they are.
    """
    for name in names:
        bench.section = name
        print(f"{name}:", flush=True)
        if time.monotonic() > bench.deadline:
            bench.record("not begun", "out of time", "")
            continue
        began = time.monotonic()
        try:
            known[name](bench)
        except Exception as error:
            bench.fail(error)
        bench.clear()
        bench.record("whole section", time.monotonic() - began, "s")


def main(words: Sequence[str]) -> int:
    """Returns the exit status: 1 where something failed, 2 where the command is wrong."""
    parser = argparse.ArgumentParser(prog="gpu.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "sections", nargs="+", choices=[*SECTIONS, "all", HIDDEN], metavar="SECTION"
    )
    parser.add_argument("--seconds", type=float, default=1800, help="begin nothing new after these")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--size", choices=["full", "small"], default="full", help="of the models")
    parser.add_argument(
        "--models",
        type=Path,
        default=Path(tempfile.gettempdir()) / "raypref-full",
        help="folder of the models, 14 GB at full size",
    )
    given = parser.parse_args(words)
    if HIDDEN in given.sections:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import torch
    from gpu_sections.bench import Bench, table

    quieten()
    if given.device == "cuda" and not torch.cuda.is_available():
        print(
            f"no usable GPU: torch {torch.__version__} was built for CUDA {torch.version.cuda}; "
            "see nvidia-smi for the driver, or pass --device cpu --size small",
            file=sys.stderr,
        )
        return 2
    for folder in (given.out, given.models):
        folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + given.seconds
    bench = Bench(torch.device(given.device), given.size, given.out, given.models, deadline)
    names = SECTIONS if "all" in given.sections else given.sections
    run(bench, names, sections())
    print("\n" + table(bench.figures))
    failed = [one for one in bench.figures if str(one["value"]).startswith("failed")]
    for one in failed:
        print(f"{one['section']} {one['variant']}: {one['value']}", file=sys.stderr)
    return 1 if failed else 0


def quieten() -> None:
    """No progress bars among the figures."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    for logging in (of_diffusers, of_transformers):
        logging.disable_progress_bar()
        logging.set_verbosity_error()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
