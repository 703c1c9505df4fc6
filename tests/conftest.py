"""What all tests share."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tests.ranks import Ranks

settings.register_profile("shared machine", deadline=None)  # an example may wait for a core
settings.load_profile("shared machine")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # small tensors, and four ranks beside us


@pytest.fixture(autouse=True)
def _unwatched() -> Iterator[None]:
    """A watchdog left behind would end this process when its patience is over."""
    yield
    for thread in threading.enumerate():
        if thread.name == "watchdog":
            thread.join(5)
            assert not thread.is_alive()


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Up to four gloo ranks, started when the first test asks for them."""
    pool = Ranks(4)
    yield pool
    pool.close()
