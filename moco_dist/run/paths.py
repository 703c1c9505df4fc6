"""Name all that a run directory contains. No other package spells these names."""

from collections.abc import Iterable
from pathlib import Path

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
ENCODER = "encoder.safetensors"
EVALUATION = "evaluation"
EVALUATION_TABLE = "evaluation.json"
REPORT = "report.html"


class RunPaths:
    """The paths say where the parts of a run lie on disk.

    Attributes:
        folder: the run directory itself.
        config: file of the resolved config, below a comment with the versions that ran it.
        metrics: file of the run's rows, one JSON object a line.
        status: file that tells launchers and scripts how the run stands.
        summary: file of the final figures of a run that is done.
        encoder: file of the trained encoder without its head.
        pairs_picture: picture of the two views of the first images, as the encoders see them.
        provenance: file of what each start ran on, one JSON object a line.
        converted: file of what a run began from whose first steps another program took.
        lease: file that names the job that writes to the directory.
        checkpoints: folder of the checkpoints.
        wandb: folder of W&B's own files.
        tensorboard: folder of TensorBoard's event files.
        trackio: folder of Trackio's database.
        evaluation: folder of the evaluation's cells and pictures.
        evaluation_table: file of the evaluation's table.
        export: folder of the encoder in the formats of other programs.
        features_view: file of what the last evaluation left of the features to be looked at.
        report: page that shows the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / CONFIG
        self.metrics = folder / METRICS
        self.status = folder / "status.json"
        self.summary = folder / SUMMARY
        self.encoder = folder / ENCODER
        self.pairs_picture = folder / "augmented_pairs.png"
        self.provenance = folder / "provenance.jsonl"
        self.converted = folder / "converted.json"
        self.lease = folder / "lease.json"
        self.checkpoints = folder / "checkpoints"
        self.wandb = folder / "wandb"
        self.tensorboard = folder / "tensorboard"
        self.trackio = folder / "trackio"
        self.evaluation = folder / EVALUATION
        self.evaluation_table = folder / EVALUATION_TABLE
        self.export = folder / "export"
        self.features_view = folder / "features_view.json"
        self.report = folder / REPORT

    @staticmethod
    def holds_run(names: Iterable[str]) -> bool:
        """Tell by the names in a folder whether it is the directory of a run that has begun."""
        return not {METRICS, "status.json"}.isdisjoint(names)

    @classmethod
    def is_own(cls, file: Path) -> bool:
        """Return whether a run itself writes a path, or a folder around it; exports do not count, and may be replaced.

        Args:
            file: absolute, its folder without symbolic links.

        Raises:
            OSError: a folder cannot be looked at.
        """
        for place in (file, *file.parents):
            paths = cls(place.parent)
            own = set(vars(paths).values()) - {paths.folder, paths.report}
            is_in_exports = place == paths.export and place != file
            if place in own and not is_in_exports and (paths.metrics.exists() or paths.status.exists()):
                return True
        return False

    def of_the_report(self) -> list[Path]:
        """Return the files that the page of the run is made from."""
        return [self.config, self.metrics, self.status, self.features_view, self.pairs_picture, self.provenance]

    def remove_unfinished(self) -> None:
        """Remove what a start that was killed while it wrote a file has left. Raises OSError."""
        written = (self.config, self.metrics, self.status, self.summary, self.encoder, self.pairs_picture)
        for path in (*written, self.provenance, self.features_view, self.report):
            for unfinished in self.folder.glob(f".{path.name}.*"):
                unfinished.unlink(missing_ok=True)


def run_dir_of(path: Path) -> Path | None:
    """Return the run directory that a path is, or whose resolved config it is; None for any other path."""
    try:
        return run_of(path) or (path if RunPaths(path).config.is_file() else None)
    except OSError:
        return None


def run_of(file: Path | None) -> Path | None:
    """Return the run directory whose resolved config a file is; None for any other file."""
    try:
        if file is None or file.name != CONFIG or not file.is_file():
            return None
        paths = RunPaths(file.parent)
        return paths.folder if paths.status.is_file() or paths.checkpoints.is_dir() else None
    except OSError:  # of a closed folder: who reads it says so
        return None
