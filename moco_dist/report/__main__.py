"""Run `python -m moco_dist.report`."""

from moco_dist.arguments import run_command
from moco_dist.report.command import main

if __name__ == "__main__":
    run_command(main)
