"""A rank's start: its log, and the starts that would be in vain. Nothing trains here."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.cluster import Profile
from launcher.job import worker
from launcher.record import Launch, Submission
from moco_dist import config as configs
from moco_dist.ranks import speed
from moco_dist.run import status
from moco_dist.run.status import Status
from tests.jobs import FAST
from tests.launcher.made import make_run

VARIABLES = (
    "MOCO_DIST_JOB",
    "MOCO_DIST_RESTART",
    "TORCHELASTIC_RESTART_COUNT",
    "SLURMD_NODENAME",
    "RANK",
    "WORLD_SIZE",
)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Take the variables of a rank from the environment."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Make the launch of a run with a batch of 64, which 1, 2 or 4 ranks can share, but not 3."""
    return make_run(tmp_path / "run")


def ends(launch: Launch, ranks: int = 4) -> int | None:
    return worker.ends_at_once(launch, ranks, launch.stop_mark("12", 0))


def test_the_header_tells_which_start_of_which_rank(environment: pytest.MonkeyPatch) -> None:
    when = r", \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"
    assert re.fullmatch(
        rf"--- job \?, start 0\.0, rank 0 of 1, {re.escape(socket.gethostname())}{when}", worker.header()
    )
    for name, value in zip(VARIABLES, ("12_3", "2", "1", "n7", "5", "8"), strict=True):
        environment.setenv(name, value)
    assert re.fullmatch(rf"--- job 12_3, start 2\.1, rank 5 of 8, n7{when}", worker.header())


def test_an_ordinary_start_goes_on(environment: pytest.MonkeyPatch, launch: Launch) -> None:
    environment.setenv("WORLD_SIZE", "4")
    assert ends(launch) is None
    assert status.read(launch.run_dir).state is None


def test_a_job_that_was_told_to_stop_begins_nothing(environment: pytest.MonkeyPatch, launch: Launch) -> None:
    launch.stop_mark("12", 1).touch()  # of another start
    environment.setenv("WORLD_SIZE", "4")
    assert ends(launch) is None
    launch.stop_mark("12", 0).touch()
    assert ends(launch) == 0


@pytest.mark.parametrize(
    ("state", "first", "restarted"),
    [
        ("user_error", None, 2),
        ("diverged", None, 1),
        ("crashed", None, None),
        ("stopped", None, None),
        ("running", None, None),
        ("done", None, None),  # the trainer itself knows
        (None, None, None),
    ],
)
def test_the_agent_restarts_nothing_that_another_start_would_not_mend(
    environment: pytest.MonkeyPatch,
    launch: Launch,
    capsys: pytest.CaptureFixture[str],
    state: status.State | None,
    first: int | None,
    restarted: int | None,
) -> None:
    environment.setenv("WORLD_SIZE", "4")
    if state:
        status.write(launch.run_dir, state, 7, "said so")
    for count, expected in ((None, first), ("0", first), ("1", restarted), ("2", restarted)):
        if count:
            environment.setenv("TORCHELASTIC_RESTART_COUNT", count)
        assert ends(launch) == expected
        assert capsys.readouterr().err == ("not started again: said so\n" if expected else "")
    after = status.read(launch.run_dir)
    assert (after.state, after.step) == ((state, 7) if state else (None, 0))


def test_a_config_that_cannot_be_read_is_left_in_the_status(
    environment: pytest.MonkeyPatch, launch: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch.config_file.write_text("optim: {lr: fast}\n")
    (launch.run_dir / "checkpoints").mkdir()
    (launch.run_dir / "checkpoints" / "step_000000030.pt").touch()
    assert ends(launch) == 2
    line = "optim.lr = fast: must be a number; the default is optim.lr=0.03"
    assert status.read(launch.run_dir) == Status("user_error", 30, line)
    assert capsys.readouterr().err == line + "\n"
    launch.config_file.unlink()
    assert ends(launch) == 2
    assert "no such file" in status.read(launch.run_dir).reason


@pytest.mark.parametrize(
    ("world", "ranks", "expected"), [(4, 4, None), (2, 4, None), (3, 4, 75), (3, 3, None), (1, 4, None), (5, 4, 75)]
)
def test_fewer_ranks_go_on_where_they_divide_the_batch(
    environment: pytest.MonkeyPatch,
    launch: Launch,
    capsys: pytest.CaptureFixture[str],
    world: int,
    ranks: int,
    expected: int | None,
) -> None:
    """The trainer itself says that as many as were asked for cannot share it."""
    environment.setenv("WORLD_SIZE", str(world))
    assert ends(launch, ranks) == expected
    err = capsys.readouterr().err
    line = f"{world} of {ranks} ranks cannot go on alone, the job waits for all: optim.global_batch = 64: must be"
    assert err.startswith(line) if expected else not err
    assert status.read(launch.run_dir).state is None  # it is no mistake of the user's


def start(launch: Launch, **environment: str) -> subprocess.CompletedProcess[str]:
    """A rank in a process of its own, in a job that was told to stop."""
    mark = launch.stop_mark("12", 0)
    mark.touch()
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, "-m", "launcher.job.worker", str(launch.run_dir), "4", str(mark)]
    return subprocess.run(
        command,
        env={**clean, "PYTHONPATH": str(Path(__file__).parents[3]), **environment},
        capture_output=True,
        text=True,
    )


