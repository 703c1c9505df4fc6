"""A new method is one file: it trains with both engines, is killed, and goes on bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.jobs import Pair, compare, rows, send

STEPS = 16


@pytest.mark.parametrize("engine", ["exact", "overlapped"])
def test_a_toy_method_is_killed_and_goes_on(engine: str, tmp_path: Path) -> None:
    settings = {"device.engine": engine, "optim.steps": STEPS, "checkpoint.every_steps": 5, "eval.knn_every": 1}
    module = "tests.methods.in_batch"
    with Pair(tmp_path / "whole", settings, module=module) as pair:
        assert pair.exits() == [0, 0], pair.log
    with Pair(tmp_path / "killed", settings, module=module) as pair:
        pair.until_step(8)
        send(pair.ranks[1].process.pid, signal.SIGKILL)
        assert 0 not in pair.exits()
    with Pair(tmp_path / "killed", settings, module=module) as pair:
        assert pair.exits() == [0, 0], pair.log
    comparison = compare(tmp_path / "killed", tmp_path / "whole", STEPS)
    assert comparison.exact, str(comparison)
    training = [row for row in rows(tmp_path / "whole") if "loss" in row]
    assert training[-1]["loss"] < training[0]["loss"]
    for row in training:
        assert row["attraction"] + row["repulsion"] == pytest.approx(row["loss"], abs=1e-5)
        assert "top5" not in row and 0 <= row["top1"] <= 1
        assert {"gradient_norm", "k_std", "k_rank"} <= row.keys()  # which the engine computes for any method
        assert not {"entropy", "momentum", "queue_filled", "q_std"} & row.keys()
