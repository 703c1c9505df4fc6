"""Add the results of an evaluation to the run at W&B, when its training is done."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moco_dist import packages
from moco_dist.errors import UserError
from moco_dist.run import lease, status
from moco_dist.run.directory import load_config
from moco_dist.run.paths import RunPaths
from moco_dist.run.rows import read_rows
from moco_dist.tracking.guard import Guard
from moco_dist.tracking.wandb_run import WandbRun

Result = Mapping[str, Any]
"""A row of the evaluation's table: method, labels, draws, mean and deviation of the accuracy, and more."""


def check(path: Path) -> None:
    """Check that results can be added to the run at W&B. Raises UserError."""
    if not path.is_dir():
        raise UserError.of("--wandb", path, "weights alone have no run at W&B", "give a run directory, or drop --wandb")
    mode = load_config(RunPaths(path).config).track.wandb
    if mode == "disabled":
        raise UserError.of("--wandb", path, "the run has track.wandb=disabled", "drop --wandb")
    if lease.held_by(path):
        raise UserError.of("--wandb", path, "is training, and has its run at W&B open", "wait for its end")
    packages.need("--wandb", path, "wandb", otherwise="drop --wandb")


def show(path: Path, results: Sequence[Result], split: str, say: Callable[[str], None]) -> None:
    """Add results to the run at W&B, online or offline as `track.wandb` of the run says; it may take half a minute.

    Args:
        path: the run directory.
        results: rows of the evaluation's table.
        split: what the held-out images are: test or validation.
        say: takes lines for people, about failures too.
    """
    config, rows = load_config(RunPaths(path).config), list(read_rows(RunPaths(path).metrics))
    trained = status.read(path)
    sink = _WandbResults(path, config, rows, say, say, start_step=trained.step, results=results, split=split)
    guard = Guard(sink, say)
    guard.wait_for_start()
    guard.finish(status.EXIT_CODES.get(trained.state or "crashed", 1), preempted=trained.state == "stopped")


@dataclass
class _WandbResults(WandbRun):
    """This object opens the run at W&B again when its training is done, and adds a table."""

    results: Sequence[Result] = ()
    split: str = "test"

    def catch_up(self) -> None:
        """Send the rows that it lacks, and the results: as a table, and in the summary."""
        import wandb

        super().catch_up()
        names = ["method", "labels", "draws", f"{self.split}_accuracy_mean", f"{self.split}_accuracy_std", "seconds"]
        table = wandb.Table(columns=list(names), data=[[result.get(name) for name in names] for result in self.results])
        self._run.log({f"results/{self.split}": table})
        for result in self.results:
            name = f"results/{self.split}/{result['method']}/{result['labels'] or 'all'}"
            self._run.summary[name] = result[f"{self.split}_accuracy_mean"]

    def end(self, exit_code: int, preempted: bool) -> None:
        """End the run as its training ended."""
        if preempted:
            self._run.mark_preempting()
        self._run.finish(exit_code=exit_code)
        self.tear_down()

    def _tell_job(self) -> None:
        """Leave the job that trained."""
