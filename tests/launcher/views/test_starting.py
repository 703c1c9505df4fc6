"""A run that SLURM has started tells what it waits for, and what goes wrong, in its files."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from launcher.record import Launch
from launcher.views import runs
from launcher.views.runs import Run
from moco_dist.run import status
from tests.launcher.made import MadeUp, earlier, make_run, train_row

STARTING = "its nodes to meet and to start their ranks"
FULL = "OSError: [Errno 28] No space left on device"


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MadeUp:
    monkeypatch.chdir(tmp_path)
    return MadeUp(monkeypatch)


def see(launch: Launch) -> Run:
    [run] = runs.look([launch])
    return run


def moment(seconds_ago: float) -> str:
    """A moment as SLURM writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - seconds_ago))


def test_a_start_on_its_way_to_the_first_step(made_up: MadeUp) -> None:
    launch = make_run(
        Path("runs/a").resolve(), state="stopped", step=7, saved=[7], nodes=2, profile={"gpus_per_node": 1}
    )
    seen = [("", see(launch).state)]

    def look(slurm_state: str = "RUNNING") -> None:
        made_up.queues("12", slurm_state, launch.run_dir, started=moment(60))
        run = see(launch)
        assert (run.state, run.shown_state) == ("running", "starting" if run.waits_for else "running")
        seen.append((run.waits_for, run.reason))

    look("CONFIGURING")
    look()
    launch.add_start(job="12", restart=0, step=7, time=time.time() - 30, nodes=["n1", "n2"])
    earlier(launch.starts_file, 30)
    for file in (launch.paths.status, launch.log(0), launch.log(1)):
        file.touch()
        earlier(file, 40)
    look()
    launch.log(0).write_text("--- job 12\n")
    look()
    launch.log(1).write_text("--- job 12\n")
    look()
    status.write(launch.run_dir, "running", 7)
    look()
    launch.paths.metrics.write_text('{"step": 8, "loss": 5.0}\n')
    look()
    assert [waits_for for waits_for, _ in seen[1:]] == [
        "its nodes to come up",
        "its tasks to begin on the nodes",
        STARTING,
        "its ranks to begin, 1 of 2 have",
        "its ranks to meet and to load the data",
        "its first batch and step",
        "",
    ]


def test_a_requeued_start_is_told_from_the_one_before(made_up: MadeUp) -> None:
    """SLURM tells when it began; rows of the start before are no steps of this one."""
    launch = make_run(Path("runs/a").resolve(), starts=2, state="running", step=30, rows=[train_row(35)])
    for file, seconds in ((launch.starts_file, 10), (launch.paths.status, 5), (launch.paths.metrics, 5)):
        earlier(file, seconds)
    made_up.queues("12", "RUNNING", launch.run_dir, started=moment(0))
    assert see(launch).waits_for == ""
    made_up.queues("12", "RUNNING", launch.run_dir, started=moment(-20))
    assert see(launch).waits_for == "its tasks to begin on the nodes"
    launch.add_start(job="12", restart=2, step=30, time=time.time() + 30, nodes=["n1"])
    assert see(launch).waits_for == STARTING
    made_up.queues("12", "COMPLETING", launch.run_dir)
    assert see(launch).waits_for == ""


def test_the_nodes_that_still_unpack_the_data(made_up: MadeUp) -> None:
    launch = make_run(Path("runs/a").resolve(), stage="/data.tar", nodes=2)
    launch.add_start(job="12", restart=1, step=0, time=time.time(), nodes=["n1", "n2"])
    made_up.queues("12", "RUNNING", launch.run_dir)
    log = ["n1: job 12, start 0, from step 0 on n1, n2", "n2: has the data"]
    log += ["n1: job 12, start 1, from step 0 on n1, n2", "n1: unpacks /data.tar", "n1: has the data"]
    (launch.logs / "launcher.log").write_text("".join(f"2026-11-27T20:00:00 {line}\n" for line in log))
    assert see(launch).waits_for == "the data to be unpacked on n2"
    with (launch.logs / "launcher.log").open("a") as file:
        file.write("2026-11-27T20:00:09 n2: has the data\n")
    assert see(launch).waits_for == STARTING


@pytest.mark.parametrize(
    ("saved", "failures", "log", "reason"),
    [
        (20, 0, "", ""),
        (10, 0, "", ""),  # it is being written
        (10, 1, "", "checkpoints fail (1)"),
        (10, 0, f"checkpoint of step 20 not saved, training goes on: {FULL}", "checkpoints fail: " + FULL),
        (10, 2, f"checkpoint of step 20 not saved, training goes on: {FULL}", "checkpoints fail (2): " + FULL),
        (15, 1, f"checkpoint of step 10 not saved, training goes on: {FULL}", ""),  # the one after it was
        (20, 1, f"checkpoint of step 15 not saved, training goes on: {FULL}", ""),
        (10, 0, f"checkpoint of step 20 not saved, training goes on: {FULL}\n--- job 12, start 1.0", ""),
    ],
)
def test_checkpoints_that_fail_are_told(made_up: MadeUp, saved: int, failures: int, log: str, reason: str) -> None:
    more = {"checkpoint_failures": failures} if failures else {}
    rows = [train_row(25, **more)]
    launch = make_run(Path("runs/a").resolve(), starts=1, state="running", step=20, rows=rows, saved=[5, saved])
    launch.log(0).write_text(f"--- job 12, start 0.0\n{log}\n")
    made_up.queues("12", "RUNNING", launch.run_dir)
    run = see(launch)
    assert run.reason == reason
    assert run.evidence.saved == saved


@pytest.mark.parametrize("where", ["rank", "output"])
def test_a_full_disk_is_the_reason(made_up: MadeUp, where: str) -> None:
    launch = make_run(Path("runs/a").resolve(), starts=1, state="running")
    made_up.queues("12", "FAILED", launch.run_dir)
    log = launch.log(3) if where == "rank" else launch.submitit / "12_0_log.out"
    (launch.submitit / "11_0_log.out").write_text(f"{FULL}: another job's\n")
    log.write_text(f"--- job 12, start 0.0\nTraceback\n{FULL}: '/tmp/x'\nmore\n")
    assert see(launch).reason == f"its job failed, SLURM says FAILED; a disk is full: {FULL}: '/tmp/x'"
    with log.open("a") as file:
        file.write("--- job 12, start 1.0\n")
    assert see(launch).reason == "its job failed, SLURM says FAILED"
    status.write(launch.run_dir, "crashed", 0, f"rank 0: {FULL}")
    with log.open("a") as file:
        file.write(f"{FULL}\n")
    assert see(launch).reason == f"rank 0: {FULL}", "it is told once"


def test_a_start_that_failed_says_so_while_the_next_one_waits(made_up: MadeUp) -> None:
    launch = make_run(Path("runs/a").resolve(), starts=1, state="stopped")
    launch.add_failure(job="12", restart=0, reason="its time limit came before its first step")
    made_up.queues("12", "PENDING", launch.run_dir, "BeginTime")
    reason = "BeginTime; its time limit came before its first step; for more time: python -m launcher requeue a "
    assert see(launch).reason == reason + "--time-minutes MINUTES"
    launch.add_start(job="12", restart=1, step=0, time=time.time(), nodes=["n1"])
    assert see(launch).reason == "BeginTime"
