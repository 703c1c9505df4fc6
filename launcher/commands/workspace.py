"""Save a workspace at W&B that shows runs in sections: learning, representation, health, speed, nodes, evaluation.

Each call saves a new view of the project; its sections come from the list of figures (docs/metrics.md), and one for
sweeps compares settings with accuracies. It needs the package wandb-workspaces; --print needs neither key nor network.
"""

import argparse
import os
from pathlib import Path

from launcher import sweeps
from moco_dist import packages
from moco_dist.config import Config
from moco_dist.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's options."""
    parser.add_argument("--entity", metavar="NAME", help="user or team at W&B; unset, WANDB_ENTITY, else the key's")
    text = f"project at W&B; unset, WANDB_PROJECT, else {Config().track.project}"
    parser.add_argument("--project", metavar="NAME", help=text)
    parser.add_argument("--sweep", metavar="SWEEP.yaml", type=Path, help="sweep whose keys the section for sweeps has")
    parser.add_argument("--print", action="store_true", help="print it as JSON, save nothing")


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    if not packages.installed("wandb_workspaces"):
        rule = "the package wandb-workspaces is not installed here"
        raise UserError(f"workspace: {rule}; {packages.fix('wandb_workspaces')}")
    from moco_dist.tracking import workspace  # its package is slow to import

    varied = sweeps.read(options.sweep).keys if options.sweep else workspace.VARIED
    entity = options.entity or os.environ.get("WANDB_ENTITY", "")
    project = options.project or os.environ.get("WANDB_PROJECT") or Config().track.project
    if options.print:
        print(workspace.spec(workspace.build(entity, project, varied)))
    else:
        print(workspace.save(entity, project, varied))
    return 0