def test_all_output_goes_to_the_ranks_log_over_all_starts(launch: Launch) -> None:
    for restart in range(2):
        done = start(launch, RANK="3", WORLD_SIZE="4", MOCO_DIST_JOB="12", MOCO_DIST_RESTART=str(restart))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    [log] = launch.logs.glob("rank_*.log")
    assert log == launch.log(3)
    assert log.stat().st_mode & 0o777 == 0o600
    lines = log.read_text().splitlines()
    assert [line.partition(", ")[0] for line in lines] == ["--- job 12", "--- job 12"]
    assert [line.split(", ")[1] for line in lines] == ["start 0.0", "start 1.0"]


def test_without_a_log_the_output_stays_with_the_job(launch: Launch) -> None:
    launch.log(0).mkdir()
    done = start(launch)
    assert done.returncode == 0
    assert done.stderr == f"{launch.log(0)}: Is a directory; this rank's output stays here\n"
    assert done.stdout.startswith("--- job ?, start 0.0, rank 0 of 1")


def test_the_jobs_own_log_tells_why_the_ranks_start_again(
    environment: pytest.MonkeyPatch, launch: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    status.write(launch.run_dir, "crashed", 7, "rank 1: ValueError: x")
    for rank, again in (("0", "0"), ("1", "1"), ("0", "2")):
        environment.setenv("RANK", rank)
        environment.setenv("TORCHELASTIC_RESTART_COUNT", again)
        worker.tell_why_again(launch)
    [line] = (launch.logs / "launcher.log").read_text().splitlines()
    assert line.endswith(" rank 1: ValueError: x; the ranks start again, restart 2 within this start")
    assert capsys.readouterr().err == line + "\n"


def test_a_run_that_is_stopped_names_the_launchers_command(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launch = make_run(tmp_path / "runs" / "a b")
    overrides = [f"run.dir={launch.run_dir}", "run.max_minutes=0.0001", "track.wandb=disabled"]
    launch.config_file.write_text(configs.dump(configs.load(FAST, overrides)))
    environment.setattr(worker, "redirect", lambda log: None)
    environment.setattr(sys, "argv", ["worker", str(launch.run_dir), "1", str(launch.stop_mark("12", 0))])
    handler = signal.getsignal(signal.SIGUSR2)
    try:
        assert worker.main() == 0
    finally:
        signal.signal(signal.SIGUSR2, handler)
    reason = "stopped on request after step 1, saved; python -m launcher requeue 'a b' goes on from there"
    assert status.read(launch.run_dir).reason == reason


@pytest.mark.parametrize(
    ("restarts", "check_nodes", "size", "measured"),
    [("0", True, 2, True), ("1", True, 2, False), ("0", False, 2, False), ("0", True, 1, False)],
)
def test_the_slowest_rank_is_named_once_a_start(
    environment: pytest.MonkeyPatch, launch: Launch, restarts: str, check_nodes: bool, size: int, measured: bool
) -> None:
    """Rank 0 decides it for all."""

    def from_first(action: Callable[[], Any]) -> Any:
        return action()

    launch.write(Submission(job="12", profile=Profile(check_nodes=check_nodes)))
    environment.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
    environment.setattr(speed, "measure", lambda _: speed.Speed(1.5, 1, 2.0))
    world: Any = SimpleNamespace(rank=0, size=size, from_first=from_first, gather_objects=lambda _: ["n1", "n2"])
    worker.say_speed(launch, world)
    log = launch.logs / "launcher.log"
    line = " 2 ranks average 1.5 GiB/s; the slowest is rank 1 on n2, 2.00 times the median\n"
    assert log.read_text().endswith(line) if measured else not log.exists()
