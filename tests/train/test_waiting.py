"""A batch that never comes: a stop is heeded all the same."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

from tests.jobs import Job, checkpoints, compare, send, status, train_here

STEPS = 14
RUN = {"optim.steps": STEPS, "data.workers": 1, "eval.knn_every": 0}


def faulty(run: Path, rank: int, step: int, environment: dict[str, str] | None = None) -> Job:
    """Start a job whose data worker on one rank gives no batch for a step, counted from 0."""
    variables = {**(environment or {}), "FAULT": f"worker-sleep:{rank}:{step}"}
    return Job(run, 0, RUN, module="tests.faulty", environment=variables)


def test_a_stop_is_heeded_while_a_batch_is_awaited(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with faulty(run, 0, 0) as job:  # the first batch
        job.until((run / "status.json").exists, "start")
        send(job.process.pid, signal.SIGTERM)
        assert job.wait(60) == 75, job.log
        assert not job.pids()
    assert status(run)["state"] == "stopped" and status(run)["step"] == 0
    with faulty(run, 0, 10) as job:  # not the first, and 3 steps after a checkpoint
        job.until_step(10)
        send(job.process.pid, signal.SIGTERM)
        assert job.wait(60) == 75, job.log
    assert status(run)["state"] == "stopped" and status(run)["step"] == 10
    assert "a batch of the data loader does not come" in status(run)["reason"] and "Traceback" not in job.log
    assert train_here(run, RUN) == 0 and train_here(tmp_path / "reference", RUN) == 0
    assert compare(run, tmp_path / "reference", STEPS).exact


def test_a_rank_that_waits_for_a_batch_stops_for_all(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1])}
    places = ({**world, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2))
    with faulty(run, 1, 10, next(places)) as first, faulty(run, 1, 10, next(places)) as second:
        first.until_step(10)
        for job in (first, second):
            send(job.process.pid, signal.SIGTERM)
        assert second.wait(60) == 75, second.log
        assert first.wait(60) not in (0, 75), first.log  # it was in the midst of a step
    assert status(run)["state"] == "stopped" and status(run)["step"] == 7
    assert [path.name for path in checkpoints(run)] == ["step_000000007.pt"]
