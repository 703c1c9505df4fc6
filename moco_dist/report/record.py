"""Read what a run directory holds of a run into one value, with its curves thinned."""

import base64
import os
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moco_dist import config as configs
from moco_dist import files, health, processes
from moco_dist.errors import UserError, masked, printable
from moco_dist.report import judge, settings
from moco_dist.report.columns import Curve
from moco_dist.run import features_view, lease, provenance, status
from moco_dist.run.paths import RunPaths

_MOST_POINTS, _POINTS_OF_A_PAGE, _FIGURES = 1000, 100_000, 30
"""Points of a curve at most; points of all curves of a page, about, where a run has so many figures."""
_LARGE = 8 << 20
"""Bytes of rows from which on several runs are read by several processes."""
_LARGEST_PICTURE = 4 << 20


@dataclass(frozen=True)
class RunRecord:
    """A record is what the page shows of a run."""

    folder: Path
    name: str
    status: status.Status
    versions: str
    settings: dict[str, Any]
    """Values of the config by `section.key`."""
    curves: dict[str, Curve]
    diagnosis: health.Diagnosis | None
    """The diagnosis of the rows; None where the run cannot be judged by its config."""
    not_judged: str = ""
    """The reason why there is no diagnosis."""
    features: features_view.FeaturesView | None = None
    pairs_picture: str = ""
    """The picture of the two views of the first images, in base64; empty where there is none."""
    rows: int = 0
    starts: Sequence[provenance.Start] = ()
    """The hardware and software of each start, in their order; a run of an earlier version has none."""
    writer: str = ""
    """The process that writes to the directory; empty where there is none."""

    @property
    def step(self) -> int:
        """Return the last step that is known to be done."""
        last_rows = [curve.steps[-1] for curve in self.curves.values()]
        return max([self.status.step, *last_rows])


def read_all(folders: Sequence[Path]) -> list[RunRecord]:
    """Read runs, in their order. Raises UserError for a folder that holds no run, or too little memory."""
    most_points = max(48, min(_MOST_POINTS, _POINTS_OF_A_PAGE // (_FIGURES * len(folders))))
    sizes = []
    for folder in folders:
        _check(folder)
        with suppress(OSError):
            sizes.append(RunPaths(folder).metrics.stat().st_size)
    count = min(len(folders), len(os.sched_getaffinity(0)))
    if count == 1 or sum(sizes) < _LARGE:
        return [read(folder, most_points) for folder in folders]
    try:
        with processes.workers(count) as pool:
            return list(pool.map(read, folders, [most_points] * len(folders)))
    except BrokenProcessPool:
        rule = "a process that read them was out of memory, or killed"
        raise UserError.of("RUN_DIR", f"{len(folders)} runs", rule, "name fewer of them") from None


def read(folder: Path, most_points: int = _MOST_POINTS) -> RunRecord:
    """Read a run; what is missing or damaged is left out.

    Args:
        folder: a run directory.
        most_points: of a curve.
    """
    paths = RunPaths(folder)
    tree, versions = settings.read(paths.config)
    state, starts = status.read(folder), provenance.read(folder)
    columns, diagnosis, not_judged = judge.judge(paths.metrics, tree, state, starts)
    values = configs.flat(tree)
    return RunRecord(
        folder,
        masked(printable(str(values.get("run.name") or folder.resolve().name))),
        state,
        versions,
        values,
        columns.curves(most_points),
        diagnosis,
        not_judged,
        features_view.read(paths.features_view),
        _picture(paths.pairs_picture),
        columns.rows,
        starts,
        lease.held_by(folder),
    )


def runs_below(folder: Path) -> list[Path]:
    """Return the run directories in a folder, at any depth, by name; those within a run directory are left out.

    A link to a run directory counts, each directory once; links to other folders, which may be large, are not followed.
    """
    own, linked = list[Path](), list[Path]()
    for root, folders, names in os.walk(folder):
        if RunPaths.holds_run(names):
            own.append(Path(root))
            folders.clear()
        for link in (Path(root, name) for name in folders):
            with suppress(OSError):
                if link.is_symlink() and RunPaths.holds_run(path.name for path in link.iterdir()):
                    linked.append(link)
    runs = {os.path.realpath(run): run for run in [*sorted(linked, reverse=True), *own]}  # a link gives way
    return sorted(runs.values())


def _check(folder: Path) -> None:
    """Refuse a folder that holds no run. Raises UserError."""
    try:
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else None
    except OSError as error:
        raise UserError.of(
            "RUN_DIR", folder, f"{error.strerror}", "give the directory of a run that you may read"
        ) from None
    if names is None:
        raise UserError.of("RUN_DIR", folder, "no such folder", "give the directory of a run")
    if not RunPaths.holds_run(names):
        raise UserError.of(
            "RUN_DIR", folder, "holds no run", "give the directory of a run, or --sweep for a folder of them"
        )


def _picture(file: Path) -> str:
    try:
        return base64.b64encode(files.read_bytes(file, _LARGEST_PICTURE)).decode()
    except OSError:
        return ""
