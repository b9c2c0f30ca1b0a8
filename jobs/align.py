"""Alignment alone: the pairs of a run to its LoRA.

The command `raypref align` as a script, for `ray job submit`:

python jobs/align.py tiny
python jobs/align.py sd15 source.path=photos/ evaluate.prompts=prompts.txt run=my-run
"""

import sys

from raypref.cli import main

if __name__ == "__main__":
    sys.exit(main("align", sys.argv[1:], program="python jobs/align.py"))
