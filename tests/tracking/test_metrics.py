"""metrics.jsonl: every step once, bit for bit, whatever dies."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moco_dist.run.rows import MetricsFile, read_rows


def steps(file: MetricsFile) -> list[int]:
    return [row["step"] for row in read_rows(file.path)]


def filled(path: Path, count: int) -> MetricsFile:
    file = MetricsFile(path)
    for step in range(1, count + 1):
        file.append({"step": step, "loss": 1 / step})
    return file


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=20))
def test_numbers_read_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, numbers: list[float]) -> None:
    file = MetricsFile(tmp_path_factory.mktemp("m") / "metrics.jsonl")
    for step, number in enumerate(numbers):
        file.append({"step": step, "loss": number})
    assert [row["loss"].hex() for row in read_rows(file.path)] == [number.hex() for number in numbers]
    file.close()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_refuses_what_json_cannot_hold(tmp_path: Path, bad: float) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError):
        file.append({"step": 1, "loss": bad})
    file.append({"step": 2, "loss": 1.0})
    assert steps(file) == [2]
    file.close()


@settings(deadline=None, max_examples=50)
@given(cut=st.integers(0, 400), tail=st.sampled_from([b"", b"\0" * 4096, b'\0\0\n{"step": 3', b"\xff\xfe\n", b"[1]\n"]))
@pytest.mark.parametrize("step", [0, 7, 99])
def test_rewind_leaves_whole_rows_in_order(
    tmp_path_factory: pytest.TempPathFactory, step: int, cut: int, tail: bytes
) -> None:
    path = tmp_path_factory.mktemp("m") / "metrics.jsonl"
    filled(path, 10).close()
    whole = path.read_bytes()[:cut]
    path.write_bytes(whole + tail)
    file = MetricsFile(path)
    file.rewind(step)
    survivors = min(whole.count(b"\n"), step)
    assert steps(file) == list(range(1, survivors + 1))
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:survivors])
    file.append({"step": 100, "loss": 0.1})
    assert steps(file)[-1] == 100
    file.close()


def test_damage_amid_good_rows_goes_and_they_stay(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    filled(path, 3).close()
    path.write_bytes(path.read_bytes() + b"\0" * 100 + b"\n" + b'{"step": 4, "loss": 1.0}\n{"step": 5, "loss": 1.0}\n')
    file = MetricsFile(path)
    file.rewind(4)
    file.append({"step": 5, "loss": 2.0})
    assert steps(file) == [1, 2, 3, 4, 5]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]
    file.close()


def test_killed_writer_loses_no_row(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from moco_dist.run.rows import MetricsFile, read_rows
file = MetricsFile(Path(sys.argv[1]))
for step in range(1, 1001):
    file.append({"step": step, "loss": 1 / step})
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "metrics.jsonl"
    assert subprocess.run([sys.executable, "-c", script, path]).returncode == -signal.SIGKILL
    assert len(path.read_bytes().splitlines()) == 1000


def test_full_disk_is_counted_told_once_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    with Path("/dev/full").open("wb") as full:
        os.dup2(full.fileno(), file._fd)  # it would refuse the device itself
    with caplog.at_level(logging.WARNING):
        file.append({"step": 1, "loss": 1.0})
        file.append({"step": 2, "loss": 1.0})
        assert not file.sync()
    assert file.failures == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"{file.path}: No space left on device; training goes on, its rows wait in memory"
    ]
    file.close()


def test_rows_follow_when_the_disk_has_room_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = filled(path, 3)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 40, before[1]))  # within the second line
        for step in range(4, 8):
            file.append({"step": step, "loss": 1 / step})
        assert file.failures and steps(file)[-1] < 7
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert file.sync()
    assert list(read_rows(file.path)) == [{"step": step, "loss": 1 / step} for step in range(1, 8)]
    file.close()


def test_a_line_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []
    write = os.write

    def spy(fd: int, data: bytes) -> int:
        writes.append(bytes(data))
        return write(fd, data)

    monkeypatch.setattr(os, "write", spy)
    filled(tmp_path / "metrics.jsonl", 3).close()
    assert len(writes) == 3 and all(line.endswith(b"}\n") for line in writes)
