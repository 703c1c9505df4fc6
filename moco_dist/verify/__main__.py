"""Run `python -m moco_dist.verify`."""

import sys

from moco_dist.errors import print_masked
from moco_dist.verify.command import run

if __name__ == "__main__":
    sys.excepthook = print_masked
    sys.exit(run(sys.argv[1:]))
