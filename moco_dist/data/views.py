"""Two views of a batch of images are augmented when, and on the rank where, they are used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


def _unchanged(crops: Tensor, draws: Tensor) -> Tensor:
    return crops


@dataclass(frozen=True)
class Views:
    """Both views of this rank's images, as crops and as the images that an encoder is given.

    A key view that another rank encodes goes there as uint8 crops, which are a quarter of float32's bytes, and is
    augmented there.
    """

    crops: Tensor
    """[2, n, ...] on the device."""
    draws: Tensor = field(default_factory=lambda: torch.empty(2, 0))
    """[2, n, COLOUR_DRAWS] uniform numbers on the CPU. A third row is for the crops of view 2 that come from other
    ranks, where it is this rank that augments them."""
    augment: Callable[[Tensor, Tensor], Tensor] = _unchanged
    """Makes images of crops and their numbers, [n, ...] each."""
    _images: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, one: Tensor, two: Tensor) -> Views:
        """Take two views [n, ...] that are images already."""
        return cls(torch.stack([one, two]))

    def __len__(self) -> int:
        """Return the number of images."""
        return self.crops.shape[1]

    @property
    def travel_as_crops(self) -> bool:
        """Tell whether view 2 is augmented by the rank that receives it."""
        return len(self.draws) == 3

    def images(self, view: int) -> Tensor:
        """Return this rank's images of view 0 or 1, [n, ...], which are augmented once."""
        if view not in self._images:
            self._images[view] = self._augmented(self.crops[view], view)
        return self._images[view]

    def received(self, crops: Tensor) -> Tensor:
        """Augment the crops of view 2 that have come from other ranks, [n, ...]."""
        return self._augmented(crops, 2)

    def _augmented(self, crops: Tensor, row: int) -> Tensor:
        with torch.autocast(crops.device.type, enabled=False):  # colours and blur are not for half precision
            return self.augment(crops, self.draws[row])

    def prepare(self) -> list[Tensor]:
        """Augment ahead what needs no other rank; return all tensors on the device."""
        return [self.crops, *(self.images(view) for view in range(1 if self.travel_as_crops else 2))]
