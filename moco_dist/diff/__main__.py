"""Run `python -m moco_dist.diff`."""

import sys

from moco_dist.diff.command import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
