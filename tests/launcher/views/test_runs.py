"""The state of a run follows from its directory, the queue and the accounting."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher import slurm, slurm_jobs
from launcher.record import Launch
from launcher.views import figures, find, runs, survey
from launcher.views.runs import Run
from moco_dist.errors import UserError
from moco_dist.run import status
from moco_dist.run.lease import Lease, held_by, process_start
from tests.launcher.made import MadeUp, earlier, knn_row, make_run, train_row


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    return MadeUp(monkeypatch)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with an empty runs/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    return tmp_path


def see(launch: Launch) -> Run:
    [run] = runs.look([launch])
    return run


def stand(run: Run) -> tuple[str, str, bool, bool]:
    return run.state, run.reason, run.live, run.ended


LIVE = (True, False)
ENDED = (False, True)
NOBODY_KNOWS = (False, False)


@pytest.mark.parametrize(
    ("word", "why", "starts", "said", "expected"),
    [
        ("PENDING", "Resources", 0, None, ("pending", "Resources")),
        ("PENDING", "BeginTime", 1, "stopped", ("requeued", "BeginTime")),
        ("REQUEUE_HOLD", "held", 1, "stopped", ("requeued", "held; let it go by: scontrol release 12")),
        ("PENDING", "JobHeldUser", 0, None, ("pending", "JobHeldUser; let it go by: scontrol release 12")),
        (
            "PENDING",
            "JobHeldAdmin",
            0,
            None,
            ("pending", "JobHeldAdmin; an administrator lets it go by: scontrol release 12"),
        ),
        ("RUNNING", "None", 0, None, ("running", "")),
        ("RUNNING", "None", 1, "running", ("running", "")),
        ("RUNNING", "None", 1, "crashed", ("running", "said so")),
        ("COMPLETING", "None", 1, "done", ("running", "is ending")),
        (
            "SUSPENDED",
            "None",
            1,
            "running",
            ("running", "SLURM has suspended it, and it cannot save until it is resumed"),
        ),
    ],
)
def test_a_job_in_the_queue_is_live(
    here: Path, made_up: MadeUp, word: str, why: str, starts: int, said: status.State | None, expected: tuple[str, str]
) -> None:
    launch = make_run(here / "runs/a", starts=starts, state=said, step=7, reason="said so")
    made_up.queues("12", word, launch.run_dir, why)
    assert stand(see(launch)) == (*expected, *LIVE)


@pytest.mark.parametrize("told_by", ["queue", "accounting"])
@pytest.mark.parametrize(
    ("word", "said", "expected"),
    [
        ("COMPLETED", "done", ("done", "said so")),
        ("COMPLETED", "stopped", ("stopped", "said so")),
        ("COMPLETED", "running", ("crashed", "its job ended, but the run had not")),
        ("FAILED", "user_error", ("user_error", "said so")),
        ("FAILED", "diverged", ("diverged", "said so")),
        ("FAILED", "crashed", ("crashed", "said so")),
        ("FAILED", "stopped", ("stopped", "said so")),
        ("FAILED", "running", ("crashed", "its job failed, SLURM says FAILED")),
        ("OUT_OF_MEMORY", "running", ("crashed", "a node's memory was full; ask for more by memory_gib")),
        ("CANCELLED", "stopped", ("cancelled", "said so")),
        ("CANCELLED", "running", ("cancelled", "")),
        ("CANCELLED", "done", ("done", "said so")),
        (
            "TIMEOUT",
            "running",
            (
                "time limit",
                "its time limit came before its first step; for more time: python -m launcher requeue a "
                "--time-minutes MINUTES",
            ),
        ),
        ("PREEMPTED", "running", ("stopped", "preempted, and not requeued")),
    ],
)
def test_an_ended_job(
    here: Path, made_up: MadeUp, told_by: str, word: str, said: status.State, expected: tuple[str, str]
) -> None:
    launch = make_run(here / "runs/a", starts=1, state=said, reason="said so")
    if told_by == "queue":
        made_up.queues("12", word, launch.run_dir)
    else:
        made_up.accounts("12", "CANCELLED by 0" if word == "CANCELLED" else word)
    assert stand(see(launch)) == (*expected, *ENDED)


def test_a_job_that_nobody_knows_any_more(here: Path, made_up: MadeUp) -> None:
    trained = make_run(here / "runs/trained", starts=1, state="running", step=5)
    waited = make_run(here / "runs/waited", job="13")
    saved = make_run(here / "runs/saved", job="14", starts=1, state="stopped", reason="after step 9")
    lost = "is not known to SLURM any more"
    assert stand(see(trained)) == ("lost", f"job 12 {lost}", *ENDED)
    assert stand(see(waited)) == ("lost", f"job 13 {lost}; it never started", *ENDED)
    assert stand(see(saved)) == ("stopped", "after step 9", *ENDED)


def test_a_forgotten_job_whose_lease_lives_runs(here: Path, made_up: MadeUp) -> None:
    launch = make_run(here / "runs/a", starts=1, state="running")
    lease = Lease(launch.run_dir)
    run = see(launch)
    lease.release()
    assert run.state == "running"
    assert f"process {os.getpid()} on" in run.reason
    assert (run.live, run.ended) == LIVE
    assert see(launch).state == "lost"


def test_a_lease_of_another_host_lives_while_it_is_renewed(here: Path, made_up: MadeUp) -> None:
    launch = make_run(here / "runs/a", starts=1, state="running")
    lease = launch.run_dir / "lease.json"
    lease.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "boot 1", "token": "t"}))
    assert see(launch).state == "running"
    earlier(lease, 100)
    assert see(launch).state == "lost"


def test_a_status_from_before_the_last_start_does_not_count(here: Path, made_up: MadeUp) -> None:
    launch = make_run(here / "runs/a", starts=1, state="stopped", reason="the first start's")
    earlier(launch.run_dir / "status.json", 5)
    made_up.queues("12", "FAILED", launch.run_dir)
    run = see(launch)
    assert stand(run) == ("crashed", "its job failed, SLURM says FAILED; it had not begun to train", *ENDED)
    assert run.trainer_state == ""


def test_a_status_from_an_earlier_job_does_not_count(here: Path, made_up: MadeUp) -> None:
    launch = make_run(here / "runs/a", starts=1, state="crashed", reason="job 12's")
    sent = launch.submission()
    assert sent is not None
    launch.write(sent.model_copy(update={"job": "40"}))
    made_up.queues("40", "PENDING", launch.run_dir, "Priority")
    assert stand(see(launch)) == ("pending", "Priority", *LIVE)
    made_up.queues("40", "NODE_FAIL", launch.run_dir)
    assert stand(see(launch)) == ("crashed", "a node failed; it had not begun to train", *ENDED)


def test_a_job_that_waited_in_vain(here: Path, made_up: MadeUp) -> None:
    launch = make_run(here / "runs/a", state="stopped", step=7)
    made_up.queues("12", "PENDING", launch.run_dir, slurm_jobs.NEVER)
    assert stand(see(launch)) == ("pending", slurm_jobs.NEVER, *LIVE)
    made_up.queues("12", "CANCELLED", launch.run_dir, slurm_jobs.NEVER)
    assert stand(see(launch)) == ("cancelled", "what it waited for has failed", *ENDED)


def test_a_done_run_is_done_though_its_job_is_forgotten(here: Path, made_up: MadeUp) -> None:
    launch = make_run(here / "runs/a", starts=1, state="done", step=100)
    assert see(launch).state == "done"
    assert not [command for command in made_up.asked if command.startswith("sacct")]


def test_the_job_of_another_directory_is_not_this_run(here: Path, made_up: MadeUp) -> None:
    """SLURM has begun to count anew: 12 is another run's job now."""
    launch = make_run(here / "runs/a", starts=1, state="running")
    made_up.queues("12", "RUNNING", "/elsewhere/runs/b")
    assert see(launch).state == "lost"
    made_up.queues("12", "RUNNING", "a comment of the site's")
    assert see(launch).state == "running"


