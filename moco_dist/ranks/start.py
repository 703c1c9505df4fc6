"""The start of a process that computes, for training and for evaluation alike."""

from __future__ import annotations

from collections.abc import Callable

from moco_dist.config import Config
from moco_dist.ranks import devices, watchdog
from moco_dist.ranks.collectives import World
from moco_dist.ranks.rank import Rank

_WATCHDOG_FIRST_SECONDS = 60.0
"""By how much longer a collective waits than the watchdog, which knows more about a hang and tells it."""


def start(
    config: Config, rank: Rank, timeout_seconds: float, last_words: Callable[[watchdog.Hang], None] = lambda hang: None
) -> World:
    """Pick this rank's device, watch over this process, and meet the other ranks.

    Args:
        config: of the run.
        rank: this process.
        timeout_seconds: a rank that makes no progress for so long ends the job.
        last_words: called before the watchdog ends this process.

    Raises:
        UserError: the device that the config asks for is not here.
        OSError: torchrun is gone.
    """
    device = devices.pick(config, rank.local_rank)
    devices.prepare(config, device)
    watchdog.start(rank.rank, timeout_seconds, last_words)
    with watchdog.waiting("their start"):
        return World.join(rank, device, timeout_seconds + _WATCHDOG_FIRST_SECONDS)
