"""Wait for tensors from other ranks, and tell when one of these is lost."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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


class Waits:
    """This object measures how long a rank waits for other ranks: by the host's clock, and by events of the device."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """The time that the host has waited so far, as the CPU's ranks do."""
        self._events: list[tuple[Any, Any]] | None = None

    def begin_events(self) -> None:
        """Begin to put events around the waits of the device."""
        self._events = []

    def take_events(self) -> list[tuple[Any, Any]]:
        """Put no more events around the waits. Returns those since the begin, a pair for each wait."""
        events, self._events = self._events or [], None
        return events

    @contextmanager
    def timed(self, device: torch.device) -> Iterator[None]:
        """Put events around the wait of a device, where these are wanted."""
        if self._events is None or not devices.runs_ahead(device):
            yield
            return
        before, after = (devices.of(device).Event(enable_timing=True) for _ in range(2))
        before.record()
        yield
        after.record()
        self._events.append((before, after))


@dataclass(frozen=True)
class Transfer:
    """A transfer of tensors between the ranks is under way."""

    _name: str
    _arriving: Tensor
    _leaving: Tensor | None = None
    """Kept until it has left."""
    _work: Work | None = None
    _waits: Waits = field(default_factory=Waits)

    def wait(self) -> Tensor:
        """Return what has come, when it has; on a GPU it is the device that waits, not the host."""
        if self._work is not None:
            with others(self._name, self._waits), self._waits.timed(self._arriving.device):
                self._work.wait()
        return self._arriving


@contextmanager
def others(what: str, waits: Waits | None = None) -> Iterator[None]:
    """Tell the watchdog that this rank waits in a collective, and turn the loss of another rank into PeerLost.

    Args:
        what: is waited for.
        waits: where the time counts as a wait; None where the rank computes meanwhile.
    """
    with watchdog.waiting(what):
        began = time.monotonic()
        try:
            yield
            if waits is not None:
                waits.seconds += time.monotonic() - began
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


def line_of(tensor: Tensor) -> Tensor:
    """View the numbers of a tensor without gaps as [n], in the order in which they lie in memory: NHWC, too."""
    return tensor.permute(sorted(range(tensor.dim()), key=tensor.stride().__getitem__, reverse=True)).view(-1)


def as_bytes(tensor: Tensor) -> Tensor:
    """View the bytes of a tensor without gaps as [n]."""
    # Moving bytes instead of numbers: no backend lacks the dtype, and no bit can change on the way.
    return tensor.view(-1).view(torch.uint8)
