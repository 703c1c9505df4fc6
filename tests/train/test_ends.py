"""What asks a run to stop, and what a start keeps of those before it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from moco_dist.config import Config
from moco_dist.interruption import STOPPING
from moco_dist.train.ends import Due, StopRequest
from tests.jobs import checkpoints, train_here


@pytest.mark.parametrize("number", STOPPING)
@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])
def test_signals_ask_a_run_to_stop_but_not_sighup_where_it_is_ignored(
    number: signal.Signals, before: signal.Handlers
) -> None:
    signal.signal(number, before)
    stop = StopRequest(None)
    assert not stop.raised()
    signal.raise_signal(number)
    under_nohup = number == signal.SIGHUP and before == signal.SIG_IGN
    assert stop.raised() == (not under_nohup)
    assert stop.put_back() == (None if under_nohup else number)
    assert signal.getsignal(number) == before


def test_milestones_of_the_start_before_stay_whatever_this_one_keeps(tmp_path: Path) -> None:
    settings = {"data.source": "synthetic", "data.samples": 4, "optim.global_batch": 2, "moco.bn_groups": 1}
    settings |= {"optim.schedule": "constant", "checkpoint.every_steps": 1, "eval.knn_every": 0, "track.log_every": 99}
    for more in {"optim.steps": 4, "checkpoint.milestone_epochs": 1}, {"optim.steps": 7}:  # two steps an epoch
        assert train_here(tmp_path, {**settings, **more}) == 0
    assert [path.name for path in checkpoints(tmp_path)] == [f"step_00000000{step}.pt" for step in (2, 4, 6, 7)]


@pytest.mark.parametrize(
    ("steps", "before", "kept"),
    [
        ([10, 13, 14], {"keep": 2, "milestone_epochs": 1}, [10]),
        ([10, 20, 27, 28], {"keep": 2}, [10, 20]),  # milestones of starts before
        ([10, 20, 30, 33], {"keep": 3}, [10]),
        ([10, 27, 28, 29], {"keep": 2, "milestone_epochs": None}, [10]),  # 27 is what a kill left behind
        ([], {"keep": 2}, []),
    ],
)
def test_what_earlier_starts_have_kept_for_good(steps: list[int], before: dict[str, Any], kept: list[int]) -> None:
    due = Due(Config(), epoch_steps=10, total=40, evaluates=False)
    due.keep_earlier(steps, before)
    assert [step for step in range(1, 41) if due.milestone(step)] == kept