@pytest.mark.parametrize("command", ["squeue", "sacct"])
def test_without_slurms_answer_the_directory_speaks(here: Path, made_up: MadeUp, command: str) -> None:
    made_up.broken[command] = slurm.Unavailable("no answer in 1 s")
    running = make_run(here / "runs/running", starts=1, state="running", step=5)
    done = make_run(here / "runs/done", starts=1, state="done")
    stopped = make_run(here / "runs/stopped", starts=1, state="stopped", step=6)  # it may wait for its next start
    unborn = make_run(here / "runs/unborn")
    resent = make_run(here / "runs/resent", state="stopped", step=6)
    assert stand(see(running)) == ("running", "", *NOBODY_KNOWS)
    assert stand(see(stopped)) == ("stopped", "", *NOBODY_KNOWS)
    assert stand(see(unborn)) == ("unknown", "the run directory says: not begun", *NOBODY_KNOWS)
    assert stand(see(resent)) == ("unknown", "the run directory says: stopped at step 6", *NOBODY_KNOWS)
    assert see(running).slurm_error == "no answer in 1 s"
    assert not any(see(run).confirmed for run in (running, stopped, unborn, resent))
    assert stand(see(done)) == ("done", "", *ENDED) and see(done).confirmed


def test_slurm_is_asked_once_or_twice_for_any_number_of_runs(here: Path, made_up: MadeUp) -> None:
    for number in range(30):
        make_run(here / f"runs/{number}", job=str(number), starts=1, state="running")
    made_up.queues("3", "RUNNING", here / "runs/3")
    made_up.accounts("4", "TIMEOUT")
    surveyed, slurm_error = survey.survey()
    assert {run.name: run.state for run in surveyed if run.name in "345"} == {
        "3": "running",
        "4": "time limit",
        "5": "lost",
    }
    assert [command.split()[0] for command in made_up.asked] == ["squeue", "sacct"]
    assert not slurm_error


