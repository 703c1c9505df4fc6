"""Wait for tensors from other ranks, and tell when one of these is lost."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from moco_dist.ranks import watchdog

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
            with others(self._name):
                self._work.wait()
        return self._arriving


@contextmanager
def others(what: str) -> Iterator[None]:
    """Tell the watchdog that this rank waits in a collective, and turn the loss of another rank into PeerLost."""
    with watchdog.waiting(what):
        try:
            yield
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
