"""Real runs that are broken on purpose have their findings, and healthy ones have none from start to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.broken_runs import BROKEN, HEALTHY, Run, fault_of, main, make


@pytest.mark.parametrize("run", BROKEN, ids=lambda run: run.name)
def test_what_is_broken_is_found(run: Run, tmp_path: Path) -> None:
    slow = {"optim.steps": 9} if run.fault.startswith("slow") else None  # a minute of 12 seconds
    told = make(run, tmp_path / "run", slow, minute_seconds=12)
    assert not fault_of(run, told)
    assert not told["healthy"]


@pytest.mark.parametrize("run", HEALTHY, ids=lambda run: run.name)
def test_a_healthy_run_has_no_finding(run: Run, tmp_path: Path) -> None:
    told = make(run, tmp_path / "run")
    assert told["healthy"], told["findings"]
    assert {"collapsed", "lr_too_high", "temperature_too_low", "queue_stale"} <= set(told["fine"])


def test_what_else_is_found_is_a_fault() -> None:
    told = {"findings": [{"name": "collapsed", "key": "optim.lr"}]}
    assert fault_of(Run("a"), told) == "a healthy run has ['collapsed']"
    assert fault_of(Run("a", finds="at_chance", key="optim.lr"), told) == "at_chance was not found, but ['collapsed']"
    assert "optim.lr is to be changed" in fault_of(Run("a", finds="collapsed", key="moco.momentum"), told)
    assert fault_of(Run("a", finds="collapsed", key="optim.lr"), told) == ""


def test_the_command_has_a_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert "momentum_0: collapsed moco.momentum {'moco.momentum': 0}" in capsys.readouterr().out