def test_runs_without_slurm_ask_nothing_of_it(here: Path, made_up: MadeUp) -> None:
    launch = make_run(here / "runs/a", job="1", executor="local", starts=1, state="stopped", reason="said so")
    assert stand(see(launch)) == ("stopped", "said so", *ENDED)
    assert not made_up.asked


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield child


def test_a_local_run_lives_with_its_controller(here: Path, made_up: MadeUp, process: subprocess.Popen[bytes]) -> None:
    started = process_start(process.pid)
    launch = make_run(
        here / "runs/a", job=str(process.pid), executor="local", started=started, starts=1, state="running"
    )
    other = make_run(here / "runs/b", job=str(process.pid), executor="local", started="a boot before this one 1")
    assert stand(see(launch)) == ("running", "", *LIVE)
    assert see(other).ended
    process.kill()
    process.wait()
    assert stand(see(launch)) == ("lost", f"process {process.pid} is gone", *ENDED)


def test_the_live_jobs_of_other_folders_are_seen(here: Path, made_up: MadeUp) -> None:
    make_run(here / "runs/a")
    away = make_run(here / "elsewhere/b", job="13")
    over = make_run(here / "elsewhere/c", job="14")
    made_up.queues("12", "RUNNING", here / "runs/a")
    made_up.queues("13", "PENDING", away.run_dir)
    made_up.queues("14", "COMPLETED", over.run_dir)
    made_up.queues("15", "RUNNING", "/no/such/run")
    surveyed, _ = survey.survey()
    seen = [(run.name, run.state) for run in surveyed]
    assert seen == [("a", "running"), ("elsewhere/b", "pending"), ("/no/such/run", "running")]
    surveyed, _ = survey.survey([here / "elsewhere"])
    assert [run.name for run in surveyed] == ["elsewhere/b", "elsewhere/c"]


def test_runs_on_another_disk_are_called_by_their_names(here: Path, made_up: MadeUp) -> None:
    """The folder runs/ is a link, and jobs know their directories by it."""
    (here / "runs").rename(here / "disk")
    (here / "runs").symlink_to(here / "disk")
    make_run(here / "runs/a").job_file.write_text("{")
    make_run(here / "runs/sweep/00", job="13_0", sweep=str(here / "runs/sweep"))
    (here / "runs/sweep/launch").mkdir()
    made_up.queues("12", "RUNNING", here / "runs/a")
    made_up.queues("13_0", "PENDING", here / "runs/sweep")
    made_up.queues("14", "PENDING", here / "runs/new")
    seen = [(run.name, run.job_id) for run in survey.survey()[0]]
    assert seen == [("a", "12"), ("runs/sweep/00", "13_0"), ("new", "14")]
    for place in (here / "runs/new", here / "disk/new"):
        assert [job.id for job in runs.queued_for([place]).values()] == ["14"]


