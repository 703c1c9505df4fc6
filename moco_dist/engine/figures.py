"""Figures are the numbers that a step tells; from the second moments of features follows how far they spread."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

MOST_DIMENSIONS = 256
"""Features of more dimensions have no effective rank: the host would take too long over their eigenvalues."""
_LEAST_VARIANCE = 1e-7
"""A variance below this is the rounding of float32, since the squares of normalised features add up to 1."""


@dataclass(frozen=True)
class Figures:
    """Figures are the numbers that a step tells, by name; most of them are still on the device."""

    names: tuple[str, ...]
    values: Tensor
    """[len(names)] means over the global batch, sums over the ranks, and what is equal on all ranks, the first of them
    the loss; then a number of each rank for each of `of_rank`; then (1 + C) C moments for each of `features`."""
    used: Mapping[str, float]
    """The figures that the host knows, such as the learning rate, `lr`."""
    of_rank: tuple[str, ...] = ()
    """Names of the numbers that each rank has one of."""
    ranks: int = 1
    features: Mapping[str, int] = field(default_factory=dict)
    """Names and dimensions C of the features whose moments there are."""

    def checked(self) -> Figures:
        """Return these figures, whose names are distinct."""
        names = [*self.names, *self.used, *self.of_rank]
        assert len({*names}) == len(names), f"two figures of one name: {names}"
        return self

    def to_host(self) -> Figures:
        """Start to copy the values to the host; they are right when the device has come so far."""
        return replace(self, values=self.values.to("cpu", non_blocking=True))

    def numbers(self) -> dict[str, float]:
        """Return every figure under its name. Where the values are on a device, the host waits for it."""
        return {**dict(zip(self.names, self.values[: len(self.names)].tolist(), strict=True)), **self.used}

    def by_rank(self) -> dict[str, list[float]]:
        """Return the numbers of all ranks under their names; the values are on the host."""
        begin, size = len(self.names), len(self.of_rank) * self.ranks
        numbers = self.values[begin : begin + size].view(len(self.of_rank), self.ranks).tolist()
        return dict(zip(self.of_rank, numbers, strict=True))

    def spreads(self) -> dict[str, float]:
        """Compute the spread of the features, as `NAME_std` and `NAME_rank`; the values are on the host."""
        spreads: dict[str, float] = {}
        rest = self.values[len(self.names) + len(self.of_rank) * self.ranks :].double()
        for name, dimensions in self.features.items():
            size = dimensions * (1 + dimensions)
            std, rank = spread(rest[:size].view(1 + dimensions, dimensions))
            spreads |= {f"{name}_std": std} | ({} if rank is None else {f"{name}_rank": rank})
            rest = rest[size:]
        return spreads


def moments(features: Tensor) -> Tensor:
    """Compute the mean of features [n, C] and, below it, their second moments `mean of x x^T`: [1 + C, C]."""
    with torch.autocast(features.device.type, enabled=False):
        return torch.cat([features.mean(dim=0, keepdim=True), features.T @ features / len(features)])


def spread(moments: Tensor) -> tuple[float, float | None]:
    """Compute how far normalised features spread, from their `moments` [1 + C, C] in float64.

    Returns:
        The standard deviation of a dimension, averaged over the dimensions, times sqrt(C): 1 where the features are
        spread evenly over the sphere, 0 where all are alike (Chen and He 2021, section 4.1). And the effective rank
        of the centred features, the exponential of the entropy of their normalised singular values (Roy and Vetterli
        2007), 1 to C; None where there are too many dimensions.
    """
    mean, second = moments[0], moments[1:]
    dimensions = len(mean)
    covariance = second - torch.outer(mean, mean)
    std = covariance.diagonal().clamp(min=0).sqrt().mean().item() * math.sqrt(dimensions)
    if dimensions > MOST_DIMENSIONS:
        return std, None
    if not covariance.isfinite().all():
        return std, math.nan
    variances = torch.linalg.eigvalsh(covariance)
    singular_values = variances[variances > _LEAST_VARIANCE].sqrt()
    shares = singular_values / singular_values.sum()
    return std, math.exp(-(shares * shares.log()).sum().item())  # of no singular value at all: 1
