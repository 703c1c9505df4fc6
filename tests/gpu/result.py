"""A check is told its setting, and tells its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from moco_dist.ranks.collectives import World


class Result(NamedTuple):
    """The verdict of a check, and the figures that decided it, in one line."""

    passed: bool
    figures: str


@dataclass(frozen=True)
class Setting:
    """The device that a check runs on, and its sizes.

    On the CPU it is a small variant: the same lines, with smaller sizes, and without what the CPU does not have.
    """

    kind: str
    """`cuda` or `cpu`."""
    folder: Path
    """A folder of the check's own for its runs."""
    traces: Path
    """Folder of the reference's recordings; where there is none, the suite records its own."""

    @property
    def device(self) -> torch.device:
        return torch.device(self.kind, 0) if self.on_gpu else torch.device("cpu")

    @property
    def on_gpu(self) -> bool:
        return self.kind == "cuda"

    @property
    def alone(self) -> World:
        """A world of this process alone, on the device."""
        return World(0, 1, 0, self.device)
