"""Progress on a terminal, in a log file, and into a stream that is gone."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import termios

import pytest

from moco_dist.tracking.progress import Progress

SCRIPT = """
import sys
from moco_dist.tracking.progress import Progress
progress = Progress(10, 4, "digits")
for step in range(5, 11):
    progress.update(step, loss=1 / step, lr=0.03)
    if step == 7:
        progress.write("a line")
progress.close()
print("end")
"""


def test_log_file_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(1000, 100, "digits")
    for step in range(101, 1001):
        progress.update(step, loss=2.0)
    progress.write("a line")
    progress.close()
    out, err = capsys.readouterr()
    first, last = err.splitlines()  # 900 steps within 30 seconds: the first and the end
    assert first.startswith("digits: step 101/1000, loss 2, ") and first.endswith(" left")
    assert last.startswith("digits: step 1000/1000, loss 2, ") and last.endswith("00:00 left")
    assert out == "a line\n"


def test_every_so_many_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(3, 0, "digits", plain_seconds=0)
    for step in (1, 2, 3):
        progress.update(step)
    progress.close()  # the last step was shown
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"digits: step {step}/3" for step in (1, 2, 3)
    ]


def test_terminal_gets_a_bar() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    out, _ = process.communicate(timeout=30)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # the terminal's other end is closed
        os.close(ours)
    assert out == "a line\nend\n"
    assert b"digits:  40%" in shown and b"10/10" in shown and b"loss=0.1, lr=0.03" in shown


def test_stream_that_is_gone_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    progress = Progress(2, 0, "digits", plain_seconds=0)
    monkeypatch.setattr(sys, "stderr", closed)
    monkeypatch.setattr(sys, "stdout", closed)
    progress.update(1)
    progress.write("a line")
    progress.close()


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "runs/\\xfc"), ("utf-8", "runs/\xfc\\udcff")])
def test_what_a_stream_cannot_hold_is_written_as_escapes(
    monkeypatch: pytest.MonkeyPatch, encoding: str, shown: str
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    bar = Progress(2, 0, "run", plain_seconds=0.0)
    bar.write("runs/\xfc\udcff")
    bar.close()
    assert written.getvalue().decode(encoding).startswith(shown)


def test_closed_streams_are_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, None)
        bar = Progress(2, 0, "run", plain_seconds=0.0)
        bar.update(1)
        bar.write("a line")
        bar.close()