def test_a_live_job_without_a_record_is_seen(here: Path, made_up: MadeUp) -> None:
    """It is seen where its folder is gone or was moved, or the record is another job's; a job that could not be
    requeued is part of its successor.
    """
    make_run(here / "runs/a", job="13", earlier_jobs=("12",))
    made_up.queues("11", "RUNNING", here / "runs/a")
    made_up.queues("12", "RUNNING", here / "runs/a")
    made_up.queues("13", "PENDING", here / "runs/a", "Dependency")
    made_up.queues("14", "PENDING", here / "runs/gone", "Priority")
    made_up.queues("15_1", "RUNNING", here / "runs/sweep")
    made_up.queues("16", "RUNNING", "a comment of another's")
    no_record = "its run directory has no record of it"
    make_run(here / "runs/moved", job="14")
    for places, expected in (([], "a moved a gone sweep"), ([here / "runs/a"], "a a"), ([here / "else"], "")):
        surveyed, _ = survey.survey(places)
        assert [run.name for run in surveyed] == expected.split()
    rows = {run.job_id: run for run in survey.survey()[0] if run.name != "moved"}
    assert stand(rows["11"]) == ("running", no_record, *LIVE)
    assert stand(rows["14"]) == ("pending", f"{no_record}; Priority", *LIVE)
    assert rows.keys() == {"11", "13", "14", "15_1"}


@pytest.mark.parametrize(
    "file", ["launch/job.json", "launch/starts.jsonl", "status.json", "metrics.jsonl", "lease.json"]
)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]\n",
        b"null\n",
        b'{"state": 5, "step": 1e999, "reason": []}\n',
        b'{"step": 1' + b"0" * 999 + b', "loss": 1}\n',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_spoils_one_row_at_most(here: Path, made_up: MadeUp, file: str, content: bytes) -> None:
    bad = make_run(here / "runs/bad", starts=1, state="running", rows=[train_row(5)])
    good = make_run(here / "runs/good", job="13", starts=1, state="running")
    (bad.run_dir / file).write_bytes(content)
    made_up.queues("12", "RUNNING", bad.run_dir)
    made_up.queues("13", "RUNNING", good.run_dir)
    surveyed, _ = survey.survey()
    assert [run.name for run in surveyed] == ["bad", "good"]
    assert surveyed[1].state == "running"
    assert surveyed[0].state in (["unreadable"] if file == "launch/job.json" else ["running", "unreadable"])
    assert surveyed[0].state == "running" or surveyed[0].reason


