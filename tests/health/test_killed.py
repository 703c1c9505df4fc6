"""A run that is killed tells each finding once: its rows are rewound to the checkpoint, and judged anew from there."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from tests.jobs import Job, rows, send

STEPS = 35
RUN = {"optim.steps": STEPS, "moco.queue_size": 1500, "moco.temperature": 0.01, "eval.knn_every": 0}
"""The queue is larger than the data; the softmax is far too sure at first, until the encoder has collapsed."""


def findings(run_dir: Path) -> list[dict[str, Any]]:
    return [row for row in rows(run_dir) if "finding" in row]


def started(run_dir: Path) -> Job:
    return Job(run_dir, 0, RUN, module="tests.health.short_windows")


def test_each_finding_begins_and_ends_once_in_the_books(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with started(whole) as job:
        assert job.wait() == 0, job.log
    told = [(row["finding"], row["state"]) for row in findings(whole)]
    assert told[:2] == [("queue_larger_than_data", "begins"), ("temperature_too_low", "begins")]
    assert ("temperature_too_low", "ends") in told and len({*told}) == len(told)
    assert job.log.count("health: temperature_too_low begins") == 1
    for step in (5, 12):  # ahead of a checkpoint, and behind one
        with started(killed) as job:
            assert job.until_step(step)
            send(job.process.pid, signal.SIGKILL)
            job.until_gone(30)
    with started(killed) as job:
        assert job.wait() == 0, job.log
    assert "health: queue_larger_than_data" not in job.log  # it was told by an earlier start
    assert findings(killed) == findings(whole)
