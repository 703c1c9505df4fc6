"""Print the JSON schema of a config file, for editors: `python -m moco_dist.config`."""

import sys

from moco_dist import config

if __name__ == "__main__":
    sys.stdout.write(config.schema())
