"""Run `python -m moco_dist.report`."""

import sys

from moco_dist.report.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
