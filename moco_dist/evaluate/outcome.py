"""What a method comes to on one draw of labels."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """The predictions of one method on one draw of labels."""

    predicted: Tensor
    """[n] classes of the held-out images, on the CPU."""
    notes: dict[str, float] = field(default_factory=dict)
    """What was chosen or seen on the way."""
