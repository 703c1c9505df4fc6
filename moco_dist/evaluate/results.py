"""Keep the result of each method on each draw of labels, and make a row of each method: a table, JSON for programs.

A result lies in a cell of the cache, under a key of all that it depends on. A key holds no source code: each method has
a revision number, which whoever changes the method's figures raises.
"""

import contextlib
import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moco_dist import files
from moco_dist.run import evaluation_table


def digest(*values: object) -> str:
    """Return a short hash of values that are told apart by their repr."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Key:
    """The settings that the result in a cell of the table depends on."""

    method: str
    labels: int | None
    """Labels of a draw; None: all."""
    draw: int
    split: str
    """The kind of the held-out images: test or validation."""
    settings: str
    """Digest of all else that counts: weights, images, config, revisions, versions of libraries."""


@dataclass(frozen=True)
class Cell:
    """The result of one method on one draw of labels."""

    key: Key
    accuracy: float
    """Fraction of the held-out images that are classified rightly."""
    seconds: float
    notes: dict[str, float] = field(default_factory=dict)
    predicted: list[int] = field(default_factory=list)
    """Classes of the held-out images."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """Settings of a training on all labels."""


class Cells:
    """The cells of a folder, in `cells.jsonl`: what has been computed is not computed again.

    Args:
        folder: made, private to its user.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cells.jsonl"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.touch()
        self._cells = {cell.key: cell for cell in _read(self.path)}

    def get(self, key: Key) -> Cell | None:
        """Return the cell of a key, or None if it has not been computed."""
        return self._cells.get(key)

    def add(self, cells: Iterable[Cell]) -> None:
        """Keep cells. Raises OSError."""
        with files.open_text(self.path, "a") as file:
            for cell in cells:
                # A line that a killed process left half is ended first, so that it takes no whole one with it.
                file.write("\n" * (file.tell() > 0) + json.dumps(asdict(cell)))
                self._cells[cell.key] = cell


def _read(path: Path) -> Iterator[Cell]:
    with files.open_bytes(path) as file:  # line by line: those of a large data set are many megabytes
        for line in file:
            cell = files.parse_object(line)
            with contextlib.suppress(TypeError, KeyError):  # a line of a process that was killed as it wrote
                yield Cell(**{**cell, "key": Key(**cell["key"])})


def row(cells: Sequence[Cell], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Summarise the cells of one method, one a draw: mean and standard deviation (of the sample) over the draws.

    Args:
        cells: of the method.
        overrides: of the run's config, on which the figures depend.
    """
    key, accuracies = cells[0].key, [cell.accuracy for cell in cells]
    notes = {name: statistics.fmean(cell.notes[name] for cell in cells) for name in cells[0].notes}
    recipe = {"recipe": cells[0].recipe} if cells[0].recipe else {}
    overridden = {"overrides": list(overrides)} if overrides else {}
    return {
        "method": key.method,
        "labels": key.labels,
        "draws": len(cells),
        f"{key.split}_accuracy_mean": statistics.fmean(accuracies),
        f"{key.split}_accuracy_std": statistics.stdev(accuracies) if len(cells) > 1 else 0.0,
        "seconds": statistics.fmean(cell.seconds for cell in cells),
        "accuracies": accuracies,
        "notes": {name: mean for name, mean in notes.items() if math.isfinite(mean)},
        **recipe,
        **overridden,
    }


def write(path: Path, rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> None:
    """Put rows into a JSON file. Other rows that it had stay, if they are about the same."""
    content = files.read_object(path)
    before = evaluation_table.rows_of(content) if content.items() >= about.items() else []
    replaced = {(r["method"], r["labels"]) for r in rows}
    kept = [r for r in before if (r.get("method"), r.get("labels")) not in replaced]
    files.write_text(path, json.dumps({**about, "rows": kept + list(rows)}, indent=1) + "\n")


def show(rows: Sequence[dict[str, Any]], split: str, title: str) -> None:
    """Print the rows as a table. Raises OSError where nobody reads on."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table(title=escape(title), title_justify="left")
    shown.add_column("method")
    for name in ("labels", "draws", f"{split} accuracy", "seconds a draw"):
        shown.add_column(name, justify="right")
    for r in rows:
        spread = f" ± {100 * r[f'{split}_accuracy_std']:.2f}" if r["draws"] > 1 else ""
        accuracy = f"{100 * r[f'{split}_accuracy_mean']:.2f}{spread} %"
        shown.add_row(r["method"], str(r["labels"] or "all"), str(r["draws"]), accuracy, f"{r['seconds']:.1f}")
    console = Console()
    with console.capture() as table:
        console.print(shown)
    print(table.get(), end="", flush=True)  # rich itself would end the process where the reader has gone
