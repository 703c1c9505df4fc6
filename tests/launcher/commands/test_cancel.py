"""`cancel` of a live job of which no run directory has a record. No SLURM is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher import slurm
from launcher.__main__ import main
from launcher.commands import cancel
from launcher.record import Launch
from launcher.views import runs
from moco_dist.run import status
from tests.launcher.made import MadeUp, make_run, replace_sleep

Said = pytest.CaptureFixture[str]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MadeUp:
    monkeypatch.chdir(tmp_path)
    return MadeUp(monkeypatch)


@pytest.mark.parametrize("name", ["12", "runs/gone", "gone"])
def test_by_its_id_or_its_directory(made_up: MadeUp, capsys: Said, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    made_up.queues("12", "RUNNING", Path("runs/gone").absolute())
    replace_sleep(monkeypatch, cancel, lambda _: made_up.forgets("12"))
    assert main(["cancel", name]) == 0
    said = f"job 12: cancelled; {Path('runs/gone').absolute()} has no record of it\n"
    assert capsys.readouterr().out == said
    assert [words for words in made_up.asked if words.startswith("scancel")] == ["scancel --quiet 12"]


def test_it_saves_before_it_ends(made_up: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of the run names another job by now."""
    launch = make_run(Path("runs/a").absolute(), job="13", state="running", starts=1)
    made_up.queues("12", "RUNNING", launch.run_dir)
    pauses: list[list[str]] = []

    def sleep(_: float) -> None:
        pauses.append([words for words in made_up.asked if words.startswith("scancel")])
        status.write(launch.run_dir, "stopped", 9)
        if len(pauses) == 2:
            made_up.forgets("12")

    replace_sleep(monkeypatch, cancel, sleep)
    assert main(["cancel", "12"]) == 0
    assert pauses == [["scancel --quiet --signal=TERM 12"], ["scancel --quiet --signal=TERM 12", "scancel --quiet 12"]]


@pytest.mark.parametrize("back", ["PENDING", "REQUEUE_HOLD"])
def test_a_job_that_comes_back_is_cancelled_again(
    made_up: MadeUp, capsys: Said, monkeypatch: pytest.MonkeyPatch, back: str
) -> None:
    """It had crashed, or was told of a preemption, and asked for its requeue as it was cancelled."""
    launch = make_run(Path("runs/a").absolute(), state="crashed", starts=1)
    made_up.queues("12", "RUNNING", launch.run_dir)
    states = iter(["COMPLETING", back, "COMPLETING", None])

    def sleep(_: float) -> None:
        if (state := next(states)) is None:
            made_up.forgets("12")
            made_up.accounts("12", "CANCELLED")
        else:
            made_up.queues("12", state, launch.run_dir)

    replace_sleep(monkeypatch, runs, sleep)
    assert main(["cancel", "a"]) == 0
    assert [words for words in made_up.asked if words.startswith("scancel")] == ["scancel --quiet 12"] * 2
    assert capsys.readouterr().out.startswith("a: job 12 cancelled; ")


@pytest.fixture
def running(made_up: MadeUp) -> Launch:
    launch = make_run(Path("runs/a").absolute(), state="running", starts=1)
    made_up.queues("12", "RUNNING", launch.run_dir)
    return launch


def cancelled(made_up: MadeUp) -> list[str]:
    return [words for words in made_up.asked if words.startswith("scancel")]


@pytest.mark.parametrize("saved_at", [1, 2, 3])
def test_while_slurm_is_silent_a_run_saves_and_is_cancelled_then(
    made_up: MadeUp, running: Launch, capsys: Said, monkeypatch: pytest.MonkeyPatch, saved_at: int
) -> None:
    """SLURM answers no question from the first pause to the third; scancel gets through."""
    pauses: list[list[str]] = []

    def sleep(_: float) -> None:
        pauses.append(cancelled(made_up))
        made_up.broken = {"squeue": slurm.Unavailable("squeue: no answer")} if len(pauses) < 3 else {}
        if len(pauses) == saved_at:
            status.write(running.run_dir, "stopped", 9)
        if len(pauses) == 5:
            made_up.forgets("12")
            made_up.accounts("12", "CANCELLED")

    replace_sleep(monkeypatch, runs, sleep)
    assert main(["cancel", "a"]) == 0
    save, end = "scancel --quiet --signal=TERM 12", "scancel --quiet 12"
    assert pauses == [[save] if number < saved_at else [save, end] for number in range(5)]
    assert capsys.readouterr().out.splitlines()[-1].startswith("a: job 12 cancelled; ")


