"""The launcher's commands on a real SLURM, with jobs that only pretend to train."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from launcher import sending, slurm, slurm_jobs
from launcher.cluster import Profile
from launcher.commands import cancel, logs, requeue, status
from launcher.record import Launch, Submission
from launcher.views import runs
from launcher.views.runs import Run
from slurm.devcluster import Cluster, ClusterError
from tests.launcher.made import make_run

STAND_IN = Path(__file__).with_name("stand_in.py")


class Jobs:
    """Stand-in jobs in runs/ of the current directory."""

    def __init__(self, cluster: Cluster, here: Path) -> None:
        self.cluster, self.here = cluster, here
        self.sent: list[str] = []

    def send(self, name: str, *options: str, words: tuple[str, ...] = (), profile: Profile | None = None) -> Launch:
        """Submit one."""
        launch = make_run(self.here / "runs" / name, optim="{global_batch: 64, steps: 5000}")
        script = launch.folder / "job.sh"
        script.write_text('#!/bin/bash\nexec srun "$@"\n')
        own = ["--comment", str(launch.run_dir), "--output", str(launch.submitit / "%j_0_log.out"), "--requeue"]
        command = [str(script), sys.executable, str(STAND_IN), str(launch.run_dir), *words]
        job = self.cluster.call("sbatch", "--parsable", "--open-mode=append", *own, *options, *command).strip()
        launch.write(Submission(job=job, name=name, profile=profile or Profile()))
        self.sent.append(job)
        return launch

    def train(self, name: str, *options: str, words: tuple[str, ...] = (), profile: Profile | None = None) -> Launch:
        """Submit one, and wait until it trains."""
        launch = self.send(name, *options, words=words, profile=profile)
        until(launch, lambda run: run.figures.step > 2 and run.trainer_state == "running")
        return launch

    def restarts(self, launch: Launch) -> int:
        """SLURM's count of them."""
        sent = launch.submission()
        assert sent is not None
        match = re.search(r"Restarts=(\d+)", self.cluster.call("scontrol", "show", "job", sent.job))
        assert match
        return int(match[1])


