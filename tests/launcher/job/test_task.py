"""What a task of the job gives its ranks, and how it names its nodes. No rank is started."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from launcher import environment
from launcher.cluster import Profile
from launcher.job import notify, task
from launcher.job.start import Start
from launcher.record import Launch, Submission
from moco_dist.run import status
from tests.launcher.made import make_run, replace_sleep


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory; this process has the variables of a task of SLURM's, on the second of two nodes."""
    for name in environment.left_out():
        monkeypatch.delenv(name)
    variables = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "12", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "2"}
    variables |= {"SLURM_NODEID": "1", "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "n[07-08]"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return make_run(tmp_path / "run").run_dir


def test_nodes_are_known_by_their_names(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = Start(run_dir, Submission(nodes=2), "")
    assert start.hostnames == start.addresses == ("n07", "n08")
    start.say("here")
    assert (start.launch.logs / "launcher.log").read_text().endswith(" n08: here\n")
    for name, value in {"JOB_NUM_NODES": "1", "NODEID": "0", "PROCID": "0", "JOB_NODELIST": "n07"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    alone = Start(run_dir, Submission(), "")
    assert (alone.hostnames, alone.addresses) == (("n07",), ("127.0.0.1",))


@pytest.mark.parametrize(
    ("profile", "shell", "rest"),
    [("/theirs", None, ["/theirs"]), ("/theirs:/more", "CODE:/mine", ["/theirs", "/more", "/mine"]), (None, None, [])],
)
def test_the_jobs_own_code_comes_first(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, profile: str | None, shell: str | None, rest: list[str]
) -> None:
    code = str(run_dir / "launch" / "code" / "c0de")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if shell:
        monkeypatch.setenv("PYTHONPATH", shell.replace("CODE", code))
    variables = {"PYTHONPATH": profile} if profile else {}
    start = Start(run_dir, Submission(code="c0de", profile=Profile(environment=variables)), "")
    assert start.environment()["PYTHONPATH"].split(os.pathsep) == [code, *rest]


def test_the_job_has_the_last_word_on_what_it_needs_itself(run_dir: Path) -> None:
    theirs = {"MOCO_DIST_JOB": "7", "OMP_NUM_THREADS": "3"}
    variables = Start(run_dir, Submission(profile=Profile(environment=theirs)), "").environment()
    assert (variables["MOCO_DIST_JOB"], variables["OMP_NUM_THREADS"]) == ("12", "3")


# What the user is told of.


@pytest.fixture
def told(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Events that the first task of the job tells of."""
    monkeypatch.setenv("SLURM_NODEID", "0")
    monkeypatch.setenv("SLURM_PROCID", "0")
    events: list[tuple[str, ...]] = []
    monkeypatch.setattr(notify, "tell", lambda _launch, _job, *names, **_: events.append(names))
    return events


def stopped(start: Start, number: signal.Signals) -> None:
    """Do what a signal to the task does."""
    stop = object.__new__(task.Stop)
    stop._start, stop.finished = start, threading.Event()
    stop._stop(number)
    assert stop.finished.is_set()


def test_a_preemption_is_told_but_neither_a_time_limit_nor_a_requeue_after_a_failure(
    run_dir: Path, told: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(restart: int) -> Start:
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        return Start(run_dir, Submission(profile=Profile(time_minutes=60, signal_seconds=120)), "")

    status.write(run_dir, "stopped", 7)
    stopped(start(0), signal.SIGTERM)
    assert told == [("preemption",)]
    at_the_limit = start(1)
    at_the_limit.began -= 60 * 58
    stopped(at_the_limit, signal.SIGTERM)
    Launch(run_dir).add_cause(job="12", restart=2, reason="rank 0: broken")
    stopped(start(2), signal.SIGTERM)
    assert told == [("preemption",)]
    reasons = [end["reason"] for end in Launch(run_dir).causes()]
    assert reasons == ["SIGTERM: told to save, stopped at step 7"] * 2 + ["rank 0: broken"]


def test_the_end_is_told_by_the_first_task_and_a_bad_one_as_a_failure(
    run_dir: Path, told: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Start(run_dir, Submission(), "")
    for state in ("done", "diverged"):
        status.write(run_dir, state, 7)
        start.tell_of_end()
    monkeypatch.setenv("SLURM_PROCID", "1")
    Start(run_dir, Submission(), "").tell_of_end()
    assert told == [("end",), ("failure", "end")]


def test_the_first_figures_are_told(
    run_dir: Path, told: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, waits = Start(run_dir, Submission(), ""), list[float]()

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            start.launch.paths.metrics.write_text("{}\n")

    replace_sleep(monkeypatch, task, sleep)
    task._tell_of_first_step(start)
    assert told == [("first_step",)] and len(waits) == 3
