"""`logs`: which lines of which files, made harmless, and followed."""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.commands import logs
from launcher.commands.logs import Tail, readable
from launcher.record import Launch, Submission
from launcher.views import ends
from moco_dist.errors import UserError
from moco_dist.run import status
from tests.launcher.made import MadeUp, make_run, replace_sleep


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MadeUp:
    monkeypatch.chdir(tmp_path)
    return MadeUp(monkeypatch)


@pytest.fixture
def launch(made_up: MadeUp) -> Launch:
    """A running job of two ranks with logs of a hundred lines."""
    launch = make_run(Path("runs/a").resolve(), starts=1, state="running", nodes=1, profile={"gpus_per_node": 4})
    made_up.queues("12", "RUNNING", launch.run_dir)
    for rank in range(2):
        launch.log(rank).write_text("".join(f"{rank}: {line}\n" for line in range(100)))
    return launch


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    logs.arguments(parser)
    return logs.run(parser.parse_intermixed_args(words))


def lines_of(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    capsys.readouterr()
    assert call(*words) == 0
    return capsys.readouterr().out.splitlines()


def test_which_lines(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    zero, one = ([f"{rank}: {line}" for line in range(100)] for rank in range(2))
    assert lines_of(capsys, "a") == zero[-50:]
    assert lines_of(capsys, "12", "--lines", "3") == zero[-3:]
    assert lines_of(capsys, "runs/a", "--rank", "1", "-n", "all") == one
    assert lines_of(capsys, str(launch.run_dir), "-n", "1000") == zero
    assert lines_of(capsys, "a", "-n", "0") == []


def test_all_ranks_with_their_names(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    (launch.logs / "launcher.log").write_text("requeued\n")
    (launch.logs / "rank_x.log").write_text("no rank's\n")
    launch.evaluation.mkdir()
    launch.evaluation_log.write_text("kNN\n")
    ranks = ["[rank 0] 0: 99", "[rank 1] 1: 99"]
    assert lines_of(capsys, "a", "--all", "-n", "1") == ["[launcher] requeued", *ranks, "[evaluate] kNN"]


def test_a_rank_that_the_run_does_not_have(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    for rank in ("4", "-1"):
        with pytest.raises(UserError, match=rf"--rank = {rank}: the run has 4 ranks; use 0 to 3"):
            call("a", "--rank", rank)
    assert lines_of(capsys, "a", "--rank", "3") == []  # it has not begun yet


def test_a_wrong_number_of_lines(launch: Launch) -> None:
    for text in ("-1", "many", "", "²"):
        with pytest.raises(UserError, match="--lines = "):
            call("a", f"--lines={text}")


@pytest.mark.parametrize("length", [3, 100, logs._BLOCK - 1, logs._BLOCK, 3 * logs._BLOCK])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_the_last_lines_of_files_of_any_size(tmp_path: Path, length: int, end: bytes) -> None:
    """Lines are counted as Python counts them, wherever the blocks of the file end."""
    for width in (0, 1, 7, 70_000):
        content = (b"x" * width + b"\n") * (length // (width + 1) + 2)
        file = tmp_path / "log"
        file.write_bytes(content.removesuffix(b"\n") + end)
        expected = [line.decode() for line in file.read_bytes().split(b"\n")]
        if expected[-1] == "":
            expected.pop()
        for lines in (0, 1, 2, 5, len(expected), len(expected) + 1):
            log = Tail(file, "", lines)
            assert list(log.new(to_end=True)) == (expected[-lines:] if lines else [])
            log.close()


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"plain", "plain"),
        (b"tab\tand \xc3\xa9", "tab\tand é"),
        (b"\xff\xfe", "��"),
        (b"\x1b[31mred\x1b[0m", "red"),
        (b"\x1b]0;a title\x07text\x1b]8;;http://x\x1b\\link", "textlink"),
        (b"\x1bP1$r\x1b\\a\x1bcb\x1b(Bc", "abc"),
        (b"\x1b[2J\x1b[1;1Hmoved", "moved"),
        (b"\x9b31mC1\x07\x00\x08", "�31mC1"),
        ("\x9b31m \u202eback\u2028".encode(), "31m back "),
        (b"10%\r20%\r30%\r", "30%"),
        (b"windows\r", "windows"),
        (b"\x1b", ""),
        (b"\x1b[", ""),
    ],
)
def test_lines_are_harmless(line: bytes, shown: str) -> None:
    assert readable(line) == shown


def test_an_unfinished_line_is_shown_once(launch: Launch) -> None:
    own = Tail(launch.log(0), "> ", 1)
    with launch.log(0).open("ab") as log:
        log.write(b"half")
        log.flush()
        at_the_end = Tail(launch.log(0), "", 0)
        assert list(own.new()) == ["> 0: 99"]
        log.write(b" a line\nmore")
        log.flush()
        assert list(own.new()) == ["> half a line"]
        assert list(own.new(to_end=True)) == ["> more"]
        assert list(own.new(to_end=True)) == []
        assert list(at_the_end.new()) == [" a line"]
    own.close()
    at_the_end.close()


def test_a_job_that_died_before_its_ranks_began(
    launch: Launch, made_up: MadeUp, capsys: pytest.CaptureFixture[str], soon: object
) -> None:
    for rank in range(2):
        launch.log(rank).unlink()
    made_up.queues("12", "FAILED", launch.run_dir)
    (launch.submitit / "12_0_log.err").write_text("module: command not found\nslurmstepd: error\x1b[0m")
    (launch.submitit / "12_1_log.err").write_text("")
    (launch.submitit / "12_0_log.out").write_text("not this\n")
    (launch.submitit / "11_0_log.err").write_text("nor an earlier job's\n")
    for words in (["a"], ["a", "-f"], ["a", "--all"]):
        capsys.readouterr()
        assert call(*words) == 0
        said = capsys.readouterr()
        assert said.out == "module: command not found\nslurmstepd: error\n"
        assert "12_0_log.err" in said.err and "12_1_log.err" not in said.err
        assert said.err.splitlines()[-1].startswith("launcher: a is crashed: its job failed")


def test_a_member_of_an_array_that_died_before_its_ranks_began(
    made_up: MadeUp, capsys: pytest.CaptureFixture[str]
) -> None:
    """The output of the script lies beside the array's script, in the folder of the sweep."""
    sweep = Launch(Path("runs/s").absolute())
    member = make_run(sweep.run_dir / "03", job="12_3", sweep=str(sweep.run_dir))
    made_up.queues("12_3", "FAILED", sweep.run_dir)
    sweep.submitit.mkdir(parents=True)
    (sweep.submitit / "12_3_0_log.out").write_text("module: No space left on device\n")
    (sweep.submitit / "12_30_0_log.out").write_text("another member's\n")
    assert call("s/03") == 0
    said = capsys.readouterr()
    assert said.out == "module: No space left on device\n"
    assert "a disk is full: module: No space left on device" in said.err
    member.write(Submission(job="14@gpu", sweep=str(sweep.run_dir)))  # sent again, as a job of its own
    made_up.tells("squeue", f"14|FAILED|None|n1|1:00 N/A|{member.run_dir}")
    (member.submitit / "14_0_log.out").write_text("python: Disk quota exceeded\n")
    assert call("s/03") == 0
    said = capsys.readouterr()
    assert said.out == "python: Disk quota exceeded\n" and "a disk is full: python: Disk quota" in said.err


def test_a_job_that_waits_has_no_log_yet(made_up: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    launch = make_run(Path("runs/a").resolve())
    made_up.queues("12", "PENDING", launch.run_dir, "Priority")
    assert call("a") == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "launcher: a is pending: Priority\n")


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], bool]], None]]:
    """No long pauses; and a way to wait."""
    for name in ("_POLL_SECONDS", "_LOOK_SECONDS"):
        monkeypatch.setattr(logs, name, 0.02)
    monkeypatch.setattr(ends, "_SURE_SECONDS", 0.02)

    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    yield until


