"""Count the GPU hours of runs: by SLURM's accounting where it has their jobs, else by the run directories."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher import job_ids, slurm
from launcher.views import layout, moments
from launcher.views.runs import Run

_DAY_SECONDS = 86400.0
_COLUMNS = ("run", "state", "begun", "starts", "GPUs", "hours", "GPU hours", "by")
_RIGHT = ("begun", "starts", "GPUs", "hours", "GPU hours")


@dataclass(frozen=True)
class Span:
    """A span is the time of one start of a run, with the GPUs that it had."""

    job: str
    begin: float
    end: float
    gpus: int
    by: str = "SLURM"
    """Who tells: SLURM, or the run directory, which knows of some ends only that they were not later."""

    @property
    def hours(self) -> float:
        return (self.end - self.begin) / 3600

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.gpus


_DIRECTORY, _AT_MOST = "run directory", "run directory, at most"


def show(runs: Sequence[Run], since: float | None, timeout_seconds: float, *, as_json: bool) -> str:
    """Print the GPU hours of runs, and their sum. Returns why SLURM did not answer; empty where it did.

    Args:
        runs: the runs.
        since: only the hours since then count, in seconds since the epoch; None: all.
        timeout_seconds: how long SLURM's accounting may take.
        as_json: whether to print JSON.
    """
    records, slurm_error = _records(runs, timeout_seconds)
    spans = [_clipped(spans_of(run, records), since) for run in runs]
    total = sum(span.gpu_hours for own in spans for span in own)
    if as_json:
        rows = [_as_data(run, own) for run, own in zip(runs, spans, strict=True)]
        print(json.dumps({"gpu_hours": total, "runs": rows}, indent=1, allow_nan=False), flush=True)
        return slurm_error
    cells = [_cells(run, own) for run, own in zip(runs, spans, strict=True) if own]
    cells.append(dict.fromkeys(_COLUMNS, "") | {"run": f"sum of {len(cells)} runs", "GPU hours": f"{total:.1f}"})
    layout.show(layout.table(cells, layout.fit(cells, _COLUMNS, layout.width(), _COLUMNS), _RIGHT))
    return slurm_error


def spans_of(run: Run, records: Mapping[str, Sequence[Span]] = {}) -> list[Span]:
    """List the starts of a run with their times, the first one first.

    Args:
        run: the run.
        records: SLURM's, by job. A job of the same number from before the run's first start is not the run's.
    """
    noted = _noted(run)
    sent = moments.of_text(run.submission.submitted) if run.submission else None
    first = min([span.begin for span in noted] + [sent or time.time()]) - _DAY_SECONDS
    accounted = {job: [span for span in records.get(job, ()) if span.begin >= first] for job in _jobs(run)}
    spans = [span for own in accounted.values() for span in own] + [
        span for span in noted if not accounted.get(span.job)
    ]
    return sorted(spans, key=lambda span: span.begin)


def _jobs(run: Run) -> list[str]:
    """List all jobs that the run has had, as far as its directory tells."""
    sent = run.submission
    named = [*sent.earlier_jobs, sent.job] if sent and not run.local else []
    return list(dict.fromkeys([*(str(start["job"]) for start in run.launch.starts() if not run.local), *named]))


def _noted(run: Run) -> list[Span]:
    """List the starts that the run directory has noted, with their ends as far as it tells."""
    starts = [start for start in run.launch.starts() if isinstance(start.get("time"), int | float)]
    ends = {(row["job"], row.get("restart")): row.get("time") for row in run.launch.ends()}
    per_node = run.submission.profile.gpus_per_node if run.submission else 0
    spans = []
    for number, start in enumerate(starts):
        begin, nodes = float(start["time"]), start.get("nodes")
        gpus = start.get("gpus", per_node * len(nodes if isinstance(nodes, list) else ()))
        end = ends.get((start["job"], start.get("restart")))
        by = _DIRECTORY
        if number == len(starts) - 1:
            end = end or (time.time() if run.state == "running" else run.evidence.changed_at)
        elif not isinstance(end, int | float):
            end, by = float(starts[number + 1]["time"]), _AT_MOST
        spans.append(Span(str(start["job"]), begin, max(begin, float(end)), int(gpus), by))
    return spans


def _clipped(spans: Sequence[Span], since: float | None) -> list[Span]:
    """Return what lies behind a moment."""
    late = [span for span in spans if since is None or span.end > since]
    return [Span(span.job, max(span.begin, since or 0.0), span.end, span.gpus, span.by) for span in late]


def _records(runs: Sequence[Run], timeout_seconds: float) -> tuple[dict[str, list[Span]], str]:
    """Ask SLURM's accounting for each start of the runs' jobs; the error tells why it did not answer."""
    per_node = {job: run.submission.profile.gpus_per_node for run in runs if run.submission for job in _jobs(run)}
    if not per_node or not slurm.installed("sacct"):
        return {}, ""
    records: dict[str, list[Span]] = {}
    for cluster, numbers in job_ids.by_cluster(per_node).items():
        try:
            lines = _accounted(numbers, cluster, timeout_seconds)
        except slurm.Refused:  # a site without accounting
            continue
        except slurm.Unavailable as error:
            return records, str(error)
        for number, *times, nodes, resources in (line.split("|") for line in lines if line.count("|") == 4):
            job, (begin, end) = job_ids.address(number, cluster), map(moments.of_text, times)
            gpus = re.search(r"gres/gpu=(\d+)", resources)
            count = int(gpus[1]) if gpus else per_node.get(job, 0) * int(nodes or 0)
            if begin is not None:  # one that waits has not begun
                records.setdefault(job, []).append(Span(job, begin, max(begin, end or time.time()), count))
    return records, ""


def _accounted(numbers: Sequence[str], cluster: str, timeout_seconds: float) -> list[str]:
    """Ask the accounting of a cluster for each start of jobs, a line each. Raises slurm.Refused, slurm.Unavailable."""
    what = (f"--jobs={','.join(numbers)}", "--format=JobID,Start,End,AllocNodes,AllocTRES")
    how = ("--allocations", "--duplicates", "--noheader", "--parsable2", *job_ids.in_accounting(cluster, numbers))
    return slurm.call("sacct", *how, *what, timeout_seconds=timeout_seconds).splitlines()


def _as_data(run: Run, spans: Sequence[Span]) -> dict[str, Any]:
    return {
        "run": run.name,
        "run_dir": str(run.launch.run_dir),
        "state": run.state,
        "hours": sum(span.hours for span in spans),
        "gpu_hours": sum(span.gpu_hours for span in spans),
        "starts": [
            {"job": s.job, "begin": moments.iso(s.begin), "end": moments.iso(s.end), "gpus": s.gpus, "by": s.by}
            for s in spans
        ],
    }


def _cells(run: Run, spans: Sequence[Span]) -> dict[str, str]:
    gpus = sorted({span.gpus for span in spans})
    return {
        "run": layout.printable(run.name),
        "state": run.shown_state,
        "begun": moments.clock(spans[0].begin),
        "starts": str(len(spans)),
        "GPUs": f"{gpus[0]}-{gpus[-1]}" if len(gpus) > 1 else str(gpus[0]),
        "hours": f"{sum(span.hours for span in spans):.1f}",
        "GPU hours": f"{sum(span.gpu_hours for span in spans):.1f}",
        "by": max((span.by for span in spans), key=(_DIRECTORY, "SLURM", _AT_MOST).index),
    }
