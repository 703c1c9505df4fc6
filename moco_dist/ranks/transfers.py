"""Wait for tensors from other ranks, and tell when one of these is lost."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from moco_dist.ranks import devices, watchdog

_LET_THE_CAUSE_SHOW_SECONDS = 3.0


class PeerLost(Exception):
    """A collective failed since another rank is gone."""


class Work(Protocol):
    """This is what torch.distributed returns for a collective that goes on meanwhile."""

    def wait(self) -> object: ...


@dataclass(frozen=True)
class Transfer:
    """A transfer of tensors between the ranks is under way."""

    _name: str
    _arriving: Tensor
    _leaving: Tensor | None = None
    """Kept until it has left."""
    _work: Work | None = None

    def wait(self) -> Tensor:
        """Return what has come, when it has; on a GPU it is the device that waits, not the host."""
        if self._work is not None:
            with others(self._name), _timed(self._arriving.device):
                self._work.wait()
        return self._arriving


class _Waits:
    seconds = 0.0
    events: list[tuple[Any, Any]] | None = None


def waited_seconds() -> float:
    """Return how long the host has waited for other ranks since the process began, as the CPU's ranks do."""
    return _Waits.seconds


def time_on_device(begin: bool) -> list[tuple[Any, Any]]:
    """Begin or end to put events around the waits of the device. Returns those since the last begin."""
    events, _Waits.events = _Waits.events or [], [] if begin else None
    return events


@contextmanager
def _timed(device: torch.device) -> Iterator[None]:
    """Put events around the wait of a device, where these are asked for."""
    if _Waits.events is None or not devices.runs_ahead(device):
        yield
        return
    before, after = (devices.of(device).Event(enable_timing=True) for _ in range(2))
    before.record()
    yield
    after.record()
    _Waits.events.append((before, after))


@contextmanager
def others(what: str, *, computes: bool = False) -> Iterator[None]:
    """Tell the watchdog that this rank waits in a collective, and turn the loss of another rank into PeerLost.

    Args:
        what: is waited for.
        computes: whether the rank computes meanwhile, so that the time counts as no wait.
    """
    with watchdog.waiting(what):
        began = time.monotonic()
        try:
            yield
            _Waits.seconds += 0.0 if computes else time.monotonic() - began
        except RuntimeError as error:
            if not re.search("gloo|nccl|connection (closed|reset)", str(error), re.IGNORECASE):
                raise
            let_the_cause_show()  # which is the rank that is gone
            # Without the place in gloo's source, and without its advice.
            said = re.sub(r"^\[[^\]]*\] *|\.? This is typically .*", "", str(error).splitlines()[0])
            raise PeerLost(f"another rank was lost in {what}: {said}") from error


def let_the_cause_show() -> None:
    """Wait a little, so that torchrun and the run's status see another rank fail first, which is the cause."""
    time.sleep(_LET_THE_CAUSE_SHOW_SECONDS)
