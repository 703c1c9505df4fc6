"""Run `python -m moco_dist.export`."""

from moco_dist.arguments import run_command
from moco_dist.export.command import run

if __name__ == "__main__":
    run_command(run)
