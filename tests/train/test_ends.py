"""What asks a run to stop."""

from __future__ import annotations

import signal

import pytest

from moco_dist.interruption import STOPPING
from moco_dist.train.ends import StopRequest


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
