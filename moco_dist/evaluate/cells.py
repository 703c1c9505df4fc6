"""The cache of an evaluation: the result of each method on each draw of labels, kept under what it depends on.

A key holds no source code: each method has a revision number, which whoever changes the method's figures raises.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path


def digest(*values: object) -> str:
    """Return a short hash of values that are told apart by their repr."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Key:
    """What the result in a cell depends on."""

    method: str
    labels: int | None
    """Labels of a draw; None: all."""
    draw: int
    split: str
    """What the held-out images are: test or validation."""
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
        with self.path.open("a", encoding="utf-8") as file:
            for cell in cells:
                # A line that a killed process left half is ended first, so that it takes no whole one with it.
                file.write("\n" * (file.tell() > 0) + json.dumps(asdict(cell)))
                self._cells[cell.key] = cell


def _read(path: Path) -> Iterator[Cell]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            cell = json.loads(line)
            yield Cell(**{**cell, "key": Key(**cell["key"])})
        except (ValueError, TypeError, KeyError):
            continue  # of a process that was killed as it wrote