@pytest.fixture
def jobs(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    monkeypatch.chdir(tmp_path)
    sent = Jobs(cluster, tmp_path)
    yield sent
    for job in sent.sent:
        for how in (("--signal=KILL", "--full"), ()):  # at once, and for good
            with contextlib.suppress(ClusterError):
                cluster.call("scancel", "--quiet", *how, job)
    deadline = time.monotonic() + 60
    while cluster.call("squeue", "--noheader"):
        assert time.monotonic() < deadline, "the cluster is not idle again"
        time.sleep(0.2)


@pytest.fixture
def no_controller(jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has the commands look for a controller where there is none."""

    def apply() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        folder = Path(jobs.cluster.environment["SLURM_CONF"]).parent
        shutil.copytree(folder, tmp_path / "etc")
        conf = tmp_path / "etc" / "slurm.conf"
        conf.write_text(re.sub(r"(?m)^SlurmctldPort=.*$", f"SlurmctldPort={port}", conf.read_text()))
        monkeypatch.setenv("SLURM_CONF", str(conf))

    return apply


def see(launch: Launch) -> Run:
    [run] = runs.look([launch])
    return run


def until(launch: Launch, condition: Callable[[Run], bool], timeout_seconds: float = 60) -> Run:
    """Wait for a run to be as it should."""
    deadline = time.monotonic() + timeout_seconds
    while not condition(run := see(launch)):
        assert time.monotonic() < deadline, run
        time.sleep(0.1)
    return run


def command(module: ModuleType, *words: str) -> int:
    """Run a command of the launcher. Returns its exit status."""
    parser = argparse.ArgumentParser()
    module.arguments(parser)
    return int(module.run(parser.parse_args(words)))


def rows(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    """Return what `status --json` says, by the runs' names."""
    capsys.readouterr()
    assert command(status, "--json") == 0
    return {row["run"]: row for row in json.loads(capsys.readouterr().out)}


def test_status_tells_pending_from_running_and_cancel_ends_both(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    held, training = jobs.send("held", "--hold"), jobs.train("training", "--time=30")
    until(held, lambda run: run.waits)
    seen = rows(capsys)
    assert (seen["held"]["state"], seen["held"]["reason"]) == (
        "pending",
        f"JobHeldUser; let it go by: scontrol release {jobs.sent[0]}",
    )
    row = seen["training"]
    assert (row["starting"], row["saved_step"]) == (False, 0) and 0 <= row["seconds"] < 60
    assert (row["state"], row["live"], row["ended"], row["restarts"]) == ("running", True, False, 0)
    assert (row["loss"], row["total_steps"], row["images_per_second"]) == (5.0, 5000, 64.0)
    assert 4900 < row["seconds_left"] < 5000
    assert 1700 < row["allocation_seconds_left"] <= 1800
    assert command(cancel, "held", "training") == 0
    out = capsys.readouterr().out
    assert "held: job" in out and "cancelled before it started; no checkpoint yet" in out
    saved = training.checkpoint_step()
    assert saved > 2
    assert f"cancelled; saved at step {saved}; to go on: python -m launcher requeue training" in out
    until(training, lambda run: run.ended)
    seen = rows(capsys)
    assert {row["slurm_state"] for row in seen.values()} == {"CANCELLED"}
    assert [(seen[n]["state"], seen[n]["ended"]) for n in ("held", "training")] == [("cancelled", True)] * 2
    assert seen["training"]["reason"] == f"stopped on request after step {saved}"
    assert command(cancel, "training") == 0
    assert capsys.readouterr().out == "training: has ended already: cancelled\n"


def test_cancel_does_not_wait_for_ever_and_the_job_leaves_the_queue(
    jobs: Jobs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = jobs.train("a", words=("deaf",))
    assert command(cancel, "a", "--wait-seconds", "1") == 0
    assert "cancelled; no checkpoint yet" in capsys.readouterr().out
    assert until(launch, lambda run: run.ended).state == "cancelled"
    monkeypatch.setattr(slurm_jobs, "queue", lambda *_, **__: {})  # slurmctld forgets in its own time
    if jobs.cluster.settings.accounting:
        until(launch, lambda run: run.job is not None)  # it lags
        assert rows(capsys)["a"]["state"] == "cancelled"
    monkeypatch.setattr(slurm, "which", lambda name: None if name == "sacct" else name)
    row = rows(capsys)["a"]
    assert (row["state"], row["reason"]) == ("lost", f"job {jobs.sent[-1]} is not known to SLURM any more")


def test_requeue_saves_and_starts_again_and_logs_follow(
    jobs: Jobs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_jobs, "requeue", lambda job: pytest.fail("a job that saves requeues itself"))
    launch = jobs.train("a")
    following = threading.Thread(target=command, args=(logs, jobs.sent[-1], "-f", "--all"), daemon=True)
    following.start()
    assert command(requeue, "a") == 0
    run = until(launch, lambda run: run.waits or run.evidence.starts == 2)
    if run.waits:
        assert run.state == "requeued"
        assert command(requeue, "a") == 0
    saved = launch.checkpoint_step()
    until(launch, lambda run: run.evidence.starts == 2 and run.trainer_state == "running", 180)
    assert jobs.restarts(launch) == 1
    assert launch.starts()[1]["step"] == saved > 2
    slurm_jobs.cancel(jobs.sent[-1])
    following.join(60)
    assert not following.is_alive()
    said = capsys.readouterr()
    assert re.search(rf"^a: job \d+ is (requeued|running) again, saved at step {saved}$", said.out, re.MULTILINE)
    assert not run.waits or "\na: waits in the queue already (" in said.out
    lines = said.out.splitlines()
    heads = (
        f"[rank 0] --- job {jobs.sent[-1]}, start 0",
        "[rank 0] saved",
        f"[rank 0] --- job {jobs.sent[-1]}, start 1",
    )
    order = [lines.index(line) for line in heads]
    assert order == sorted(order)
    assert said.err.splitlines()[-1].startswith("launcher: a is cancelled")


def test_requeue_of_a_job_that_does_not_listen(
    jobs: Jobs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = runs.wait
    monkeypatch.setattr(runs, "wait", lambda launches, over, s: wait(launches, over, 2.0 if s == 15 else s))
    launch = jobs.train("deaf", words=("deaf",), profile=Profile(signal_seconds=15))
    assert command(requeue, "deaf") == 0
    assert "is requeued again, no checkpoint yet" in capsys.readouterr().out
    assert jobs.restarts(launch) == 1


def test_requeue_sends_an_ended_run_again(
    jobs: Jobs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = jobs.send("a", "--hold")
    slurm_jobs.cancel(jobs.sent[-1])
    until(launch, lambda run: run.ended)
    again: list[Launch] = []

    def send(launch: Launch, *_: object, **__: object) -> Submission:
        again.append(launch)
        return Submission(job="77")

    monkeypatch.setattr(sending, "send_again", send)
    assert command(requeue, str(launch.run_dir)) == 0
    assert again == [launch]
    assert capsys.readouterr().out.startswith("a: was cancelled, no checkpoint yet; sent again as job 77, with ")


def test_without_a_controller_status_tells_what_the_directory_knows(
    jobs: Jobs, capsys: pytest.CaptureFixture[str], no_controller: Callable[[], None]
) -> None:
    jobs.send("a", "--hold")
    no_controller()
    capsys.readouterr()
    assert command(status) == 0
    said = capsys.readouterr()
    line = r"^a +\d+ +unknown\? .* the run directory says: not begun; SLURM does not answer$"
    assert re.search(line, said.out, re.MULTILINE)
    assert said.err.startswith("launcher: squeue: ")
    assert said.err.count("\n") == 1
    with pytest.raises(slurm.Unavailable):
        command(cancel, "a")
