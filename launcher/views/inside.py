"""Look into a running job from outside, on each of its nodes, without stopping it."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import launcher
from launcher import environment, slurm, slurm_jobs
from launcher.job import look
from launcher.record import Launch
from launcher.views import find, runs
from moco_dist.errors import UserError

_STEP_SECONDS = 60.0
"""A step beside the job may take this long: SLURM starts it, and the slowest node looks."""


def running(text: str) -> runs.Run:
    """Find the run that a person means, whose job must run now.

    Raises:
        UserError: there is no such run, or it does not run.
        Unavailable: SLURM does not tell.
    """
    [run] = runs.look_surely([find.run(text)])
    if not run.live or run.waits:
        raise UserError.of(
            "RUN", run.name, f"is {run.state}, and no job of it runs now", "see python -m launcher status"
        )
    if run.job and run.job.suspended:  # srun would wait until it is resumed
        raise UserError.of("RUN", run.name, "is suspended by SLURM, where no step begins", "wait until it is resumed")
    return run


def rows(run: runs.Run, what: str, nodes: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Look at a running run on its nodes, or on some of them. Returns the rows that `look` makes, of all nodes.

    Raises:
        Refused: SLURM starts no step beside the job.
        Unavailable: SLURM does not answer, or a node does not.
    """
    if run.local:
        return look.LOOKS[what](Launch(run.launch.run_dir.resolve()))
    command = [sys.executable, "-m", "launcher.job.look", what, str(run.launch.run_dir.resolve())]
    path = environment.python_path(Path(launcher.__path__[0]).parent)
    text = slurm.call(*step(run, nodes), "env", f"PYTHONPATH={path}", *command, timeout_seconds=_STEP_SECONDS)
    return [row for line in text.splitlines() for row in _rows_in(line)]


def _rows_in(line: str) -> list[dict[str, Any]]:
    """Return the rows in a line that a step has printed; none in one of the site's own, such as `[prolog] ready`."""
    with contextlib.suppress(ValueError):
        rows = json.loads(line)
        return rows if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else []
    return []


def step(run: runs.Run, nodes: Sequence[str] = ()) -> list[str]:
    """Return srun's words for a step beside the job's own, with one task on each node, or on some of them."""
    assert run.job is not None
    number, *cluster = slurm_jobs.raw_words(run.job.id)
    words = [
        "srun",
        *cluster,
        f"--jobid={number}",
        "--overlap",
        "--mem=0",
        "--cpus-per-task=1",
        "--quiet",
    ]
    count = len(nodes) or len(run.evidence.nodes) or 1
    place = [f"--nodelist={','.join(nodes)}"] if nodes else []
    return [*words, *place, f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1"]
