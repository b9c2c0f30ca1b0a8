"""The whole job: curate, align, evaluate, report.

python jobs/full_pipeline.py tiny
python jobs/full_pipeline.py sd15 source.path=photos/ evaluate.prompts=prompts.txt run=my-run
"""

import sys

from raypref.cli import main

if __name__ == "__main__":
    sys.exit(
        main(
            sys.argv[1:],
            script="jobs/full_pipeline.py",
            what="Photographs to an aligned LoRA, an evaluation table and a page: the whole run.",
            only=(),
            result="Report",
        )
    )
