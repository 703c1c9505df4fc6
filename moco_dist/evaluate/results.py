"""What an evaluation has come to: a cell for each method and draw, gathered into rows."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from moco_dist import files


def digest(*about: object) -> str:
    """Of things that are told apart by their repr."""
    return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Key:
    """What a cell is the result of."""

    method: str
    labels: int | None
    """Labels of a draw; None: all."""
    draw: int
    split: str
    """What the held-out images are: test or validation."""
    settings: str
    """Digest of all else that counts: weights, config, recipe."""


@dataclass(frozen=True)
class Cell:
    """One method on one draw of labels."""

    key: Key
    accuracy: float
    """Fraction of the held-out images that are told right."""
    seconds: float
    notes: dict[str, float] = field(default_factory=dict)
    predicted: list[int] = field(default_factory=list)
    """Classes of the held-out images."""


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
        self._known = {cell.key: cell for cell in _read(self.path)}

    def get(self, key: Key) -> Cell | None:
        """The cell of a key, if it has been computed."""
        return self._known.get(key)

    def add(self, cells: Iterable[Cell]) -> None:
        """Keep cells. Raises OSError."""
        with self.path.open("a", encoding="utf-8") as file:
            for cell in cells:
                # A line that a killed process left half is ended first, so that it takes no whole one with it.
                file.write("\n" * (file.tell() > 0) + json.dumps(asdict(cell)))
                self._known[cell.key] = cell


def _read(path: Path) -> Iterable[Cell]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found = json.loads(line)
            yield Cell(**{**found, "key": Key(**found["key"])})
        except (ValueError, TypeError, KeyError):
            continue  # of a process that was killed as it wrote


def row(cells: Sequence[Cell]) -> dict[str, Any]:
    """The cells of one method, one a draw, as a row: mean and standard deviation (of the sample) over the draws."""
    key, accuracies = cells[0].key, [cell.accuracy for cell in cells]
    return {
        "method": key.method,
        "labels": key.labels,
        "draws": len(cells),
        f"{key.split}_accuracy_mean": statistics.fmean(accuracies),
        f"{key.split}_accuracy_std": statistics.stdev(accuracies) if len(cells) > 1 else 0.0,
        "seconds": statistics.fmean(cell.seconds for cell in cells),
        "accuracies": accuracies,
        "notes": _means([cell.notes for cell in cells]),
    }


def _means(notes: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: mean for name in notes[0] if math.isfinite(mean := statistics.fmean(n[name] for n in notes))}


def write(path: Path, rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> None:
    """Put rows into a JSON file. Other rows that it had stay, if they are about the same."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        before = found.pop("rows") if found.items() >= about.items() else []
    except (OSError, ValueError, AttributeError, KeyError):
        before = []
    mine = {(r["method"], r["labels"]) for r in rows}
    kept = [r for r in before if (r["method"], r["labels"]) not in mine]
    files.write_text(path, json.dumps({**about, "rows": kept + list(rows)}, indent=1) + "\n")


def table(rows: Sequence[dict[str, Any]], split: str, title: str) -> Table:
    """The rows as people read them."""
    shown = Table(title=escape(title), title_justify="left")
    shown.add_column("method")
    for name in ("labels", "draws", f"{split} accuracy", "seconds a draw"):
        shown.add_column(name, justify="right")
    for r in rows:
        spread = f" ± {100 * r[f'{split}_accuracy_std']:.2f}" if r["draws"] > 1 else ""
        accuracy = f"{100 * r[f'{split}_accuracy_mean']:.2f}{spread} %"
        shown.add_row(r["method"], str(r["labels"] or "all"), str(r["draws"]), accuracy, f"{r['seconds']:.1f}")
    return shown
