"""A finding says in a sentence what is wrong with a run, by which numbers, and which key of the config to change."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from moco_dist.errors import shown

Value = float | int | str
"""A value of a config's key; a list is written as on a command line, `0.2,1.0`."""


class Proposal(NamedTuple):
    """A proposal is a key of the config with another value."""

    key: str
    value: Value


class Judgement(NamedTuple):
    """A judgement is what a rule says of the rows that it has looked at."""

    bad: bool
    evidence: str = ""
    """A sentence with the numbers and the steps that they are of."""
    proposal: Proposal | None = None
    """The change that is advised; every bad judgement has one."""


@dataclass(frozen=True)
class Finding:
    """A finding is something that is wrong with a run; or a note, about a normal phase that may look wrong."""

    name: str
    key: str | None
    """The key of the config that is to be changed; None in a note."""
    value: Value | None
    first_step: int
    """The step at which it was told."""
    last_step: int
    """The step at which it ended; of an open one, the last step of the rows."""
    evidence: str = ""
    kind: Literal["finding", "note"] = "finding"
    ended: bool = False

    @property
    def override(self) -> str:
        """Return the change as an override of the command line, `section.key=value`; empty in a note."""
        return f"{self.key}={shown(self.value)}" if self.key else ""


GOOD = Judgement(False)
"""The judgement of rows that show nothing wrong."""


def rounded(value: float) -> float:
    """Round a number to two digits, as a person would type it."""
    return float(f"{value:.2g}")
