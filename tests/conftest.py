"""All tests share these fixtures and settings."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from moco_dist.interruption import STOPPING
from moco_dist.ranks import watchdog
from tests import standin  # noqa: F401  # it must be known before the first backward pass
from tests.ranks import Ranks

GPUS = torch.cuda.device_count()
"""GPUs of this machine, for the tests marked `gpu`, which use them in processes of their own."""
VISIBLE_GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")
# All other tests see none: beside the stand-in, torch would take some calls for the GPU to be meant for the stand-in.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Else every process that a test starts would compile our modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Tables are as wide as the launcher makes them, not as the process that gathers the tests' results is.
os.environ.pop("COLUMNS", None)

settings.register_profile("shared machine", deadline=None)  # an example may wait for a core
settings.load_profile("shared machine")


@pytest.fixture(scope="session", autouse=True)
def _no_wish_of_the_user() -> None:
    for name in ("WANDB_MODE", "WANDB_DISABLED", "WANDB_PROJECT"):  # they are defaults of track.*
        os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # small tensors, and four ranks beside us


@pytest.fixture(autouse=True)
def _goes_on() -> Iterator[None]:
    """This process goes on after a command that was called as a function: unwatched, and heeding signals as before."""
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    yield
    watchdog.stop()
    for thread in threading.enumerate():
        if thread.name == "watchdog":
            thread.join(5)
            assert not thread.is_alive()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Up to four gloo ranks, started when the first test asks for them."""
    pool = Ranks(4)
    yield pool
    pool.close()
