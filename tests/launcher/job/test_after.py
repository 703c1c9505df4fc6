"""Whether the batch script puts a job back into the queue, when srun has failed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.job import after
from launcher.record import Launch
from moco_dist.run import status
from tests.launcher.made import make_run
from tests.launcher.programs import Programs


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    found = Programs(tmp_path / "slurm", monkeypatch)
    queue(found, "12|RUNNING", "12_0|RUNNING", "12_1|RUNNING")
    return found


def queue(programs: Programs, *lines: str) -> None:
    programs.says("squeue", {"--states=all": "".join(f"{line}|None|n1|1:00|/run\n" for line in lines)})


def asks(folder: Path, monkeypatch: pytest.MonkeyPatch, **environment: str) -> int:
    """The batch script's question. Returns the exit status."""
    for name, value in ({"SLURM_JOB_ID": "12"} | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["launcher.job.after", str(folder)])
    return after.main()


def run(folder: Path, state: status.State | None = "running", starts: int = 1, **more: Any) -> Launch:
    return make_run(folder / "run", state=state, starts=starts, **more)


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
    capsys: pytest.CaptureFixture[str],
    state: status.State | None,
    again: bool,
) -> None:
    launch = run(tmp_path, state)
    assert asks(launch.run_dir, monkeypatch) == (0 if again else 1)
    out, err = capsys.readouterr()
    assert out == ("12\n" if again else "")
    assert err.count("\n") == again


@pytest.mark.parametrize("state", ["running", "crashed", "stopped", "user_error", "done"])
def test_a_start_that_could_not_ask_for_another_has_left_a_mark(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: status.State
) -> None:
    launch = run(tmp_path, state, starts=2)
    launch.requeue_mark("12", 0).touch()  # of the start before
    launch.requeue_mark("11", 1).touch()
    before = asks(launch.run_dir, monkeypatch, SLURM_RESTART_COUNT="1")
    assert before == (0 if state in ("running", "crashed") else 1)
    launch.requeue_mark("12", 1).touch()
    assert asks(launch.run_dir, monkeypatch, SLURM_RESTART_COUNT="1") == (1 if state == "done" else 0)


def test_one_task_a_rank_ends_with_its_crash(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = run(tmp_path, "crashed", profile={"tasks": "rank"})
    assert asks(launch.run_dir, monkeypatch) == 1


def test_three_starts_in_vain_are_enough(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = run(tmp_path, "running", starts=0)
    for restart in range(3):
        launch.add_start(job="12", restart=restart, step=0)
        expected = 0 if restart < 2 else 1
        assert asks(launch.run_dir, monkeypatch, SLURM_RESTART_COUNT=str(restart)) == expected


def test_starts_that_could_not_even_be_noted_count_too(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = run(tmp_path, None, starts=0)
    codes = [asks(launch.run_dir, monkeypatch, SLURM_RESTART_COUNT=str(restart)) for restart in range(4)]
    assert codes == [0, 0, 1, 1]


@pytest.mark.parametrize("lines", [["12|COMPLETING"], ["12|CANCELLED"], ["13|RUNNING"], []])
def test_a_job_that_slurm_ends_is_not_brought_back(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    queue(programs, *lines)
    assert asks(run(tmp_path).run_dir, monkeypatch) == 1


@pytest.mark.parametrize(
    "squeue",
    [
        None,  # in a container
        "echo slurm_load_jobs error: Unable to contact slurm controller '(connect failure)' >&2; exit 1",
        "echo slurm_load_jobs error: Socket timed out on send/recv operation >&2; exit 1",
    ],
)
def test_where_slurm_does_not_tell_the_job_is_requeued(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, squeue: str | None
) -> None:
    if squeue:
        programs.runs("squeue", squeue)
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
    assert asks(run(tmp_path).run_dir, monkeypatch) == 0


def test_a_member_of_an_array_is_asked_for_by_its_own_id(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "sweep" / "00", job="12_0", state="running", starts=1)
    make_run(tmp_path / "sweep" / "01", job="12_1", state="done", starts=1)
    array = {"SLURM_ARRAY_JOB_ID": "12", "SLURM_JOB_ID": "14"}
    assert asks(tmp_path / "sweep", monkeypatch, SLURM_ARRAY_TASK_ID="0", **array) == 0
    assert capsys.readouterr().out == "12_0\n"
    assert asks(tmp_path / "sweep", monkeypatch, SLURM_ARRAY_TASK_ID="1", **array) == 1
    assert asks(tmp_path / "sweep", monkeypatch, SLURM_ARRAY_TASK_ID="2", **array) == 1


def test_the_job_of_before_is_not_brought_back(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was sent again meanwhile, as another job."""
    assert asks(run(tmp_path, job="13").run_dir, monkeypatch) == 1
    assert asks(tmp_path / "nowhere", monkeypatch) == 1
