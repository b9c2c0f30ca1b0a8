"""Alignment alone: the pairs of a run to its LoRA.

python jobs/align.py tiny
python jobs/align.py sd15 source.path=photos/ evaluate.prompts=prompts.txt run=my-run
"""

import sys

from raypref.cli import main
from raypref.execute import ALIGN

if __name__ == "__main__":
    sys.exit(
        main(
            sys.argv[1:],
            script="jobs/align.py",
            what="Preference pairs to an aligned LoRA, in two stages.",
            only=ALIGN,
            result="LoRA",
        )
    )
