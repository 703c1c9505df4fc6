"""The real browser that pages are tested in: `python -m tests.browser install` installs it (root)."""

from __future__ import annotations

import sys

from slurm.devcluster import programs
from slurm.devcluster.errors import ClusterError, Misuse

PACKAGES = {"chromium": ("chromium",)}


def missing() -> bool:
    return bool(programs.missing(PACKAGES, PACKAGES))


def executable() -> str:
    return programs.find_program("chromium")


if __name__ == "__main__":
    try:
        print(programs.install(PACKAGES))
    except (Misuse, ClusterError) as error:
        sys.exit(str(error))
