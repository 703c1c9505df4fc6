"""Lay runs side by side in a table: their state, their figures, and the keys in which they differ."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from moco_dist.report import settings
from moco_dist.report.run_view import Cell, RunView
from moco_dist.run.paths import RunPaths

_MOST_VALUES, _MOST_FACETS = 12, 8
"""Values of a key that has a list to choose from, and such keys, at most; others are typed."""
_FIGURES = (("knn_top1", "kNN"), ("linear_top1", "linear probe"), ("loss", "loss"), ("images_per_second", "images/s"))


class Column(NamedTuple):
    """A column of the table has a name, and numbers or text."""

    name: str
    number: bool


@dataclass
class Table:
    """The table is what a page of several runs shows beside their curves."""

    columns: list[Column]
    differing: list[str]
    """Keys in which the runs differ."""
    facets: list[tuple[str, list[str]]]
    """Keys with few values, and these."""
    unlisted: list[str]
    """The other keys in which the runs differ."""
    healthy: int
    """Runs that could be judged, and have no finding."""

    @classmethod
    def of(cls, runs: Sequence[RunView], beside: Path | None) -> "Table":
        """Make the table, and give the runs their cells and links.

        Args:
            runs: at least two.
            beside: folder that the page lies in.
        """
        keys = settings.differing([run.settings for run in runs])
        figures = [(name, title) for name, title in _FIGURES if any(name in run.record.curves for run in runs)]
        columns = [Column("run", False), Column("state", False), Column("findings", True), Column("step", True)]
        columns += [Column(title, True) for _, title in figures] + [Column(key, False) for key in keys]
        for run in runs:
            run.cells = [*_standing(run), *(_figure(run, name) for name, _ in figures)]
            run.cells += [Cell(run.settings.get(key, "")) for key in keys]
            page = RunPaths(run.record.folder).report
            run.link = quote(os.fsencode(_relative(page, beside))) if beside and page.is_file() else ""
        facets: list[tuple[str, list[str]]] = []
        for key in keys:
            values = sorted({run.settings[key] for run in runs if key in run.settings}, key=_natural)
            if len(values) <= _MOST_VALUES and len(facets) < _MOST_FACETS:
                facets.append((key, values))
        unlisted = [key for key in keys if key not in dict(facets)]
        healthy = sum(bool(run.diagnosis and run.is_judged and not run.diagnosis.findings) for run in runs)
        return cls(columns, keys, facets, unlisted, healthy)


def _standing(run: RunView) -> list[Cell]:
    findings = str(len(run.diagnosis.findings)) if run.diagnosis and run.is_judged else ""
    return [Cell(run.name), Cell(run.state, state=True), Cell(findings), Cell(f"{run.record.step:,}", run.record.step)]


def _figure(run: RunView, name: str) -> Cell:
    curve = run.record.curves.get(name)
    if curve is None:
        return Cell("")
    value = curve.median if name == "images_per_second" else curve.last  # the last step may have waited for anything
    return Cell(run.shown(name, value), value)


def _relative(target: Path, folder: Path) -> str:
    """Return the address of a file in a page that lies in a folder; empty where the file is not below it."""
    try:
        return target.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return ""


def _natural(text: str) -> tuple[float, str]:
    """Order numbers by size, ahead of text."""
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text
