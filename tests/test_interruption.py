"""A process that Ctrl-C, SIGTERM or a lost terminal ends leaves nothing unfinished, and dies as it would have."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from moco_dist.interruption import interruptible
from tests.jobs import ROOT, environment_of

COMMAND = """
import os, signal, sys
from pathlib import Path
from moco_dist import files
from moco_dist.arguments import run_command

def run(arguments):
    out, *numbers = arguments
    with files.folder_aside(Path(out)), files.replacing(Path(out)) as file:
        file.write(b"new")
        try:
            os.kill(os.getpid(), int(numbers[0]))
        finally:
            for number in numbers[1:]:
                os.kill(os.getpid(), int(number))
    return 0

run_command(run)
"""


HEEDED = "import signal\nfor number in (1, 2, 15):\n    signal.signal(number, signal.SIG_DFL)\n"
"""Ahead of a command that is to heed signals, also where the tests run under nohup or in the background."""


def end_by(out: Path, *numbers: int, ahead: str = HEEDED) -> subprocess.CompletedProcess[str]:
    """Run a command that is half done when signals come."""
    words = [sys.executable, "-c", ahead + COMMAND, str(out), *(str(int(number)) for number in numbers)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment_of(ROOT))


@pytest.mark.parametrize(
    ("numbers", "status"),
    [
        ((signal.SIGINT,), 130),
        ((signal.SIGTERM,), -signal.SIGTERM),
        ((signal.SIGHUP,), -signal.SIGHUP),
        ((signal.SIGTERM, signal.SIGINT, signal.SIGTERM), -signal.SIGTERM),
    ],
)
def test_a_command_that_is_ended_leaves_nothing(numbers: tuple[int, ...], status: int, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    result = end_by(tmp_path / "out", *numbers)
    assert (result.returncode, result.stdout, result.stderr) == (status, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (tmp_path / "out").read_text() == "old"


def test_what_is_ignored_stays_so(tmp_path: Path) -> None:
    ahead = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"  # as nohup has it
    result = end_by(tmp_path / "out", signal.SIGHUP, ahead=ahead)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out").read_text() == "new"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heeded_that_comes_where_python_passes_over_exceptions(number: int) -> None:
    """Python does so in a destructor, and in what it calls ahead of a fork and after it."""

    class Thing:
        def __del__(self) -> None:
            signal.raise_signal(number)

    came: list[int] = []
    before, hook = signal.signal(number, lambda number, _: came.append(number)), sys.unraisablehook
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            del (thing := [Thing()])[0]
            assert not thing
            time.sleep(30)
        assert sys.unraisablehook is hook and came == [signal.SIGTERM] * (number == signal.SIGTERM)
    finally:
        signal.signal(number, before)


def test_the_handlers_of_a_caller_come_back_and_hear_of_it() -> None:
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    try:
        own = signal.getsignal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), interruptible():
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is own and signals == [signal.SIGTERM]
        with interruptible():
            pass
        assert signal.getsignal(signal.SIGTERM) is own and signals == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_thread_changes_no_handler() -> None:
    handlers, within = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with interruptible():
            within.append(signal.getsignal(signal.SIGTERM))

    (thread := threading.Thread(target=work)).start()
    thread.join()
    assert within == [handlers]


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        ("OSError(errno.ENOSPC, 'No space left on device')", 2, "standard output: No space left on device; send it"),
        ("OSError(errno.EPIPE, 'Broken pipe')", 141, ""),
        ("OSError(errno.ENOMEM, 'Cannot allocate memory')", 1, "OSError: [Errno 12] Cannot allocate memory"),
        ("OSError(errno.ENOSPC, 'No space left on device', 'a.txt')", 1, "No space left on device: 'a.txt'"),
    ],
)
def test_only_an_error_of_writing_is_told_of_standard_output(error: str, status: int, line: str) -> None:
    code = f"import errno\nfrom moco_dist.arguments import run_command\ndef run(_): raise {error}\nrun_command(run)"
    words = [sys.executable, "-c", code]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment_of(ROOT))
    assert result.returncode == status and line in result.stderr and bool(line) == bool(result.stderr)
