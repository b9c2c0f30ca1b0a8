"""Tables and figures of the paper, or your own sweep: plan, run, track, print.

python jobs/ablate.py table3 tiny
python jobs/ablate.py all sd15 source.path=photos/ evaluate.prompts=prompts.txt --dry-run
python jobs/ablate.py my-sweep.toml tiny ablate.seeds=3
"""

import sys

from raypref.ablate.driver import make, plan_text, tables_of
from raypref.ablate.plan import AblateConfig, load_config
from raypref.ablate.table import names
from raypref.cli import DEFAULT_PRESET, DONE, FAILED, ended, settle_storage
from raypref.config import InputError, describe, presets

USAGE = """\
usage: python jobs/ablate.py TABLE|FILE.toml|all [PRESET|FILE.toml] [key=value ...] [--dry-run]

  TABLE        one of: {tables}
  FILE.toml    your own table or sweep; all: every table and figure of the paper
  PRESET       one of: {presets}   (default {default})
  --dry-run    print the rows, the distinct steps, what is done and what the rest costs, then stop

Exit status: 0 done, 2 wrong settings or input, 1 failed, also where a row failed.

Settings (key, type, default, meaning):
"""


def main(arguments: list[str]) -> int:
    if not arguments or {"--help", "-h"} & set(arguments):
        told = {"tables": ", ".join(names()), "presets": ", ".join(presets())}
        print(USAGE.format(**told, default=DEFAULT_PRESET), end="")
        print("\n".join(f"  {line}" for line in describe(AblateConfig)))
        return DONE
    return ended(lambda: work(arguments))


def work(arguments: list[str]) -> int:
    words = [word for word in arguments if word != "--dry-run"]
    if unknown := [word for word in words if word.startswith("-")]:
        raise InputError(f"unknown option {' '.join(unknown)}; see --help")
    tables = tables_of(words.pop(0))
    source = words.pop(0) if words and "=" not in words[0] else DEFAULT_PRESET
    config = settle_storage(load_config(source, words))
    if "--dry-run" in arguments:
        print(plan_text(tables, config))
        return DONE
    made = make(tables, config)
    for each in made:
        print(f"\n{each.text}\nTable: {each.folder}/table.md")
    return FAILED if any(each.failed for each in made) else DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
