"""Images at inference time, chosen or steered by rewards.

The command `raypref sample` as a script, for `ray job submit`:

python jobs/sample.py runs/my-run sample.method=best_of
"""

import sys

from raypref.cli import main

if __name__ == "__main__":
    sys.exit(main("sample", sys.argv[1:], program="python jobs/sample.py"))
