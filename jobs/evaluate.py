"""Evaluation alone: a run's models on prompts.

python jobs/evaluate.py tiny
python jobs/evaluate.py sd15 source.path=photos/ evaluate.prompts=prompts.txt run=my-run
"""

import sys

from raypref.cli import main
from raypref.execute import EVALUATE

if __name__ == "__main__":
    sys.exit(
        main(
            sys.argv[1:],
            script="jobs/evaluate.py",
            what="The base model and a run's LoRAs on prompts: images, scores, table, page.",
            only=EVALUATE,
            result="Report",
        )
    )
