"""Read the rows of a run once, for its curves and for what health says of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moco_dist import health
from moco_dist.errors import UserError, reason
from moco_dist.report.columns import Columns
from moco_dist.run import status
from moco_dist.run.provenance import Start
from moco_dist.run.rows import read_rows


def judge(
    rows_file: Path, tree: Mapping[str, Any], state: status.Status, starts: Sequence[Start]
) -> tuple[Columns, health.Diagnosis | None, str]:
    """Read and judge the rows of a run.

    Args:
        rows_file: metrics.jsonl of the run.
        tree: config of the run, a tree of sections.
        state: of the run.
        starts: of the run, in their order.

    Returns:
        The figures of all rows; the diagnosis, or None where there is none; and why there is none.
    """
    columns = Columns()
    try:
        rows = columns.passing(read_rows(rows_file))
        try:
            return columns, health.diagnose(rows, tree, status=state, starts=starts), ""
        except Exception as error:  # anything: a config or a row of another version; the curves are shown all the same
            for _ in rows:
                pass
            return columns, None, str(error) if isinstance(error, UserError) else reason(error)
    except OSError as error:
        return columns, None, f"{rows_file.name}: {error.strerror}"
