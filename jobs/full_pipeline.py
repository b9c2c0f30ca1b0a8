"""The whole job: curate, align, evaluate, report.

The command `raypref run` as a script, for `ray job submit`:

python jobs/full_pipeline.py tiny
python jobs/full_pipeline.py sd15 source.path=photos/ evaluate.prompts=prompts.txt run=my-run
"""

import sys

from raypref.cli import main

if __name__ == "__main__":
    sys.exit(main("run", sys.argv[1:], program="python jobs/full_pipeline.py"))
