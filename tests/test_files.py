"""Files of a run directory are opened without waiting, whatever lies in their place."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher import start_rows
from moco_dist import files, train
from moco_dist.run import checkpoints, lease, status
from moco_dist.run.rows import MetricsFile


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """Fail a test that waits for ever."""

    def ring(*_: object) -> None:
        raise AssertionError("it waits for ever")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(50)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put(kind: str, path: Path) -> None:
    """Put something in the place of a file."""
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))  # a socket's path must be short
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "folder"])
def test_only_regular_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file"
    put(kind, path)
    for action in (files.read_text, files.read_bytes, lambda path: files.open_text(path, "a"), MetricsFile):
        with pytest.raises(OSError, match="file"):
            action(path)  # type: ignore[operator]


def test_a_regular_file_reads_and_grows_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for line in ("ü\n", "b\n"):
        with files.open_text(path, "a") as file:
            file.write(line)
    assert files.read_text(path) == "ü\nb\n"
    assert files.read_bytes(path) == "ü\nb\n".encode()


def test_threads_that_replace_one_file_do_not_meet(tmp_path: Path) -> None:
    """A watchdog writes the status too; as do ranks whose processes have one number on several machines."""
    path = tmp_path / "status.json"
    with files.replacing(path) as one, files.replacing(path) as other:
        one.write(b"one")
        other.write(b"other")
    assert path.read_bytes() == b"one" and list(tmp_path.iterdir()) == [path]


def test_the_trainers_files_are_refused_or_replaced(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    index = checkpoints.CheckpointIndex(tmp_path / "checkpoints")
    put("fifo", index.path(7))
    assert index.latest() is None
    put("fifo", tmp_path / "status.json")
    assert status.read(tmp_path).state is None
    status.write(tmp_path, "running", 1)
    assert status.read(tmp_path).state == "running"
    put("fifo", tmp_path / "lease.json")
    assert lease.held_by(tmp_path) == ""
    lease.Lease(tmp_path).release()
    assert not (tmp_path / "lease.json").exists()


def test_a_run_whose_rows_are_no_file_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put("fifo", tmp_path / "metrics.jsonl")
    assert train.run([f"run.dir={tmp_path}", "optim.steps=1", "track.wandb=disabled"]) == 2
    line = f"moco_dist.train: run.dir = {tmp_path}/metrics.jsonl: metrics.jsonl is not a regular file; remove it; mend"
    assert line in capsys.readouterr().err
    assert status.read(tmp_path).state == "user_error"


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"a": ' * 100_000, '{"a": "\udc80"', b"\xff\xfe{"])
def test_what_is_no_object_is_an_empty_one(tmp_path: Path, text: str | bytes) -> None:
    assert files.parse_object(text) == {}
    file = tmp_path / "a.json"
    assert files.read_object(file) == {}
    file.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogateescape"))
    assert files.read_object(file) == {}
    file.write_text('{"a": [1]}')
    assert files.read_object(file) == {"a": [1]}


def test_a_line_about_a_start_that_is_nested_without_end_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "starts.jsonl"
    file.write_text('{"job": "12", "step": 0}\n' + '{"job": ' * 100_000 + "\n")
    assert start_rows.read(file) == [{"job": "12", "step": 0}]
