"""The trainer, whose health is judged by windows of three rows: a short run has findings that begin and end."""

from __future__ import annotations

import sys

from moco_dist import train
from moco_dist.health import course

if __name__ == "__main__":
    course.ROWS = 3
    sys.exit(train.run(sys.argv[1:]))
