"""Run `python -m moco_dist.evaluate`."""

from __future__ import annotations

import sys

from moco_dist.evaluate import command

if __name__ == "__main__":
    sys.exit(command.run(sys.argv[1:]))
