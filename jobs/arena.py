"""How capable the generators of labelled images are: people's choices, no image is read.

The command `raypref arena` as a script, for `ray job submit`:

python jobs/arena.py hpdv3/all.json run=hpdv3
"""

import sys

from raypref.cli import main

if __name__ == "__main__":
    sys.exit(main("arena", sys.argv[1:], program="python jobs/arena.py"))