def test_ctrl_c_tells_how_to_end_what_was_told_to_save(
    made_up: MadeUp, running: Launch, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(_: float) -> None:
        raise KeyboardInterrupt

    replace_sleep(monkeypatch, runs, sleep)
    assert main(["cancel", "a"]) == 130
    assert cancelled(made_up) == ["scancel --quiet --signal=TERM 12"]
    line = "launcher: told to save, and to keep the nodes until it is cancelled: python -m launcher cancel a\n"
    assert capsys.readouterr().err == line


def test_a_folder_of_sweeps_is_no_sweep(made_up: MadeUp, capsys: Said) -> None:
    for name in ("s", "t"):
        folder = Path("runs", name).absolute()
        make_run(folder / "00", job=f"{ord(name)}_0", sweep=str(folder))
        (folder / "launch").mkdir()
        made_up.queues(f"{ord(name)}_0", "PENDING", folder)
    for words in (["cancel", "runs"], ["sweep", "again", "runs"], ["sweep", "status", "runs"]):
        assert main(words) == 2
    assert not cancelled(made_up)


def test_the_job_of_a_folder_that_is_gone_is_found_where_runs_is_a_link(
    made_up: MadeUp, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("disk").mkdir()
    Path("runs").symlink_to("disk")
    made_up.queues("12", "RUNNING", Path("runs/gone").absolute())
    replace_sleep(monkeypatch, cancel, lambda _: made_up.forgets("12"))
    assert main(["cancel", "gone"]) == 0


def test_a_whole_array(made_up: MadeUp, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    for member in (0, 1):
        made_up.queues(f"12_{member}", "PENDING", "/no/such/sweep")
    made_up.queues("13", "RUNNING", "/no/such/run")
    replace_sleep(monkeypatch, cancel, lambda _: [made_up.forgets(f"12_{member}") for member in (0, 1)] and None)
    assert main(["cancel", "12"]) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["job 12_0", "job 12_1"]


def test_one_that_does_not_go_is_told(made_up: MadeUp, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up.queues("12", "RUNNING", "/no/such/run")
    monkeypatch.setattr(cancel, "_LEAVE_SECONDS", 0.0)
    assert main(["cancel", "12"]) == 1
    assert capsys.readouterr().out == "job 12: is still there\n"
    assert main(["cancel", "14"]) == 2
    assert "RUN = 14: is no job of a run in runs/" in capsys.readouterr().err


def test_a_job_whose_run_directory_was_moved_is_cancelled_by_its_id(
    made_up: MadeUp, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record has gone with the directory, and still names the job; by its new name the run has ended."""
    make_run(Path("runs/moved").absolute())
    old = Path("runs/a").absolute()
    made_up.queues("12", "PENDING", old)
    moved = f"job 12 at SLURM is that of {old}: this directory was moved, or SLURM counts anew; it never started"
    assert main(["cancel", "moved"]) == 0
    assert capsys.readouterr().out == f"moved: has ended already: lost; {moved}\n"
    assert not cancelled(made_up)
    replace_sleep(monkeypatch, cancel, lambda _: made_up.forgets("12"))
    assert main(["cancel", "12"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"job 12: cancelled; {old} has no record of it"
    assert cancelled(made_up) == ["scancel --quiet 12"]


@pytest.mark.parametrize("state", ["SUSPENDED", "STOPPED"])
def test_a_suspended_run_is_cancelled_at_once(
    made_up: MadeUp, running: Launch, monkeypatch: pytest.MonkeyPatch, capsys: Said, state: str
) -> None:
    """It takes no signal: scancel would wait for its resumption."""
    made_up.queues("12", state, running.run_dir)
    replace_sleep(monkeypatch, runs, lambda _: made_up.queues("12", "CANCELLED", running.run_dir))
    assert main(["cancel", "a"]) == 0
    assert cancelled(made_up) == ["scancel --quiet 12"]
    assert capsys.readouterr().out.startswith("a: job 12 cancelled; no checkpoint yet")
