"""Run `python -m moco_dist.report`."""

import sys

from moco_dist.report.command import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
