"""Run `python -m moco_dist.train`."""

import sys

from moco_dist.arguments import run_command
from moco_dist.errors import print_masked
from moco_dist.train import run

if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        run_command(run)  # which `| head` ends quietly
    sys.excepthook = print_masked
    sys.exit(run(sys.argv[1:]))