def test_another_users_run_says_so(here: Path, made_up: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = make_run(here / "runs/a")
    monkeypatch.setattr(os, "getuid", lambda: launch.run_dir.stat().st_uid + 1)
    run = see(launch)
    assert (run.state, run.live, run.ended) == ("unreadable", False, False)
    assert "belongs to another user" in run.reason
    with pytest.raises(UserError, match="another user"):
        find.run("a")


@pytest.fixture
def anybody(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory where this process is no superuser, whom nothing is closed to."""
    before, me = Path.cwd(), os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        os.chdir(folder)
        if me == 0:
            os.seteuid(65534)
            monkeypatch.setattr(os, "getuid", os.geteuid)
        try:
            yield Path(folder).resolve()
        finally:
            os.seteuid(me)
            os.chdir(before)


def test_a_directory_that_cannot_be_entered_is_a_row(anybody: Path, made_up: MadeUp) -> None:
    closed = make_run(anybody / "runs/closed").run_dir
    (anybody / "runs/nothing").mkdir()
    (anybody / "places").mkdir()
    for folder in (closed, anybody / "places"):
        folder.chmod(0)
    surveyed, _ = survey.survey()
    assert [(run.name, *stand(run)) for run in surveyed] == [
        ("closed", "unreadable", "Permission denied", False, False)
    ]
    surveyed, _ = survey.survey([Path("places")])
    assert [(run.name, run.reason) for run in surveyed] == [("places", "Permission denied")]
    with pytest.raises(UserError, match="cannot be read"):
        find.run("closed")
    for folder in (closed, anybody / "places"):
        folder.chmod(0o700)


def test_finding_a_run(here: Path, made_up: MadeUp) -> None:
    a, b = make_run(here / "runs/a", job="12"), make_run(here / "elsewhere/b", job="13_4")
    made_up.queues("13_4", "RUNNING", b.run_dir)
    assert find.run("a") == find.run("runs/a") == find.run(str(a.run_dir)) == find.run("12") == a
    assert find.run("13_4") == find.run("elsewhere/b") == b
    (here / "runs/plain").mkdir()
    for text in ("c", "99", "plain", "", "../x", "-1", "a\0b"):
        with pytest.raises(UserError, match=r"^RUN = .*; "):
            find.run(text)


def test_a_job_id_that_two_runs_claim_is_the_queues(here: Path, made_up: MadeUp) -> None:
    make_run(here / "runs/old", job="12")
    new = make_run(here / "runs/new", job="12")
    with pytest.raises(UserError, match="is the job of new, old"):
        find.run("12")
    made_up.queues("12", "RUNNING", new.run_dir)
    assert find.run("12") == new


def test_waiting_ends_when_the_run_is_as_wished(here: Path, made_up: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = make_run(here / "runs/a")
    made_up.queues("12", "RUNNING", launch.run_dir)
    seen: list[str] = []

    def over(run: Run) -> bool:
        seen.append(run.state)
        made_up.queues("12", "PENDING", launch.run_dir)
        return run.waits

    monkeypatch.setattr(runs, "_POLL_SECONDS", 0.01)
    [run] = runs.wait([launch], over, 60.0)
    assert seen == ["running", "pending"]
    assert run.waits
    [run] = runs.wait([launch], lambda run: False, 0.05)
    assert run.waits


def test_figures_of_the_last_rows(here: Path) -> None:
    rows = [train_row(step, loss=step / 100, images_per_second=640) for step in range(10, 300, 10)]
    rows.insert(20, knn_row(200, 0.5))
    rows[-1]["images_per_second"] = 1.0  # one slow step is chance
    launch = make_run(here / "runs/a", rows=rows, state="running")
    latest = figures.read(launch)
    assert (latest.step, latest.epoch, latest.loss, latest.knn_top1) == (290, 2, 2.9, 0.5)
    assert (latest.images_per_second, latest.total_steps) == (640, 1000)
    assert latest.seconds_left == pytest.approx((1000 - 290) * 64 / 640)


def test_the_length_in_steps_needs_no_epoch(here: Path) -> None:
    launch = make_run(here / "runs/a", rows=[train_row(10)], optim="{global_batch: 64, epochs: 10, steps: 30}")
    assert figures.read(launch).total_steps == 30
    launch = make_run(here / "runs/b", rows=[train_row(10)])
    assert figures.read(launch).total_steps is None


def test_an_evaluation_far_from_the_end_is_found(here: Path) -> None:
    rows = [train_row(step) for step in range(1, 101)] + [knn_row(100, 0.25)]
    rows += [{**train_row(step), "epoch": 1} for step in range(101, 4000)]
    launch = make_run(here / "runs/a", rows=rows)
    assert (launch.run_dir / "metrics.jsonl").stat().st_size > 4 * figures._TAIL_BYTES
    assert figures.read(launch).knn_top1 == 0.25


def test_only_the_end_of_a_long_file_is_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = make_run(here / "runs/a", optim="{global_batch: 64, steps: 100}")
    with (launch.run_dir / "metrics.jsonl").open("wb") as file:
        file.truncate(2**33)  # 8 GiB of nothing
        file.seek(0, 2)
        file.write(b"\n" + json.dumps(train_row(90)).encode() + b"\n" + b'{"step": 91, "los')
    began = time.monotonic()
    assert figures.read(launch).step == 90
    assert time.monotonic() - began < 60  # reading all of it would fill the memory first


def test_numbers_that_are_none_are_left_out(here: Path) -> None:
    launch = make_run(here / "runs/a")
    (launch.run_dir / "metrics.jsonl").write_text(
        '{"step": 7, "epoch": true, "loss": NaN, "images_per_second": Infinity}\n{"step": 8, "knn_top1": "high"}\n'
    )
    latest = figures.read(launch)
    assert (latest.step, latest.epoch, latest.loss, latest.images_per_second, latest.knn_top1) == (
        7,
        None,
        None,
        None,
        None,
    )


def test_the_host_of_the_lease_is_this_one(here: Path) -> None:
    launch = make_run(here / "runs/a")
    dead = {"host": socket.gethostname(), "pid": 2**22 + 1, "started": process_start(os.getpid()), "token": "t"}
    (launch.run_dir / "lease.json").write_text(json.dumps(dead))
    assert held_by(launch.run_dir) == ""
