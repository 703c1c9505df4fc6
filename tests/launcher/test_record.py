"""The record of a run is kept, also where a job was killed while it wrote."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pytest

from launcher import start_rows
from launcher.cluster import Profile
from launcher.record import Launch, Submission, refuse_others, run_dirs
from moco_dist.errors import UserError
from moco_dist.run import status
from moco_dist.run.status import Status
from tests.launcher.made import make_run


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    return make_run(tmp_path / "run")


def start(launch: Launch, *steps: int, job: str = "12") -> None:
    """Starts of a job from these steps."""
    for restart, step in enumerate(steps):
        launch.add_start(job=job, restart=restart, step=step, time=1.5, nodes=["n1"])


def fail(launch: Launch, *steps: int, job: str = "12") -> None:
    """Starts of a job from these steps, all of which ended by themselves."""
    start(launch, *steps, job=job)
    for restart in range(len(steps)):
        launch.add_failure(job=job, restart=restart, reason="said so")


def save(launch: Launch, *steps: int) -> None:
    """Checkpoints of these steps."""
    folder = launch.run_dir / "checkpoints"
    folder.mkdir(exist_ok=True)
    for step in steps:
        (folder / f"step_{step:09d}.pt").touch()


def steps(launch: Launch) -> list[int]:
    return [row["step"] for row in launch.starts()]


def test_a_submission_reads_back(launch: Launch) -> None:
    sent = Submission(job="12_3", nodes=2, profile=Profile(gpus_per_node=4, exclude=("n1",)), stage="/a b.tar")
    launch.write(sent)
    assert launch.submission() == sent
    assert sent.ranks == 8


def test_a_run_that_was_moved_is_sent_from_where_it_lies(launch: Launch, tmp_path: Path) -> None:
    launch.config_file.write_text(f"run: {{name: x, dir: {launch.run_dir}}}\n")
    assert launch.config().run.dir == str(launch.run_dir)
    (tmp_path / "link").symlink_to(launch.run_dir)
    assert Launch(tmp_path / "link").config().run.dir == str(launch.run_dir)  # as it was sent
    for name in ("moved", "moved to $HOME"):
        moved = Launch(launch.run_dir.rename(tmp_path / name))
        assert moved.config().run_dir == tmp_path / name
        launch = moved


@pytest.mark.parametrize("text", ["", "{", "[]", '{"nodes": 0}', '{"from": "a later version"}', "\ufffd\x00"])
def test_a_submission_that_cannot_be_read_is_none(launch: Launch, text: str) -> None:
    launch.job_file.write_text(text)
    assert launch.submission() is None
    launch.job_file.write_bytes(b"\xff\xfe")
    assert launch.submission() is None
    launch.job_file.unlink()
    assert launch.submission() is None


def test_the_submission_of_another_user_is_refused(launch: Launch) -> None:
    launch.run_dir.chmod(0o770)
    with pytest.raises(UserError, match="others may write to it"):
        launch.submission()


# Starts.


def test_no_start_is_no_row(launch: Launch) -> None:
    assert launch.starts() == []
    assert not launch.stands_still("12")


def test_a_start_reads_back(launch: Launch) -> None:
    start(launch, 5)
    assert launch.starts() == [{"job": "12", "restart": 0, "step": 5, "time": 1.5, "nodes": ["n1"]}]


@pytest.mark.parametrize("half", [b'{"job": "12", "restart": 1, "st', b"{", b"\xff\x00\x80", b"3", b"null"])
def test_half_a_line_costs_no_other(launch: Launch, half: bytes) -> None:
    start(launch, 5, 6)
    with launch.starts_file.open("ab") as file:
        file.write(half)
    assert steps(launch) == [5, 6]
    start(launch, 7, 8)
    assert steps(launch) == [5, 6, 7, 8]


def test_every_cut_of_the_last_line_leaves_the_others(launch: Launch) -> None:
    start(launch, 5, 6)
    text = launch.starts_file.read_text()
    first = text.index("\n") + 1
    for size in range(first, len(text)):
        launch.starts_file.write_text(text[:size])
        start(launch, 7)
        assert steps(launch) == ([5, 6, 7] if size == len(text) - 1 else [5, 7])


@pytest.mark.parametrize(
    ("begun", "saved", "still"),
    [
        ([0, 0], [], False),
        ([0, 0, 0], [], True),
        ([0, 0, 0], [10], False),  # the third has got further
        ([10, 10, 10], [10], True),
        ([0, 10, 10, 10], [5, 10], True),
        ([10, 10, 20, 20], [20], False),
        ([10, 10, 10, 20], [20], False),
        ([10, 10, 10], [5], False),  # the last checkpoint was damaged: the next start begins from another
    ],
)
def test_three_failed_starts_from_the_step_it_is_still_at(
    launch: Launch, begun: list[int], saved: list[int], still: bool
) -> None:
    fail(launch, *begun)
    save(launch, *saved)
    assert launch.stands_still("12") is still


def test_starts_that_slurm_has_ended_do_not_count(launch: Launch) -> None:
    start(launch, 0, 0, 0, 0)
    assert not launch.stands_still("12")
    for restart, still in ((0, False), (2, False), (2, False), (3, True)):
        launch.add_failure(job="12", restart=restart, reason="said so")  # noted twice, it is one
        assert launch.stands_still("12") is still


def test_a_start_that_several_nodes_note_at_once_is_one(launch: Launch) -> None:
    start(launch, 0, 0, 0)
    for restart, still in ((0, False), (1, False), (2, True)):
        for node in ("n1", "n2", "n3"):  # none of them has seen the line of another
            row = {"job": "12", "restart": restart, "step": 0, "reason": f"node {node} is not fit"}
            start_rows.add(launch.failures_file, row)
        assert launch.stands_still("12") is still


def test_what_is_said_is_lost_on_a_full_disk_and_nothing_else(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        launch.say("here")
        with contextlib.suppress(OSError):
            full.close()
    assert (launch.logs / "launcher.log").read_text().endswith(" here\n")


def test_a_start_that_could_not_be_noted_began_from_the_last_checkpoint(launch: Launch) -> None:
    save(launch, 7)
    launch.add_failure(job="12", restart=4, reason="said so")
    assert launch.failures() == [{"job": "12", "restart": 4, "step": 7, "reason": "said so"}]


def test_another_jobs_failures_do_not_count(launch: Launch) -> None:
    fail(launch, 0, 0, job="11")
    fail(launch, 0, 0)
    assert not launch.stands_still("12")
    fail(launch, 0, 0, 0)
    assert launch.stands_still("12")
    assert not launch.stands_still("11")
    assert not launch.stands_still("12_0")


def test_those_of_a_job_that_could_not_be_requeued_do(launch: Launch) -> None:
    fail(launch, 0, 0, job="11")
    launch.write(Submission(job="12", earlier_jobs=("10", "11")))
    assert not launch.stands_still("12")
    fail(launch, 0)
    assert launch.stands_still("12")
    launch.write(Submission(job="13"))  # sent again by a person
    fail(launch, 0, job="13")
    assert not launch.stands_still("13")


def test_a_run_that_is_given_up_says_so(launch: Launch) -> None:
    save(launch, 7)
    status.write(launch.run_dir, "crashed", 9, "out of memory")
    assert launch.give_up() == "no progress in 3 starts from step 7; the last: out of memory"
    assert launch.status() == Status("crashed", 9, "no progress in 3 starts from step 7; the last: out of memory")
    launch.add_failure(job="12", restart=2, reason="its own")
    assert launch.give_up().endswith("; the last: its own")


def test_the_last_checkpoint(launch: Launch) -> None:
    assert launch.checkpoint_step() == 0
    save(launch, 999, 1000)
    for name in ("step_000009999.pt.damaged", ".step_000009999.pt.77", "step_x.pt", "step_000009999.txt"):
        (launch.run_dir / "checkpoints" / name).touch()
    assert launch.checkpoint_step() == 1000


# Folders.


@pytest.mark.parametrize(("mode", "refused"), [(0o700, False), (0o755, False), (0o720, True), (0o702, True)])
def test_what_others_may_write_to_is_refused(tmp_path: Path, mode: int, refused: bool) -> None:
    tmp_path.chmod(mode)
    if not refused:
        refuse_others(tmp_path)
        return
    with pytest.raises(UserError, match=r"^run\.dir = .*: others may write to it; chmod go-w"):
        refuse_others(tmp_path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_what_belongs_to_another_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(UserError, match=r"^run\.dir = .*: belongs to another user; choose a directory of your own$"):
        refuse_others(tmp_path)


def test_the_runs_in_a_folder(tmp_path: Path) -> None:
    assert run_dirs(tmp_path / "nowhere") == []
    for name in ("b", "a", "c/deeper"):
        make_run(tmp_path / "sweep" / name)
    (tmp_path / "sweep" / "launch").mkdir()
    (tmp_path / "sweep" / "file").touch()
    assert run_dirs(tmp_path / "sweep") == [tmp_path / "sweep" / "a", tmp_path / "sweep" / "b"]
    assert run_dirs(tmp_path / "sweep" / "a") == [tmp_path / "sweep" / "a"]
