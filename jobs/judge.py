"""How good the rewards are themselves: their accuracy, agreement and biases on labelled pairs.

python jobs/judge.py sd15 judge.pairs=pickapic/test.parquet run=judge
"""

import logging
import sys

from raypref.config import InputError, load
from raypref.evaluate import judge
from raypref.evaluate.labelled import Judging
from raypref.evaluate.tables import plain_csv
from raypref.ledger import absolute, join, write_bytes
from raypref.pipeline import RunConfig
from raypref.report.judged import render
from raypref.rewards.rewards import reward
from raypref.streaming import start_ray

DONE, WRONG_INPUT = 0, 2


def main(source: str = "tiny", *overrides: str) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        # A run's photographs are none of this job's business, whatever its preset asks for.
        config = load(RunConfig, source, ["source.path=tiny:world", *overrides])
        rewards = {n: reward(n, config.pickscore, config.rewards) for n in config.judge.rewards}
        for settings in rewards.values():
            settings.check()
        folder = absolute(join(config.storage, config.run, "judge"))
        judging = Judging(config.judge, rewards, folder=folder)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    start_ray()
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
    sys.exit(main(*sys.argv[1:]))
