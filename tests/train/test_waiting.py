"""A batch that never comes: a stop is heeded all the same."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.jobs import Job, Pair, checkpoints, compare, send, status, train_here

STEPS = 14
RUN = {"optim.steps": STEPS, "data.workers": 1, "eval.knn_every": 0}


def withheld(rank: int, step: int) -> dict[str, str]:
    """Have a data worker of one rank give no batch for a step, counted from 0."""
    return {"FAULT": f"worker-sleep:{rank}:{step}"}


def test_a_stop_is_heeded_while_a_batch_is_awaited(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Job(run, 0, RUN, module="tests.faulty", environment=withheld(0, 0)) as job:  # the first batch
        job.until((run / "status.json").exists, "start")
        send(job.process.pid, signal.SIGTERM)
        assert job.wait(60) == 75, job.log
        assert not job.pids()
    assert status(run)["state"] == "stopped" and status(run)["step"] == 0
    # Not the first, and 3 steps after a checkpoint.
    with Job(run, 0, RUN, module="tests.faulty", environment=withheld(0, 10)) as job:
        job.until_step(10)
        send(job.process.pid, signal.SIGTERM)
        assert job.wait(60) == 75, job.log
    assert status(run)["state"] == "stopped" and status(run)["step"] == 10
    assert "a batch of the data loader does not come" in status(run)["reason"] and "Traceback" not in job.log
    assert train_here(run, RUN) == 0 and train_here(tmp_path / "reference", RUN) == 0
    assert compare(run, tmp_path / "reference", STEPS).exact


def test_a_rank_that_waits_for_a_batch_stops_for_all(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Pair(run, RUN, module="tests.faulty", environment=withheld(1, 10)) as pair:
        pair.until_step(10)
        pair.signal_all(signal.SIGTERM)
        first, second = pair.exits(60)
        assert second == 75, pair.ranks[1].log
        assert first not in (0, 75), pair.log  # it was in the midst of a step
    assert status(run)["state"] == "stopped" and status(run)["step"] == 7
    assert [path.name for path in checkpoints(run)] == ["step_000000007.pt"]
