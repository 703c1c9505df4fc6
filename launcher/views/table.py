"""Show runs: as a table for people, which is no wider than the terminal, or as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from launcher.views import fields, layout, moments
from launcher.views.runs import Run

if TYPE_CHECKING:
    from rich.table import Table

_STYLES = {
    "running": "green",
    "starting": "green",
    "done": "bold green",
    "pending": "cyan",
    "requeued": "cyan",
    "stopped": "yellow",
    "cancelled": "yellow",
    "unknown": "dim",
}
_COLUMNS = (
    *("run", "job", "state", "step", "saved", "epoch", "images/s", "loss", "kNN", "restarts"),
    *("since", "time", "left", "nodes", "reason"),
)
_RIGHT = ("step", "saved", "epoch", "images/s", "loss", "kNN", "restarts", "since", "time", "left")
_MOST_WHOLE_REASONS = 10


def show(runs: Sequence[Run], *, as_json: bool, keep: Sequence[str] = ()) -> None:
    """Print the runs as JSON or as a table, whose columns in `keep` are not left out for want of room.

    Where it has cut a few reasons, they follow as a whole.
    """
    if as_json:
        print(json.dumps([fields.of(run) for run in runs], indent=1, allow_nan=False), flush=True)
        return
    rows = [_cells(run) for run in runs]
    widths = _widths(rows, width := layout.width(), keep)
    layout.show(layout.table(rows, widths, _RIGHT))
    most = widths.get("reason", 0)
    are_cut = [cells for cells in rows if layout.cut(cells["reason"], most) != cells["reason"]]
    for cells in are_cut if len(are_cut) <= _MOST_WHOLE_REASONS else ():
        text = f"{cells['run']}: {cells['reason']}"
        print(textwrap.fill(text, width, subsequent_indent="  ", break_on_hyphens=False), flush=True)


def show_rows(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table of text, the first column left and the others right."""
    cells = [dict(zip(columns, map(layout.printable, row), strict=True)) for row in rows]
    widths = layout.fit(cells, columns, layout.width(), columns)
    layout.show(layout.table(cells, widths, columns[1:]))


def as_table(runs: Sequence[Run], caption: str, width: int) -> Table:
    """Lay the runs out as a table of rich's."""
    rows = [_cells(run) for run in runs]
    return layout.table(rows, _widths(rows, width), _RIGHT, caption)


def _widths(rows: Sequence[layout.Cells], width: int, keep: Sequence[str] = ()) -> dict[str, int]:
    """Return the widths of the columns that are shown. One that nobody fills is left out."""
    filled = [name for name in _COLUMNS if name in ("run", "state") or any(cells[name] for cells in rows)]
    return layout.fit(rows, filled, width, keep)


def _cells(run: Run) -> dict[str, str]:
    figures, state = run.figures, run.shown_state
    of_total = f"/{figures.total_steps}" if figures.total_steps else "/-"
    return {
        "run": layout.printable(run.name),
        "job": run.job_id,
        "state": state if run.confirmed else f"{state}?",
        "style of state": _STYLES.get(state, "red"),
        "step": f"{run.step}{of_total}" if run.step else "",
        "saved": str(run.evidence.saved) if run.step or run.evidence.saved else "",
        "epoch": "" if figures.epoch is None else str(figures.epoch),
        "images/s": _figure(figures.images_per_second, ".0f" if (figures.images_per_second or 0) >= 100 else ".3g"),
        "loss": _figure(figures.loss, ".4g"),
        "kNN": _figure(None if figures.knn_top1 is None else 100 * figures.knn_top1, ".2f", " %"),
        "restarts": str(run.evidence.starts - 1) if run.evidence.starts > 1 else "",
        "since": moments.clock(run.since),
        "time": moments.duration(run.seconds),
        "left": moments.duration(figures.seconds_left) if state == "running" else "",
        "nodes": run.nodes,
        "reason": layout.printable(
            "; ".join(filter(None, [run.why, "" if run.confirmed else "SLURM does not answer"]))
        ),
    }


def _figure(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"
