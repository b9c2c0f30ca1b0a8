"""How good the rewards are themselves: their accuracy, agreement and biases on labelled pairs.

The command `raypref judge` as a script, for `ray job submit`:

python jobs/judge.py sd15 judge.pairs=pickapic/test.parquet run=judge
"""

import sys

from raypref.cli import main

if __name__ == "__main__":
    sys.exit(main("judge", sys.argv[1:], program="python jobs/judge.py"))
