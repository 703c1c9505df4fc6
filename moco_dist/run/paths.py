"""Name all that a run directory contains. No other package spells these names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
STATUS = "status.json"
SUMMARY = "summary.json"
ENCODER = "encoder.safetensors"
EVALUATION = "evaluation"
EVALUATION_TABLE = "evaluation.json"


@dataclass(frozen=True)
class RunPaths:
    """The paths say where the parts of a run lie on disk."""

    folder: Path

    @property
    def config(self) -> Path:
        """Return the file of the resolved config, below a comment with the versions that ran it."""
        return self.folder / CONFIG

    @property
    def metrics(self) -> Path:
        """Return the file of the run's rows, one JSON object a line."""
        return self.folder / METRICS

    @property
    def status(self) -> Path:
        """Return the file that tells launchers and scripts how the run stands."""
        return self.folder / STATUS

    @property
    def summary(self) -> Path:
        """Return the file of the final figures of a run that is done."""
        return self.folder / SUMMARY

    @property
    def encoder(self) -> Path:
        """Return the file of the trained encoder without its head."""
        return self.folder / ENCODER

    @property
    def pairs_picture(self) -> Path:
        """Return the picture of the two views of the first images, as the encoders see them."""
        return self.folder / "augmented_pairs.png"

    @property
    def lease(self) -> Path:
        """Return the file that names the job that writes to the directory."""
        return self.folder / "lease.json"

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def wandb(self) -> Path:
        """Return the folder of W&B's own files."""
        return self.folder / "wandb"

    @property
    def evaluation(self) -> Path:
        """Folder of the evaluation's cells and pictures."""
        return self.folder / EVALUATION

    @property
    def evaluation_table(self) -> Path:
        """Return the file of the evaluation's table."""
        return self.folder / EVALUATION_TABLE

    def remove_unfinished(self) -> None:
        """Remove what a start that was killed while it wrote a file has left. Raises OSError."""
        for path in (self.config, self.metrics, self.status, self.summary, self.encoder, self.pairs_picture):
            for unfinished in self.folder.glob(f".{path.name}.*"):
                unfinished.unlink(missing_ok=True)


def run_of(file: Path | None) -> Path | None:
    """Return the run directory whose resolved config a file is; None for any other file."""
    if file is None or file.name != CONFIG or not file.is_file():
        return None
    paths = RunPaths(file.parent)
    return paths.folder if paths.status.is_file() or paths.checkpoints.is_dir() else None
