"""Run `python -m moco_dist.train`."""

from __future__ import annotations

import sys

from moco_dist import config as configs
from moco_dist.train import command


def main() -> None:
    """Train as the command line says, or print what it may say."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(command.__doc__)
        print(configs.usage())
        return
    sys.exit(command.run(sys.argv[1:]))


if __name__ == "__main__":
    main()
