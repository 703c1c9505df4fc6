"""A job whose srun has failed is requeued, or another job goes on with its run."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher import after, record
from launcher.record import Launch, Submission
from moco_dist.run import status
from tests.launcher.made import make_run, replace_sleep
from tests.launcher.programs import Programs

REFUSAL = "Requested operation is presently disabled for job 12"
AWAY = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Programs]:
    names = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_JOB_NODELIST")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    made = Programs(tmp_path / "slurm", monkeypatch)
    queue(made, "12|RUNNING", "12_0|RUNNING", "12_1|RUNNING")
    made.keeps("scontrol")
    handler = signal.getsignal(signal.SIGTERM)
    yield made
    signal.signal(signal.SIGTERM, handler)


def queue(programs: Programs, *lines: str) -> None:
    programs.says("squeue", {"--states=all": "".join(f"{line}|None|n1|1:00|/run\n" for line in lines)})


def call(folder: Path, monkeypatch: pytest.MonkeyPatch, srun: int = 1, **environment: str) -> int:
    """Do what the batch script does. Returns the exit status."""
    for name, value in ({"SLURM_JOB_ID": "12"} | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["launcher.after", str(folder), str(srun)])
    return after.main()


def requeued(programs: Programs) -> list[str]:
    """List the jobs for which SLURM was asked for another start."""
    return [words[1] for words, _ in programs.given("scontrol") if words[0] == "requeue"]


def run(folder: Path, state: status.State | None = "running", starts: int = 1, **more: Any) -> Launch:
    return make_run(folder / "run", state=state, starts=starts, **more)


def log_of(launch: Launch) -> list[str]:
    """List the lines of the job's own log, without their time."""
    file = launch.logs / "launcher.log"
    return [line.partition(" ")[2] for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.parametrize(
    ("state", "again"),
    [
        ("running", True),
        ("crashed", True),
        (None, True),  # it had not begun
        ("done", False),
        ("stopped", False),
        ("user_error", False),
        ("diverged", False),
    ],
)
def test_a_run_that_has_not_ended_starts_again(
    programs: Programs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: status.State | None,
    again: bool,
) -> None:
    launch = run(tmp_path, state)
    assert call(launch.run_dir, monkeypatch) == (0 if again else 1)
    assert requeued(programs) == (["12"] if again else [])
    assert log_of(launch) == (["job 12 is requeued"] if again else [])


def test_the_status_of_a_submission_is_not_its_jobs(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = run(tmp_path, "stopped", reason=record.SENT_AGAIN)
    assert call(launch.run_dir, monkeypatch) == 0


@pytest.mark.parametrize("state", ["running", "crashed", "stopped", "user_error", "done"])
def test_a_start_that_could_not_ask_for_another_has_left_a_mark(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: status.State
) -> None:
    launch = run(tmp_path, state, starts=2)
    launch.requeue_mark("12", 0).touch()  # of the start before
    launch.requeue_mark("11", 1).touch()
    before = call(launch.run_dir, monkeypatch, SLURM_RESTART_COUNT="1")
    assert before == (0 if state in ("running", "crashed") else 1)
    launch.requeue_mark("12", 1).touch()
    assert call(launch.run_dir, monkeypatch, SLURM_RESTART_COUNT="1") == (1 if state == "done" else 0)


def test_one_task_a_rank_ends_with_its_crash(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = run(tmp_path, "crashed", profile={"tasks": "rank"})
    assert call(launch.run_dir, monkeypatch) == 1


def test_three_failed_starts_are_enough(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = run(tmp_path, "running", starts=0)
    for restart in range(3):
        launch.add_start(job="12", restart=restart, step=0)
        assert call(launch.run_dir, monkeypatch, SLURM_RESTART_COUNT=str(restart)) == (0 if restart < 2 else 1)
    assert requeued(programs) == ["12", "12"]
    assert launch.status().state == "crashed"
    reason = "no progress in 3 starts from step 0; the last: srun ended with exit status 1"
    assert launch.status().reason == log_of(launch)[-1] == reason
    assert [row["restart"] for row in launch.ends()] == [0, 1, 2]


def test_what_the_task_has_given_up_is_not_told_twice(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = run(tmp_path, "crashed", starts=0)
    for restart in range(3):
        launch.add_failure(job="12", restart=restart, reason="said so")
    launch.give_up()
    before = launch.status()
    assert call(launch.run_dir, monkeypatch, SLURM_RESTART_COUNT="2") == 1
    assert launch.status() == before and not log_of(launch) and not requeued(programs)


def test_starts_that_could_not_even_be_noted_count_too(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = run(tmp_path, None, starts=0)
    codes = [call(launch.run_dir, monkeypatch, SLURM_RESTART_COUNT=str(restart)) for restart in range(3)]
    assert codes == [0, 0, 1]


def test_starts_that_slurm_has_ended_do_not_count(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that was told to save before it could listen; one that has saved, and left a mark; a lost node."""
    launch = run(tmp_path, None, starts=0)
    for restart in range(4):
        status_of_srun = 128 + (signal.SIGUSR2 if restart % 2 else signal.SIGTERM)
        assert call(launch.run_dir, monkeypatch, status_of_srun, SLURM_RESTART_COUNT=str(restart)) == 0
    for restart in range(4, 8):
        launch.add_start(job="12", restart=restart, step=0, time=0.0, nodes=["n1"])
        launch.requeue_mark("12", restart).touch()
        assert call(launch.run_dir, monkeypatch, 75, SLURM_RESTART_COUNT=str(restart)) == 0
    node = "NodeName=n2 State=ALLOCATED SlurmdStartTime=2026-11-27T15:00:09"
    programs.says("scontrol", {"show node n[1-2]": node})
    for restart in range(8, 12):
        launch.add_start(job="12", restart=restart, step=0, time=9.0, nodes=["n1", "n2"])
        more = {"SLURM_RESTART_COUNT": str(restart), "SLURM_JOB_NODELIST": "n[1-2]"}
        assert call(launch.run_dir, monkeypatch, **more) == 0
    assert "n2 was lost, so that this start does not count as failed" in log_of(launch)
    assert not launch.failures()


def test_a_time_limit_that_is_too_short_to_start_in_ends_the_run(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tasks were told to save before they could listen; those of another time were told so by a preemption."""
    launch = run(tmp_path, None, starts=0, profile={"time_minutes": 60, "signal_seconds": 120})
    codes = []
    for restart, minutes in enumerate((59, 30, 59, 59)):
        launch.add_start(job="12", restart=restart, step=0, time=time.time() - 60 * minutes, nodes=["n1"])
        srun = 128 + signal.SIGUSR2
        codes.append(call(launch.run_dir, monkeypatch, srun, SLURM_RESTART_COUNT=str(restart)))
    assert codes == [0, 0, 0, 1]
    assert [row["restart"] for row in launch.failures()] == [0, 2, 3]
    last = launch.status()
    reason = "no progress in 3 starts from step 0; the last: its time limit came before its first step"
    assert (last.state, last.reason) == ("crashed", reason)


def test_a_start_without_a_record_has_run_since_slurm_says(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = run(tmp_path, None, starts=0)
    srun = 128 + signal.SIGUSR2
    for seconds, failures in ((60, 0), (1440 * 60 - 60, 1)):
        began = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - seconds))
        programs.says("squeue", {"--states=all": f"12|RUNNING|None|n1|1:00 {began}|/run\n"})
        assert call(launch.run_dir, monkeypatch, srun) == 0
        assert len(launch.failures()) == failures


def test_where_slurm_is_away_it_is_asked_again(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, pauses = run(tmp_path), list[float]()
    programs.runs("scontrol", f"echo {shlex.quote(AWAY)} >&2; exit 1")
    programs.runs("squeue", f"echo {shlex.quote(AWAY)} >&2; exit 1")

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        assert log_of(launch)[-1].startswith("job 12 cannot be requeued now (scontrol: the SLURM controller does not")
        if len(pauses) == 12:
            programs.keeps("scontrol")

    replace_sleep(monkeypatch, after, sleep)
    assert call(launch.run_dir, monkeypatch) == 0
    assert requeued(programs) == ["12"]
    assert pauses[:3] == [2.0, 5.0, 10.0] and pauses[-1] == 30.0 and len(pauses) == 12
    assert len(log_of(launch)) == 2 and log_of(launch)[-1] == "job 12 is requeued"


def test_a_job_that_is_cancelled_while_slurm_is_away_is_not_brought_back(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = run(tmp_path)
    programs.runs("scontrol", f"echo {shlex.quote(AWAY)} >&2; exit 1")

    def sleep(_: float) -> None:
        programs.keeps("scontrol")
        queue(programs, "12|COMPLETING")

    replace_sleep(monkeypatch, after, sleep)
    assert call(launch.run_dir, monkeypatch) == 1
    assert not requeued(programs)


def test_where_slurm_does_not_requeue_another_job_goes_on(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = run(tmp_path, "stopped", earlier_jobs=("11",), name="mine")
    launch.requeue_mark("12", 0).touch()
    programs.runs("scontrol", f"echo {shlex.quote(REFUSAL)} >&2; exit 1")
    (programs.sent / "12.sh").touch()
    assert call(launch.run_dir, monkeypatch, 75, SLURM_CPU_BIND="none") == 0
    script = (programs.sent / "13.sh").read_text()
    assert "#SBATCH --dependency=afterany:12\n" in script and "#SBATCH --job-name=mine\n" in script
    assert launch.submission() == Submission(job="13", earlier_jobs=("11", "12"), name="mine")
    assert log_of(launch) == [f"SLURM does not requeue job 12 (scontrol: {REFUSAL}); job 13 goes on with the run"]
    assert call(launch.run_dir, monkeypatch, 75) == 1  # the run is another job's now


def test_where_slurm_refuses_all_the_log_tells_how_to_go_on(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = run(tmp_path)
    for name in ("scontrol", "sbatch"):
        programs.runs(name, f"echo {name}: error: no >&2; exit 1")
    replace_sleep(monkeypatch, after, lambda _: None)
    assert call(launch.run_dir, monkeypatch) == 1
    trouble = "SLURM does not requeue job 12 (scontrol: scontrol: error: no)"
    assert log_of(launch)[0] == "a new job is refused too (sbatch: error: no)"
    assert log_of(launch)[-1] == f"{trouble}; the run goes on with: python -m launcher requeue {launch.run_dir}"
    assert launch.submission() == Submission(job="12")


def test_a_refusal_since_the_job_ends_anyhow_brings_no_other_job(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, state = run(tmp_path), shlex.quote(str(tmp_path / "state"))
    (tmp_path / "state").write_text("RUNNING")
    programs.runs("squeue", f'echo "12|$(cat {state})|None|n1|1:00|/run"')
    programs.runs("scontrol", f"echo COMPLETING > {state}; echo {shlex.quote(REFUSAL)} >&2; exit 1")
    assert call(launch.run_dir, monkeypatch) == 1
    assert not list(programs.sent.iterdir()) and not log_of(launch)


@pytest.mark.parametrize("lines", [["12|COMPLETING"], ["12|CANCELLED"], ["13|RUNNING"], []])
def test_a_job_that_slurm_ends_is_not_brought_back(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    queue(programs, *lines)
    assert call(run(tmp_path).run_dir, monkeypatch) == 1


def test_without_slurms_commands_the_job_ends(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    launch = run(tmp_path)
    assert call(launch.run_dir, monkeypatch) == 1
    assert log_of(launch)[-1].startswith("job 12 cannot be requeued now (scontrol is not installed here")


def test_a_member_of_an_array_is_asked_for_by_its_own_id(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "sweep" / "00", job="12_0", state="running", starts=1)
    make_run(tmp_path / "sweep" / "01", job="12_1", state="done", starts=1)
    array = {"SLURM_ARRAY_JOB_ID": "12", "SLURM_JOB_ID": "14"}
    assert call(tmp_path / "sweep", monkeypatch, SLURM_ARRAY_TASK_ID="0", **array) == 0
    assert requeued(programs) == ["12_0"]
    assert call(tmp_path / "sweep", monkeypatch, SLURM_ARRAY_TASK_ID="1", **array) == 1
    assert call(tmp_path / "sweep", monkeypatch, SLURM_ARRAY_TASK_ID="2", **array) == 1


def test_the_job_of_before_is_not_brought_back(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was sent again meanwhile, as another job."""
    assert call(run(tmp_path, job="13").run_dir, monkeypatch) == 1
    assert call(tmp_path / "nowhere", monkeypatch) == 1
