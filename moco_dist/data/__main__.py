"""Run `python -m moco_dist.data`."""

from moco_dist.arguments import run_command
from moco_dist.data.command import run

if __name__ == "__main__":
    run_command(run)
