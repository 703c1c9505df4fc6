"""Tell who this process is among the ranks of a run, without torch, so that a mistake in a config is told at once."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from moco_dist.errors import UserError, tell

_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""Variables that a launcher of ranks sets for each of them."""
_OF_MEETING = ("MASTER_ADDR", "MASTER_PORT")
"""Variables that it sets too where there are several ranks: the address where they meet."""
_LET_RANK_0_SPEAK_SECONDS = 10.0


@dataclass(frozen=True)
class Rank:
    """A rank is one process of a run, as torchrun's environment describes it; it has met no other yet."""

    rank: int
    """The number of this rank among all ranks."""
    size: int
    """The number of ranks."""
    local_rank: int
    """The number of this rank among the ranks of its node."""
    quiet: bool = field(default=False, kw_only=True, compare=False)
    """This says whether the rank prints nothing but warnings."""

    @classmethod
    def from_environment(cls, arguments: Sequence[str] = (), *, quiet: bool = False) -> Rank:
        """Read torchrun's variables; without them this is the one rank of a world of one.

        Args:
            arguments: of the command line, to which an old launcher adds one of its own.
            quiet: whether this rank tells people nothing but warnings.

        Raises:
            UserError: some of the variables are missing, are no numbers or do not fit together.
        """
        start = "start the ranks with torchrun"
        if of_launcher := [a for a in arguments if a.partition("=")[0] in ("--local-rank", "--local_rank")]:
            raise UserError(f"argument {of_launcher[0]}: comes from torch.distributed.launch; {start} instead")
        present = [name for name in _OF_TORCHRUN if os.environ.get(name)]
        if not present:
            return cls(0, 1, 0, quiet=quiet)
        wanted = _OF_TORCHRUN if os.environ.get("WORLD_SIZE") == "1" else (*_OF_TORCHRUN, *_OF_MEETING)
        if missing := ", ".join(name for name in wanted if not os.environ.get(name)):
            rule = f"set in the environment without {missing}"
            raise UserError.of(present[0], os.environ[present[0]], rule, f"{start}, or unset {', '.join(present)}")
        numbers = {name: os.environ.get(name, "1") for name in (*wanted, "LOCAL_WORLD_SIZE") if name != "MASTER_ADDR"}
        for name, text in numbers.items():
            if not (text.isascii() and text.isdecimal()):
                raise UserError.of(name, text, "must be a whole number, 0 or more", start)
        if int(port := numbers.get("MASTER_PORT", "0")) > 65535:
            raise UserError.of("MASTER_PORT", port, "must be 65535 or less", start)
        rank, size, local_rank = (int(numbers[name]) for name in _OF_TORCHRUN)
        for name, number in (("RANK", rank), ("LOCAL_RANK", local_rank)):
            if number >= size:
                raise UserError.of(name, number, f"must be below WORLD_SIZE={size}", start)
        return cls(rank, size, local_rank, quiet=quiet)

    def tell(self, line: str) -> None:
        """Print on stderr what all ranks know, once."""
        if not self.quiet:
            self.warn(line)

    def warn(self, line: str) -> None:
        """Print a warning that is the same on all ranks once on stderr, also where this rank is quiet."""
        if self.rank == 0:
            tell(line)

    def speaks(self, *, met: bool) -> bool:
        """Tell whether this rank tells a mistake: the first of all that have met and share it, else of its node."""
        return (self.rank if met else self.local_rank) == 0

    def let_rank_0_end_first(self) -> None:
        """Wait a little: torchrun ends all ranks when one exits, and that one should have told why."""
        if self.rank != 0:
            time.sleep(_LET_RANK_0_SPEAK_SECONDS)
