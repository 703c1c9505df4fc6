"""Show runs as a table for people, and as plain data for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from launcher import slurm
from launcher.views.runs import Run

if TYPE_CHECKING:  # rich takes a while to import: only where something is shown
    from rich.table import Table
    from rich.text import Text

_STYLES = {
    "running": "green",
    "done": "bold green",
    "pending": "cyan",
    "requeued": "cyan",
    "stopped": "yellow",
    "cancelled": "yellow",
    "unknown": "dim",
}
_FIGURES = ("step", "epoch", "images/s", "loss", "kNN", "restarts", "time left")
_COLUMNS = ("run", "job", "state", *_FIGURES, "nodes", "reason")
_LONGEST_NODES = 24


def _row(run: Run) -> dict[str, Any]:
    """Return a run as plain data; `status --help` explains the keys."""
    sent, job, figures = run.submission, run.job, run.figures
    return {
        "run": run.name,
        "run_dir": str(run.launch.run_dir),
        "job": run.job_id or None,
        "executor": sent.executor if sent else None,
        "state": run.state,
        "reason": run.reason,
        "confirmed": run.confirmed,
        "live": run.live,
        "ended": run.ended,
        "step": run.step,
        "total_steps": figures.total_steps,
        "saved_step": run.evidence.step,
        "epoch": figures.epoch,
        "images_per_second": figures.images_per_second,
        "loss": figures.loss,
        "knn_top1": figures.knn_top1,
        "starts": run.evidence.starts,
        "restarts": max(0, run.evidence.starts - 1),
        "seconds_left": figures.seconds_left if run.state == "running" else None,
        "allocation_seconds_left": slurm.seconds(job.time_left) if job and run.state == "running" else None,
        "slurm_state": job.state if job else None,
        "slurm_reason": job.reason if job else None,
        "nodes": run.nodes or None,
        "sweep": sent.sweep if sent else None,
    }


def show(runs: Sequence[Run], *, as_json: bool) -> None:
    """Print the runs as JSON, or as a table: to a terminal as wide as it is, else plain, a line a run however long."""
    if as_json:
        print(json.dumps([_row(run) for run in runs], indent=1, allow_nan=False), flush=True)
        return
    _print(as_table(runs))


def show_rows(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table of text, the first column left and the others right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(_plain, row))
    _print(table)


def _print(table: Table) -> None:
    """Print a table: to a terminal as wide as it is, else plain, a line a row however long."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console().print(table)
        return
    wide = Console(width=10_000, no_color=True, force_terminal=False, legacy_windows=False)
    with wide.capture() as text:
        wide.print(table)
    print("\n".join(line.rstrip() for line in text.get().splitlines()), flush=True)


def as_table(runs: Sequence[Run], caption: str = "") -> Table:
    """Lay the runs out as a table of rich's. A column that nobody fills is left out."""
    from rich.table import Table

    rows = [_cells(run) for run in runs]
    filled = [name for name in _COLUMNS if name in ("run", "state") or any(cells[name] for cells in rows)]
    table = Table(box=None, pad_edge=False, header_style="bold", caption=_plain(caption) if caption else None)
    for name in filled:
        table.add_column(name, justify="right" if name in _FIGURES else "left", no_wrap=name in _COLUMNS[1:-1])
    for cells in rows:
        style = _STYLES.get(cells["state"].rstrip("?"), "red")
        table.add_row(*(_plain(cells[name], style if name == "state" else "") for name in filled))
    return table


def _cells(run: Run) -> dict[str, str]:
    figures = run.figures
    seconds = figures.seconds_left if run.state == "running" else None
    of_total = f"/{figures.total_steps}" if figures.total_steps else "/-"
    return {
        "run": run.name,
        "job": run.job_id,
        "state": run.state if run.confirmed else f"{run.state}?",
        "step": f"{run.step}{of_total}" if run.step else "",
        "epoch": "" if figures.epoch is None else str(figures.epoch),
        "images/s": _figure(figures.images_per_second, ".0f" if (figures.images_per_second or 0) >= 100 else ".3g"),
        "loss": _figure(figures.loss, ".4g"),
        "kNN": _figure(None if figures.knn_top1 is None else 100 * figures.knn_top1, ".2f", " %"),
        "restarts": str(run.evidence.starts - 1) if run.evidence.starts > 1 else "",
        "time left": "" if seconds is None else _duration(seconds),
        "nodes": run.nodes if len(run.nodes) <= _LONGEST_NODES else run.nodes[: _LONGEST_NODES - 3] + "...",
        "reason": run.reason if run.confirmed else "; ".join(filter(None, [run.reason, "SLURM does not answer"])),
    }


def _figure(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def _duration(seconds: float) -> str:
    """Write a time for a person: 42s, 12m, 3h05m, 2d04h."""
    minutes = int(seconds) // 60
    if minutes < 1:
        return f"{int(seconds)}s"
    if minutes < 60:
        return f"{minutes}m"
    hours = minutes // 60
    return f"{hours}h{minutes % 60:02}m" if hours < 24 else f"{hours // 24}d{hours % 24:02}h"


def _plain(text: str, style: str = "") -> Text:
    """Return text without control characters: names and reasons are data."""
    from rich.text import Text

    return Text("".join(c if c.isprintable() else "?" for c in text), style=style)
