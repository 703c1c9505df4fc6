"""A run on a real SLURM whose node fails twice, with all that a site may want to say and hear about it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.record import Launch
from slurm.devcluster import Cluster
from tests import jobs
from tests.slurm.jobs import Sent


@pytest.fixture(autouse=True)
def _idle(cluster: Cluster) -> Iterator[None]:
    """Leave the cluster idle, also where the test has failed."""
    yield
    cluster.call("scancel", "--quiet", f"--user={os.getuid()}")
    cluster.wait_idle()


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_a_node_that_fails_twice_is_left_out_and_the_run_is_evaluated_in_the_end(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The job is sent to a cluster by its name, with options of sbatch and srun; each event runs a command."""
    run_dir, events = tmp_path / "run", tmp_path / "events"
    (tmp_path / "tell").write_text(f"#!/bin/sh\n(cat; echo) >> {events}\n")
    (tmp_path / "tell").chmod(0o755)
    (tmp_path / "mine.yaml").write_text(
        "partition: main\ncpus_per_gpu: 1\ntime_minutes: 10\nsignal_seconds: 30\nmax_restarts: 0\n"
        "slurm_cluster: devcluster\nsbatch: {nice: 7, contiguous: true}\nsrun: {wait: 60}\n"
        f"notify: {{events: [end, failure, first_step], command: [{tmp_path}/tell]}}\n"
    )
    options = ["--cluster", str(tmp_path / "mine.yaml"), "--nodes", "1", "--then", "evaluate --knn"]
    run = Sent(cluster, run_dir, {"optim.steps": 110}, *options)
    assert run.job.endswith("@devcluster")
    run.job = run.job.partition("@")[0]
    evaluation = str(int(run.job) + 1)
    described = cluster.call("scontrol", "show", "job", run.job)
    assert "Nice=7" in described and "Contiguous=1" in described

    def causes() -> list[dict[str, Any]]:
        return [end for end in Launch(run_dir).ends() if "reason" in end]

    def left_out() -> list[str]:
        return list(json.loads((run_dir / "launch" / "job.json").read_text())["left_out"])

    for number in range(1, 4):  # SLURM might take the two nodes by turns
        run.until_start(number)
        step = jobs.last_step(run_dir)
        run.until_step(step + 5)
        run.kill_worker()
        run.until(lambda: len(causes()) == run.starts(), "end of a start")
        run.until(lambda: run.state() != "RUNNING", "requeue")
        if left_out():
            break
    assert run.wait() == "COMPLETED"
    [node] = left_out()
    starts = rows(run_dir / "launch" / "starts.jsonl")
    assert sum(cause["bad_nodes"] == [node] for cause in causes()) == 2 and causes()[-1]["reason"] == "done"
    assert node not in starts[-1]["nodes"]
    assert f"{node} is left out from now on: 2 starts have failed on it" in run.log()
    run.until((run_dir / "evaluation.json").exists, "evaluation")
    run.until(lambda: "COMPLETED" in cluster.call("scontrol", "show", "job", evaluation), "end of the evaluation")
    names = [event["event"] for event in rows(events)]
    assert names == ["first_step", *["failure"] * (len(starts) - 1), "end"]
