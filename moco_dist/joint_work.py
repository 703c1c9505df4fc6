"""Do the work of a command, or of a call from Python, on ranks that meet for it and part after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from moco_dist.arguments import refused_once
from moco_dist.config import Config
from moco_dist.data.loader import no_workers_left
from moco_dist.errors import OwnMistake, UserError
from moco_dist.ranks.collectives import World
from moco_dist.ranks.rank import Rank

T = TypeVar("T")


@no_workers_left()
def call(work: Callable[[World], T], config: Config, rank: Rank, timeout_seconds: float) -> T:
    """Meet the other ranks, do some work, and part; nothing is left of it, however it ends.

    Args:
        work: what all ranks do.
        config: of the run, or of the process.
        rank: this process.
        timeout_seconds: how long ranks wait for one another.

    Raises:
        UserError: a mistake of the user's, on all ranks that have met.
        Exception: whatever else goes wrong.
    """
    world, alone = World.start(config, rank, timeout_seconds), False
    try:
        return work(world)
    except BaseException as error:
        alone = isinstance(error, OwnMistake) or not isinstance(error, UserError)
        raise
    finally:
        world.leave(alone=alone)


def run(command: str, work: Callable[[World], int | None], config: Config, rank: Rank, timeout_seconds: float) -> int:
    """Do the work of a command as `call` does, and tell a mistake of the user's once for all ranks.

    Returns:
        The exit status, that of the work if it returns one; raises whatever else goes wrong.
    """
    met = False

    def work_of_those_who_met(world: World) -> int:
        nonlocal met
        met = True
        return work(world) or 0

    try:
        return call(work_of_those_who_met, config, rank, timeout_seconds)
    except UserError as error:
        return refused_once(command, error, rank, met=met)
