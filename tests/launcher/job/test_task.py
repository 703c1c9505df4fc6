"""A task of the job gives its ranks their settings and names its nodes. No rank is started."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from launcher import environment, slurm_jobs
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


class SavingJob:
    """A job of 60 minutes whose first task is told to save, so many minutes after each start of it began."""

    def __init__(self, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("NODEID", "PROCID"):
            monkeypatch.setenv(f"SLURM_{name}", "0")
        self.launch = make_run(run_dir, profile={"time_minutes": 60}, nodes=2)
        self.requeued: list[str] = []
        self._monkeypatch, self._restart = monkeypatch, 0
        monkeypatch.setattr(slurm_jobs, "requeue", self.requeued.append)

    def save(
        self, minutes: float, step: int = 0, saved: int = 0, number: signal.Signals = signal.SIGUSR2
    ) -> int | str | None:
        """Tell it. Returns the exit status with which its other tasks end; "stays" for one that waits for SLURM."""
        self._monkeypatch.setenv("SLURM_RESTART_COUNT", str(self._restart))
        submission = self.launch.submission()
        assert submission
        start = Start(self.launch.run_dir, submission, "")
        start.began -= 60 * minutes
        self.launch.add_start(job="12", restart=self._restart, step=self.launch.checkpoint_step(), time=start.began)
        if step:
            status.write(self.launch.run_dir, "running", step)
        if saved:
            make_run(self.launch.run_dir, profile={"time_minutes": 60}, saved=[saved])
        self._restart += 1
        stop = object.__new__(task.Stop)
        stop._start, stop.signal, stop.finished = start, None, threading.Event()
        stop._stop(number)
        self._monkeypatch.setattr(task, "time", _Impatient)
        with pytest.raises((SystemExit, TimeoutError)) as end:
            task._end_after_signal(start, stop)
        return end.value.code if isinstance(end.value, SystemExit) else "stays"


class _Impatient:
    """The module time, for who would wait for ever."""

    monotonic = staticmethod(time.monotonic)

    @staticmethod
    def sleep(seconds: float) -> None:
        raise TimeoutError


def test_three_time_limits_before_the_first_step_end_the_run(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = SavingJob(run_dir, monkeypatch)
    assert [job.save(minutes=58) for _ in range(2)] == ["stays", "stays"]
    assert job.save(minutes=10) == "stays", "a preemption"
    assert job.save(minutes=58, number=signal.SIGTERM) == "stays", "the end of the job, or a requeue from outside"
    assert job.requeued == ["12"] * 3
    assert job.save(minutes=58) == 1
    assert job.requeued == ["12"] * 3
    reason = "no progress in 3 starts from step 0; the last: its time limit came before its first step"
    last = job.launch.status()
    assert (last.state, last.reason) == ("crashed", reason)
    assert [row["restart"] for row in job.launch.ends()] == [0, 1, 2, 3, 4]


def test_a_task_whose_ranks_hang_ends_when_the_run_is_given_up(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another signal changes nothing, and what SLURM says by TERM ends it otherwise."""
    job = SavingJob(run_dir, monkeypatch)
    submission = job.launch.submission()
    assert submission
    stop = object.__new__(task.Stop)
    stop._start, stop._requeued = Start(run_dir, submission, ""), False
    stop._reader, writer = os.pipe()

    def exit_(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", exit_)
    for failures, code in ((2, 75), (1, 1)):
        for restart in range(failures):
            job.launch.add_failure(job="12", restart=10 * failures + restart, reason="said so")
        os.write(writer, bytes([signal.SIGUSR2]))
        if code == 75:
            threading.Timer(0.2, os.write, (writer, bytes([signal.SIGTERM]))).start()
        with pytest.raises(SystemExit) as end:
            stop._end_with_the_job()
        assert end.value.code == code
        stop._requeued = False
    for descriptor in (stop._reader, writer):
        os.close(descriptor)


def test_a_time_limit_that_lets_the_run_get_on_does_not_count(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = SavingJob(run_dir, monkeypatch)
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 100))  # where SLURM tells it, it counts
    for step in (3, 6, 9):
        job.save(minutes=1, step=step)
    assert [row["reason"] for row in job.launch.failures()] == ["its time limit came before it had saved"] * 3
    assert job.requeued == ["12", "12"]
    assert job.save(minutes=1, step=9, saved=9) == "stays"
    assert len(job.requeued) == len(job.launch.failures()) == 3


