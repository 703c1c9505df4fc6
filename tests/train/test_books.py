"""What the books tell of the time that ranks wait for batches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from moco_dist.ranks import devices
from moco_dist.train import books
from tests.data.made import config_of


def made(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> books.Books:
    monkeypatch.setattr(devices, "cores", lambda: 8)
    tracker: Any = SimpleNamespace(warn=lines.append)
    nothing: Any = None
    return books.Books(config_of(), nothing, nothing, tracker, nothing, nothing, epoch_steps=1)


@pytest.mark.parametrize(("waited", "lines_expected"), [(0.0, 0), (0.19, 0), (0.21, 1), (1.0, 1)])
def test_a_data_bound_run_is_told_once(waited: float, lines_expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    watching = made(monkeypatch, lines)
    for step in range(200):
        watching._watch_waits(1.0, waited)
        assert not lines or step >= 59
    assert len(lines) == lines_expected
    assert all(f"data-bound: the ranks wait for batches {waited:.0%} of the time; raise" in line for line in lines)


def test_a_run_that_becomes_data_bound_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    watching = made(monkeypatch, lines)
    for step in range(300):
        watching._watch_waits(1.0, 0.5 if step >= 180 else 0.0)
    assert len(lines) == 1


def test_the_fix_is_what_is_left_to_change() -> None:
    digits, folder = config_of().data, config_of(source="imagefolder", root="x").data
    for data in (digits, folder):
        assert books.data_bound_fix(data, 2, 8) == "raise data.workers from 2 to 7"
        assert books.data_bound_fix(data, 7, 8).startswith("give each rank more than its 8 cores")
    slow = folder.model_copy(update={"decode": "pillow"})
    assert "another run with data.decode=cpu" in books.data_bound_fix(slow, 2, 8)
