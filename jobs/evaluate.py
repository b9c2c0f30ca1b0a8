"""Evaluation alone: a run's models on prompts.

The command `raypref evaluate` as a script, for `ray job submit`:

python jobs/evaluate.py tiny
python jobs/evaluate.py sd15 source.path=photos/ evaluate.prompts=prompts.txt run=my-run
"""

import sys

from raypref.cli import main

if __name__ == "__main__":
    sys.exit(main("evaluate", sys.argv[1:], program="python jobs/evaluate.py"))