@pytest.mark.parametrize(
    ("submitted", "requeued"),
    [
        ("2026-01-02T00:00:09+0000", []),
        ("2026-01-02T00:00:07+0000", ["12"]),
        ("2026-01-01T23:00:09-0100", []),  # from a shell in another time zone, or from before a change of the clocks
        ("2026-01-02T01:00:07+0100", ["12"]),
        ("", ["12"]),
    ],
)
def test_a_job_that_another_one_replaces_is_not_requeued(
    submitted: str, requeued: list[str], run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A requeue at the moment of the cancellation would undo that. An earlier job's record may still be there."""
    job = SavingJob(run_dir, monkeypatch)
    own = job.launch.submission()
    assert own
    start = Start(run_dir, own.model_copy(update={"submitted": "2026-01-02T00:00:08+0000"}), "")
    record = json.loads(job.launch.job_file.read_text())
    job.launch.job_file.write_text(json.dumps({**record, "job": "13", "submitted": submitted}))
    assert start.requeue() == bool(requeued)
    assert job.requeued == requeued and not start.requeue_mark.exists()
    if not requeued:  # it was cancelled, and has come back all the same
        monkeypatch.setattr(task, "Stop", lambda _: pytest.fail("it begins"))
        with pytest.raises(SystemExit) as end:
            task._run(start)
        assert end.value.code == 75
        assert (start.launch.logs / "launcher.log").read_text().count("ends, since another job goes on") == 2


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGTERM, []), (signal.SIGUSR2, ["12", "12"])])
def test_a_job_that_slurm_ends_is_not_brought_back(
    number: signal.Signals, requeued: list[str], run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has crashed, and is cancelled before it could ask for another start."""
    job = SavingJob(run_dir, monkeypatch)
    start = Start(run_dir, Submission(), "")
    stopped(start, number)
    assert start.requeue() == bool(requeued)
    assert job.requeued == requeued and not start.requeue_mark.exists()


# What the user is told of.


@pytest.fixture
def events(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
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
    run_dir: Path, events: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(restart: int) -> Start:
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        return Start(run_dir, Submission(profile=Profile(time_minutes=60, signal_seconds=120)), "")

    status.write(run_dir, "stopped", 7)
    stopped(start(0), signal.SIGTERM)
    assert events == [("preemption",)]
    at_the_limit = start(1)
    at_the_limit.began -= 60 * 58
    stopped(at_the_limit, signal.SIGTERM)
    Launch(run_dir).add_end(job="12", restart=2, reason="rank 0: broken")
    stopped(start(2), signal.SIGTERM)
    assert events == [("preemption",)]
    reasons = [end["reason"] for end in Launch(run_dir).ends()]
    assert reasons == ["SIGTERM: told to save, stopped at step 7"] * 2 + ["rank 0: broken"]


def test_the_end_is_told_by_the_first_task_and_a_bad_one_as_a_failure(
    run_dir: Path, events: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Start(run_dir, Submission(), "")
    for state in ("done", "diverged"):
        status.write(run_dir, state, 7)
        start.tell_of_end()
    monkeypatch.setenv("SLURM_PROCID", "1")
    Start(run_dir, Submission(), "").tell_of_end()
    assert events == [("end",), ("failure", "end")]


def test_the_first_figures_are_told(
    run_dir: Path, events: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, waits = Start(run_dir, Submission(), ""), list[float]()

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            start.launch.paths.metrics.write_text("{}\n")

    replace_sleep(monkeypatch, task, sleep)
    task._tell_of_first_step(start)
    assert events == [("first_step",)] and len(waits) == 3
