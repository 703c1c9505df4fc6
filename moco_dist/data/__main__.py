"""Run `python -m moco_dist.data look FOLDER`."""

from __future__ import annotations

import sys

from moco_dist.data.look import command

if __name__ == "__main__":
    sys.exit(command.run(sys.argv[1:]))
