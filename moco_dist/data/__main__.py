"""Run `python -m moco_dist.data`."""

import io
import sys

from moco_dist.data import command

if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # names of files need not fit the terminal's encoding
    sys.exit(command.run(sys.argv[1:]))
