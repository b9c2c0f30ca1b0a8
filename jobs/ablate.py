"""Tables and figures of the paper, or your own sweep: plan, run, track, print.

The command `raypref ablate` as a script, for `ray job submit`:

python jobs/ablate.py table3 tiny
python jobs/ablate.py all sd15 source.path=photos/ evaluate.prompts=prompts.txt --dry-run
python jobs/ablate.py my-sweep.toml tiny ablate.seeds=3
"""

import sys

from raypref.cli import main

if __name__ == "__main__":
    sys.exit(main("ablate", sys.argv[1:], program="python jobs/ablate.py"))
