"""Run `python -m moco_dist.search`."""

from moco_dist.arguments import run_command
from moco_dist.search.command import run

if __name__ == "__main__":
    run_command(run)
