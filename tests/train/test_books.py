"""The books tell of the time that ranks wait for batches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from moco_dist.train import books
from tests.data.made import config_of


@pytest.mark.parametrize("log_every", [1, 10])
def test_a_row_tells_of_all_waits_since_the_last_one(log_every: int) -> None:
    """Batches of several workers come in bursts: the step of a row may wait each time, or never."""
    tracker: Any = SimpleNamespace(writes=lambda step: step % log_every == 0)
    nothing: Any = None
    writer = books.Books(config_of(), nothing, nothing, tracker, nothing, nothing, epoch_steps=1)
    shares = [writer._share_waited(step, 2.0, 1.0 if step % 10 == 0 else 0.0) for step in range(1, 101)]
    written = shares[log_every - 1 :: log_every]
    assert written == (([0.0] * 9 + [0.5]) * 10 if log_every == 1 else [0.05] * 10)
