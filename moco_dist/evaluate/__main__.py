"""Run `python -m moco_dist.evaluate`."""

import sys

from moco_dist.evaluate.command import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
