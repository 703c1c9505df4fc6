"""Look at a run from Python, without torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from moco_dist.config import Config
from moco_dist.config.from_python import as_path
from moco_dist.errors import UserError
from moco_dist.files import read_object
from moco_dist.health import Finding, reading
from moco_dist.run import directory, evaluation_table, lease, status
from moco_dist.run.checkpoints import CheckpointIndex
from moco_dist.run.paths import RunPaths
from moco_dist.run.rows import is_evaluation, is_training, rows_so_far


class Run:
    """A run is one training, from its first step to its last, as its run directory holds it.

    A run may go on while it is looked at, in another process too. So each attribute reads the files anew when it is
    asked for, and nothing is kept: assign what is used more than once, such as `rows`, to a variable. No attribute
    needs torch. What a run has not written yet is empty; damaged lines of its rows are left out.

    A run is a path for Python (`os.PathLike`), so that functions which take a run directory take it too. Two runs are
    equal if their absolute paths are.

    Args:
        path: the run directory, or its `config.yaml`; in a text, `~` and `$NAME` are expanded.

    Raises:
        UserError: there is no such directory, or it is none of a run. Reading an attribute raises it for a config with
            a mistake, and for a file that cannot be read.

    Example:
        >>> import moco_dist
        >>> digits = moco_dist.Run("runs/digits")
        >>> digits.name, digits.config.optim.lr
        ('digits', 0.03)
        >>> digits.status.state, digits.status.step
        ('done', 4)
        >>> [row["step"] for row in digits.training_rows]
        [1, 2, 3, 4]
        >>> 0 <= digits.figures["knn_top1"] <= 1
        True
        >>> list(digits.checkpoints)
        [4]
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        folder = as_path("RUN_DIR", path)
        try:
            self._path = directory.existing(folder).absolute()
        except OSError as error:
            fix = "give the directory of a run that you may read"
            raise UserError.of("RUN_DIR", folder, error.strerror or str(error), fix) from None

    @classmethod
    def at(cls, folder: Path) -> Run:
        """Return the run of a directory that another machine may have made, and that is not looked at here."""
        run = cls.__new__(cls)
        run._path = folder.absolute()
        return run

    @property
    def path(self) -> Path:
        """Return the run directory, as an absolute path."""
        return self._path

    @property
    def name(self) -> str:
        """Return `run.name`; the name of the directory, if the run ended before it wrote its config."""
        return self.config.run.name if self._paths.config.exists() else self.path.name

    @property
    def config(self) -> Config:
        """Return the config of the run, whose sections and keys are attributes: `config.optim.lr`. Raises UserError."""
        return directory.load_config(self._paths.config)

    @property
    def status(self) -> status.Status:
        """Return the status of the run: `state`, `step`, `reason`, `total_steps` and `epoch_steps`.

        `state` is `running`, `done`, `stopped`, `user_error`, `diverged` or `crashed`, and None before the first
        status. A run that was killed is still `running`, and `writer` is empty.
        """
        return status.read(self.path)

    @property
    def writer(self) -> str:
        """Return in words which process trains the run now; empty where there is none."""
        return lease.held_by(self.path)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Return all rows of `metrics.jsonl` in order, of training, of evaluations and of findings. Raises UserError.

        A row has numbers and texts by name; `step`, counted from 1, is in every row. `pandas.DataFrame(run.rows)` makes
        a table of them. docs/metrics.md describes the figures.
        """
        return list(rows_so_far(self._paths.metrics))

    @property
    def training_rows(self) -> list[dict[str, Any]]:
        """Return the rows of training steps alone, which have `loss`. Raises UserError."""
        return [row for row in rows_so_far(self._paths.metrics) if is_training(row)]

    @property
    def evaluation_rows(self) -> list[dict[str, Any]]:
        """Return the rows of evaluations during training alone, which have `knn_top1` (0 to 1). Raises UserError."""
        return [row for row in rows_so_far(self._paths.metrics) if is_evaluation(row)]

    @property
    def figures(self) -> dict[str, Any]:
        """Return the final figures by name, such as `knn_top1` and `loss`; of a run that is not done, the latest ones.

        `step` and `epoch` are of the last training row. An evaluation may be of an earlier step, which the last of
        `evaluation_rows` tells. Raises UserError.
        """
        if self.status.state == "done" and (summary := read_object(self._paths.summary)):
            return summary
        last: dict[str, dict[str, Any]] = {"evaluation": {}, "training": {}}
        for row in rows_so_far(self._paths.metrics):
            if is_training(row) or is_evaluation(row):
                last["training" if is_training(row) else "evaluation"] = row
        return {**last["evaluation"], **last["training"]}

    @property
    def evaluation(self) -> list[dict[str, Any]]:
        """Return the rows of `evaluation.json`, a row a method; `assess` or `python -m moco_dist.evaluate` writes it.

        A row has `method`, `labels`, `draws`, accuracies from 0 to 1 such as `test_accuracy_mean`, and the `seconds` of
        a draw.
        """
        return evaluation_table.read(self.path)

    @property
    def checkpoints(self) -> dict[int, Path]:
        """Return the checkpoints' files by their steps, in order; `torch.load(path, weights_only=True)` opens them."""
        index = CheckpointIndex(self._paths.checkpoints)
        return {step: index.path(step) for step in index.steps()}

    @property
    def findings(self) -> list[Finding]:
        """Return all that is or was wrong with the run, the earliest first, as `python -m moco_dist.why` shows it.

        A finding has `name`, `evidence` (a sentence), `override` (the change that it proposes), `first_step`,
        `last_step` and `ended`. Raises UserError.
        """
        diagnosis = reading.read(self.path).diagnosis
        return diagnosis.findings if diagnosis else []

    @property
    def _paths(self) -> RunPaths:
        return RunPaths(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    __str__ = __fspath__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __repr__(self) -> str:
        now = self.status
        length = f" of {now.total_steps}" if now.total_steps else ""
        return f"<Run {str(self.path)!r}: {now.state or 'no status yet'}, step {now.step}{length}>"
