"""A sink may fail, hang or die at any call: the guard tells it once, and training goes on."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moco_dist.run.rows import Row
from moco_dist.tracking import guard
from moco_dist.tracking.guard import Guard, finish_all


@dataclass
class Recorder:
    """A sink that keeps what it is called with, and may do something wrong in one of its calls."""

    wrong: str = ""
    error: BaseException | None = None
    """The error that the wrong call raises; None: it hangs until it is killed."""
    name: str = "Recorder"
    start_seconds: float = 0.1
    finish_seconds: float = 0.2
    calls: list[str] = field(default_factory=list)
    killed: threading.Event = field(default_factory=threading.Event)

    def _call(self, call: str) -> None:
        self.calls.append(call)
        if call == self.wrong:
            if self.error:
                raise self.error
            self.killed.wait()

    def start(self) -> None:
        self._call("start")

    def catch_up(self) -> None:
        self._call("catch_up")

    def send(self, row: Row) -> None:
        self._call(f"row {row['step']}")

    def send_image(self, key: str, pixels: NDArray[np.uint8], caption: str) -> None:
        self._call(f"image {key} {pixels.shape}")

    def send_alert(self, title: str, text: str) -> None:
        self._call(f"alert {title}")

    def send_encoder(self, file: Path, data: Mapping[str, Any]) -> None:
        self._call(f"encoder {file}")

    def end(self, exit_code: int, preempted: bool) -> None:
        self._call(f"end {exit_code} {preempted}")

    def tear_down(self) -> None:
        self.calls.append("tear_down")

    def kill(self) -> None:
        self.killed.set()


def lines_of(sink: Recorder) -> list[str]:
    """Train three steps with the sink, and return the lines about failures."""
    lines: list[str] = []
    kept = Guard(sink, lines.append)
    kept.wait_for_start()
    for step in range(1, 4):
        kept.log({"step": step})
    kept.image("pairs", np.zeros((2, 4, 1), np.uint8), "")
    kept.alert("finding", "")
    kept.encoder(Path("file"), {})
    kept.finish(0)
    return lines


EVERYTHING = ["start", "catch_up", "row 1", "row 2", "row 3", "image pairs (2, 4)", "alert finding"]
EVERYTHING += ["encoder file", "end 0 False"]


def test_calls_come_in_their_order() -> None:
    sink = Recorder()
    assert lines_of(sink) == [] and sink.calls == EVERYTHING


@pytest.mark.parametrize("wrong", ["start", "catch_up", "row 2", "alert finding", "end 0 False"])
@pytest.mark.parametrize("error", [OSError("no\n room"), SystemExit(3)])
def test_a_failure_is_told_once_and_ends_the_sink(wrong: str, error: BaseException) -> None:
    sink = Recorder(wrong, error)
    rule = "no room" if isinstance(error, OSError) else "3"
    assert lines_of(sink) == [f"Recorder is lost ({rule}); training goes on, metrics.jsonl has every row"]
    assert sink.calls == [*EVERYTHING[: EVERYTHING.index(wrong) + 1], "tear_down"]


@pytest.mark.parametrize("wrong", ["start", "row 2", "end 0 False"])
def test_a_hang_is_waited_for_no_longer_than_the_limits(wrong: str) -> None:
    sink = Recorder(wrong)
    lines = lines_of(sink)
    slow = ["Recorder is slow to start; training goes on, its rows follow when it has"] if wrong == "start" else []
    assert lines == [*slow, "Recorder is lost (it does not end); training goes on, metrics.jsonl has every row"]
    assert sink.killed.is_set() and sink.calls[-1] == wrong


def test_a_hang_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_BACKLOG", 5)
    lines: list[str] = []
    sink = Recorder("row 1")
    kept = Guard(sink, lines.append)
    for step in range(1, 50):
        kept.log({"step": step})
    assert lines == ["Recorder is lost (it hangs); training goes on, metrics.jsonl has every row"]
    assert kept._calls.qsize() <= 7
    sink.kill()
    kept.finish(0)


def test_sinks_end_at_once_and_not_one_after_the_other() -> None:
    together = threading.Barrier(2)

    class Meets(Recorder):
        def end(self, exit_code: int, preempted: bool) -> None:
            together.wait(10)  # one after the other, it would break
            super().end(exit_code, preempted)

    sinks = [Meets(finish_seconds=20), Meets(finish_seconds=20)]
    lines: list[str] = []
    finish_all([Guard(sink, lines.append) for sink in sinks], 75, True)
    assert not lines and [sink.calls[-1] for sink in sinks] == ["end 75 True"] * 2
