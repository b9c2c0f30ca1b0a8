"""`python -m raypref`: the console command `raypref` where it is not on the `PATH`."""

import sys

from raypref.cli import console

if __name__ == "__main__":
    sys.exit(console(sys.argv[1:]))
