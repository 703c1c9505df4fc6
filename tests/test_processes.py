"""The processes of a command end with it, however it ends, and one that dies is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

WORK = """
import os, signal, sys, time
from concurrent.futures.process import BrokenProcessPool
from moco_dist.interruption import interruptible
from moco_dist.processes import workers

def work(kind):
    if kind == "dies":
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    os.write(1, f"{os.getpid()}{os.linesep}".encode())  # one write: an unbuffered print makes two
    time.sleep(600)

with interruptible():
    try:
        with workers(2) as pool:
            works = [pool.submit(work, kind) for kind in sys.argv[2:]]
            if sys.argv[1] == "raises":
                time.sleep(0.5)
                raise OSError
            for one in works:
                one.result()
    except (BrokenProcessPool, OSError, KeyboardInterrupt) as error:
        print(type(error).__name__)
"""


def started(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORK, *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def end_of(process: subprocess.Popen[str]) -> str:
    """Return the last line of a command that has told nothing on stderr."""
    try:
        out, err = process.communicate(timeout=60)
    finally:
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
    assert err == ""
    return out.splitlines()[-1]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_worker_that_dies_is_told_although_the_other_works() -> None:
    assert end_of(started("waits", "dies", "sleeps")) == "BrokenProcessPool"


def test_where_the_block_raises_no_work_is_waited_for() -> None:
    assert end_of(started("raises", "sleeps", "sleeps")) == "OSError"


def test_ctrl_c_ends_all_in_silence() -> None:
    process = started("waits", "sleeps", "sleeps")
    assert process.stdout is not None
    workers = [int(process.stdout.readline()) for _ in range(2)]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert end_of(process) == "KeyboardInterrupt"
    assert all(map(is_gone, workers))


def test_workers_of_a_killed_command_end() -> None:
    process = started("waits", "sleeps", "sleeps")
    assert process.stdout is not None
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    deadline = time.monotonic() + 30
    while not all(map(is_gone, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.communicate()
