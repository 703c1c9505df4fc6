"""Read the table that an evaluation leaves in a run directory: a row for each method."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moco_dist.files import read_object
from moco_dist.run.paths import RunPaths


def read(run_dir: Path) -> list[dict[str, Any]]:
    """Read the rows of `evaluation.json`; none where the file is missing or damaged."""
    return rows_of(read_object(RunPaths(run_dir).evaluation_table))


def rows_of(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows in the content of an `evaluation.json`; none where it is damaged."""
    rows = content.get("rows")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
