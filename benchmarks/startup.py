"""The demo of this state beside that of an older one: seconds in all, to the first row, in silence.

python benchmarks/startup.py [COMMIT] [ROUNDS]      # by default 9b16dd5, one round

Runs `jobs/full_pipeline.py tiny` of both in turn, with one environment, each in its own folder,
after a `--dry-run` of each. CPU seconds are those of the whole machine or container: nothing else
should run.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
PROGRESS = re.compile(r"^\d\d:\d\d:\d\d (?P<label>[\w, ]+): (?P<rest>\d+/\d+ (rows|steps).*)$")
TABLE_ROW = re.compile(r"^(base|stage 1|stage 2 alone|stage 1 \+ stage 2)  ")


class Demo(NamedTuple):
    """What was seen of one run."""

    wall: float  # seconds from the start of the process to its end
    cpu: float
    silence: float  # longest time without a line
    before: str  # the line that ended it
    firsts: dict[str, float]  # seconds from the end of the pass before to the first row or step
    table: list[str]


def demo(checkout: Path, storage: Path) -> Demo:
    """Run the demo of a checkout and note when each line came."""
    began, cpu = time.monotonic(), cpu_seconds()
    process = subprocess.Popen(
        [sys.executable, "jobs/full_pipeline.py", "tiny", "run=demo", f"storage={storage}"],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    last = pass_began = began
    silence, before, table = 0.0, "", []
    firsts: dict[str, float] = {}
    for line in process.stdout:
        now = time.monotonic()
        if now - last > silence:
            silence, before = now - last, line.strip()
        last = now
        if found := PROGRESS.match(line):
            firsts.setdefault(found["label"], now - pass_began)
            if "took" in found["rest"]:
                pass_began = now
        if TABLE_ROW.match(line):
            table.append(line.rstrip())
    assert process.wait() == 0, "the demo failed"
    wall = time.monotonic() - began
    return Demo(wall, cpu_seconds() - cpu, silence, before, firsts, table)


def cpu_seconds() -> float:
    """CPU seconds that the container, or else the machine, has used."""
    group = Path("/sys/fs/cgroup/cpu.stat")
    if group.is_file():
        return int(re.search(r"usage_usec (\d+)", group.read_text())[1]) / 1e6  # type: ignore[index]
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def main(commit: str = "9b16dd5", rounds: str = "1") -> None:
    """Print both, round by round, and the ratio."""
    git = ["git", "-C", str(REPOSITORY)]
    ratios = []
    with TemporaryDirectory() as scratch:
        old = Path(scratch, "old")
        subprocess.run([*git, "worktree", "add", "--detach", str(old), commit], check=True)
        try:
            for checkout in (old, REPOSITORY):  # files that are read for the first time take longer
                plan = [sys.executable, "jobs/full_pipeline.py", "tiny", "--dry-run"]
                path = {**os.environ, "PYTHONPATH": str(checkout)}
                subprocess.run(plan, cwd=checkout, env=path, check=True, stdout=subprocess.DEVNULL)
            for number in range(int(rounds)):
                seen = {}
                for name, checkout in ((commit, old), ("this state", REPOSITORY)):
                    seen[name] = demo(checkout, Path(scratch, f"{number}-{name.replace(' ', '-')}"))
                    show(name, seen[name])
                ratios.append(seen["this state"].wall / seen[commit].wall)
                print(f"wall time of this state: {ratios[-1]:.2f} of {commit}")
                # Their order has changed since: a table lists stage 1 before stage 2 alone.
                same = sorted(seen["this state"].table) == sorted(seen[commit].table)
                print(f"the same rows to the digit: {'yes' if same else 'no'}", flush=True)
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(old)], check=True)
    print(f"median of {len(ratios)}: {statistics.median(ratios):.2f}")


def show(name: str, seen: Demo) -> None:
    """Print what was seen of one run."""
    print(f"\n{name}: {seen.wall:.0f} s wall, {seen.cpu:.0f} s CPU")
    print(f"  longest silence {seen.silence:.1f} s, before: {seen.before[:90]}")
    for label, seconds in seen.firsts.items():
        print(f"  {label}: first rows or steps after {seconds:.1f} s")
    print("\n".join(seen.table), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
