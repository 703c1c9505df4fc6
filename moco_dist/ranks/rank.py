"""Tell who this process is among the ranks of a run, without torch, so that a mistake in a config is told at once."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass

_LET_RANK_0_SPEAK_SECONDS = 10.0


@dataclass(frozen=True)
class Rank:
    """A rank is one process of a run, as torchrun's environment describes it; it has met no other yet."""

    rank: int
    """Its number among all ranks."""
    size: int
    """How many ranks there are."""
    local_rank: int
    """Its number among the ranks of its node."""

    @classmethod
    def from_environment(cls) -> Rank:
        """Read torchrun's variables; without them this is the one rank of a world of one."""
        variables = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
        return cls(*(int(os.environ.get(name, default)) for name, default in variables))

    def tell(self, line: str) -> None:
        """Print on stderr what all ranks know, once."""
        if self.rank == 0:
            print(line, file=sys.stderr, flush=True)

    def speaks(self, *, met: bool) -> bool:
        """Tell whether this rank tells a mistake: the first of all that have met and share it, else of its node."""
        return (self.rank if met else self.local_rank) == 0

    def let_rank_0_end_first(self) -> None:
        """Wait a little: torchrun ends all ranks when one exits, and that one should have told why."""
        if self.rank != 0:
            time.sleep(_LET_RANK_0_SPEAK_SECONDS)
