"""Read and write the files about starts of a run's jobs, a line of JSON for each row."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moco_dist import files


def read(file: Path) -> list[dict[str, Any]]:
    """Read the lines of a file about starts; one that a killed job wrote half of is left out."""
    try:
        lines = files.read_text(file, errors="replace").splitlines()
    except OSError:
        return []
    rows = map(files.parse_object, lines)
    return [row for row in rows if "job" in row and isinstance(row.get("step"), int)]


def of_start(rows: Sequence[dict[str, Any]], job: str, restart: int) -> list[dict[str, Any]]:
    """Return those rows that are about one start of a job."""
    return [row for row in rows if (row["job"], row.get("restart")) == (job, restart)]


def add(file: Path, row: Mapping[str, Any]) -> None:
    """Add a line to a file about starts. Raises OSError."""
    with files.open_text(file, "a+", errors="replace") as lines:
        lines.seek(0)
        if lines.read()[-1:] not in ("", "\n"):  # half a line, of a killed job or a full disk
            lines.write("\n")
        lines.write(json.dumps(row) + "\n")
