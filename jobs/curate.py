"""Curation alone: photographs to preference pairs.

python jobs/curate.py tiny
python jobs/curate.py sd15 source.path=photos/ evaluate.prompts=prompts.txt run=my-run
"""

import sys

from raypref.cli import main
from raypref.execute import CURATE

if __name__ == "__main__":
    sys.exit(
        main(
            sys.argv[1:],
            script="jobs/curate.py",
            what="Photographs to preference pairs.",
            only=CURATE,
            result="Pairs",
        )
    )
