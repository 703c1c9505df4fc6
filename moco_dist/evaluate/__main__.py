"""Run `python -m moco_dist.evaluate`."""

from moco_dist.arguments import run_command
from moco_dist.evaluate.command import run

if __name__ == "__main__":
    run_command(run)
