"""A new method is one file: it trains with both engines, is killed, and goes on bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.jobs import Job, compare, rows, send

STEPS = 16


@pytest.mark.parametrize("engine", ["exact", "overlapped"])
def test_a_toy_method_is_killed_and_goes_on(engine: str, tmp_path: Path) -> None:
    settings = {"device.engine": engine, "optim.steps": STEPS, "checkpoint.every_steps": 5, "eval.knn_every": 1}
    module = "tests.methods.in_batch"
    with Job(tmp_path / "whole", 2, settings, module=module) as job:
        assert job.wait() == 0, job.log
    with Job(tmp_path / "killed", 2, settings, module=module) as job:
        assert job.until_step(8), job.log
        send(job.ranks()[1], signal.SIGKILL)
        assert job.wait() != 0
    with Job(tmp_path / "killed", 2, settings, module=module) as job:
        assert job.wait() == 0, job.log
    comparison = compare(tmp_path / "killed", tmp_path / "whole", STEPS)
    assert comparison.exact, str(comparison)
    training = [row for row in rows(tmp_path / "whole") if "loss" in row]
    assert training[-1]["loss"] < training[0]["loss"]
    for row in training:
        assert row["attraction"] + row["repulsion"] == pytest.approx(row["loss"], abs=1e-5)
        assert "top5" not in row and 0 <= row["top1"] <= 1