def test_following_over_a_requeue_to_the_end(
    launch: Launch, made_up: MadeUp, capsys: pytest.CaptureFixture[str], soon: Callable[[Callable[[], bool]], None]
) -> None:
    said = ""

    def shows(text: str) -> bool:
        nonlocal said
        said += "".join(capsys.readouterr())
        return text in said

    following = threading.Thread(target=call, args=("a", "-f", "--all", "-n", "1"), daemon=True)
    following.start()
    soon(lambda: shows("[rank 1] 1: 99"))
    made_up.queues("12", "PENDING", launch.run_dir, "BeginTime")
    soon(lambda: shows("launcher: a is requeued: BeginTime"))
    made_up.queues("12", "RUNNING", launch.run_dir)
    launch.log(2).write_text("a new rank\n")
    with launch.log(0).open("a") as log:
        log.write("--- start 2\n")
    soon(lambda: shows("[rank 2] a new rank") and "[rank 0] --- start 2" in said)
    with launch.log(0).open("a") as log:
        log.write("the last words")
    status.write(launch.run_dir, "done", 9)
    made_up.queues("12", "COMPLETED", launch.run_dir)
    following.join(30)
    assert not following.is_alive()
    assert shows("[rank 0] the last words\n")
    assert said.endswith("launcher: a is done\n")
    assert said.count("[rank 0] 0: 99") == 1


def test_a_failure_that_slurm_takes_back_ends_nothing(
    launch: Launch, made_up: MadeUp, monkeypatch: pytest.MonkeyPatch, soon: object
) -> None:
    """A job whose node died is ended for some seconds, then requeued."""
    monkeypatch.setattr(ends, "_SURE_SECONDS", 0.3)
    made_up.queues("12", "NODE_FAIL", launch.run_dir)
    following = threading.Thread(target=call, args=("a", "-f"), daemon=True)
    following.start()
    time.sleep(0.1)
    made_up.queues("12", "PENDING", launch.run_dir)
    time.sleep(0.6)
    assert following.is_alive()
    made_up.queues("12", "CANCELLED", launch.run_dir)
    following.join(30)
    assert not following.is_alive()


def test_ctrl_c_ends_it_well(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    replace_sleep(monkeypatch, logs, interrupt)
    assert call("a", "-f") == 0
