"""Curation alone: photographs to preference pairs.

The command `raypref curate` as a script, for `ray job submit`:

python jobs/curate.py tiny
python jobs/curate.py sd15 source.path=photos/ evaluate.prompts=prompts.txt run=my-run
"""

import sys

from raypref.cli import main

if __name__ == "__main__":
    sys.exit(main("curate", sys.argv[1:], program="python jobs/curate.py"))
