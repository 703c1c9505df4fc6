"""The trainer's command line on the stand-in for a GPU: `python -m tests.train_on_standin [CONFIG] [key=value ...]`."""

import sys

from moco_dist import train
from tests import standin

if __name__ == "__main__":
    with standin.present():
        sys.exit(train.run(sys.argv[1:]))
