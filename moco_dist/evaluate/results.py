"""An evaluation tells a row for each method, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moco_dist import files
from moco_dist.evaluate.cells import Cell


def row(cells: Sequence[Cell]) -> dict[str, Any]:
    """Summarise the cells of one method, one a draw: mean and standard deviation (of the sample) over the draws."""
    key, accuracies = cells[0].key, [cell.accuracy for cell in cells]
    notes = {name: statistics.fmean(cell.notes[name] for cell in cells) for name in cells[0].notes}
    return {
        "method": key.method,
        "labels": key.labels,
        "draws": len(cells),
        f"{key.split}_accuracy_mean": statistics.fmean(accuracies),
        f"{key.split}_accuracy_std": statistics.stdev(accuracies) if len(cells) > 1 else 0.0,
        "seconds": statistics.fmean(cell.seconds for cell in cells),
        "accuracies": accuracies,
        "notes": {name: mean for name, mean in notes.items() if math.isfinite(mean)},
    }


def write(path: Path, rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> None:
    """Put rows into a JSON file. Other rows that it had stay, if they are about the same."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        before = content.pop("rows") if content.items() >= about.items() else []
    except (OSError, ValueError, AttributeError, KeyError):
        before = []
    replaced = {(r["method"], r["labels"]) for r in rows}
    kept = [r for r in before if (r["method"], r["labels"]) not in replaced]
    files.write_text(path, json.dumps({**about, "rows": kept + list(rows)}, indent=1) + "\n")


def show(rows: Sequence[dict[str, Any]], split: str, title: str) -> None:
    """Print the rows as a table."""
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
    Console().print(shown)
