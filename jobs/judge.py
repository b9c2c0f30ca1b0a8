"""How good the rewards are themselves: their accuracy, agreement and biases on labelled pairs.

python jobs/judge.py sd15 judge.pairs=pickapic/test.parquet run=judge
"""

import sys

from raypref.cli import DEFAULT_PRESET, DONE, ended, settle_storage
from raypref.cluster import start_ray
from raypref.config import InputError, describe, load, presets
from raypref.evaluate.labelled import Judging
from raypref.evaluate.tables import plain_csv
from raypref.kept import released_after
from raypref.ledger import absolute, join, write_bytes
from raypref.pipeline import RunConfig
from raypref.rewards.rewards import reward

USAGE = """\
usage: python jobs/judge.py [PRESET | FILE.toml] judge.pairs=FILE [key=value ...]

How often rewards agree with people's choices and with each other, and what sways them.

  PRESET        one of: {presets}   (default {default})

Exit status: 0 done, 2 wrong settings or input, 1 failed.

Settings (key, type, default, meaning):
"""


def main(arguments: list[str]) -> int:
    if {"--help", "-h"} & set(arguments):
        print(USAGE.format(presets=", ".join(presets()), default=DEFAULT_PRESET), end="")
        print("\n".join(f"  {line}" for line in describe(RunConfig)))
        return DONE
    return ended(lambda: work(arguments))


def work(arguments: list[str]) -> int:
    if unknown := [word for word in arguments if word.startswith("-")]:
        raise InputError(f"unknown option {' '.join(unknown)}; see --help")
    words = list(arguments)
    source = words.pop(0) if words and "=" not in words[0] else DEFAULT_PRESET
    # A run's photographs are none of this job's business, whatever its preset asks for.
    config = settle_storage(load(RunConfig, source, ["source.path=tiny:world", *words]))
    rewards = {n: reward(n, config.pickscore, config.rewards) for n in config.judge.rewards}
    for settings in rewards.values():
        settings.check()
    # Here: a wrong setting is told before these libraries are loaded.
    from raypref.evaluate import judge
    from raypref.report.judged import render

    folder = absolute(join(config.storage, config.run, "judge"))
    judging = Judging(config.judge, rewards, folder=folder)
    start_ray()
    with released_after():
        pairs = judging.run(config.stream)
    tables = {
        "accuracy": judge.accuracy(pairs, list(rewards), resamples=config.table.resamples),
        "agreement": judge.agreement(pairs, list(rewards)),
        "bias": judge.bias(pairs, list(rewards), resamples=config.table.resamples),
    }
    for name, table in tables.items():
        write_bytes(join(folder, f"{name}.csv"), plain_csv(table).encode())
        print(f"\n{name}\n{table.to_string(index=False, float_format='{:.3f}'.format)}")
    write_bytes(join(folder, "index.html"), render(**tables).encode())
    print(f"\nPage: {folder}/index.html")
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
