"""Ridge regression on the classes is a linear probe in closed form, cheap enough for training runs, over all ranks.

Accuracy is the same on any number of ranks to the last bit, since no sum in it is ever rounded. Features are at most
1 and are rounded to multiples of 2^-15, so that their products are multiples of 2^-30. Sums of those over N images are
at most N: float64, with 53 bits, holds each of them exactly up to 2^23 images, in whatever order they are added up.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from moco_dist.evaluate.features import Features
from moco_dist.ranks import watchdog
from moco_dist.ranks.collectives import World

PENALTY = 1e-3
"""Weight of the squared weights, as a part of the mean eigenvalue of X^T X (n / D for normalised features)."""

_BITS = 15
_BLOCK = 4096
"""Features computed with at a time: bounds the memory of their double precision."""


@torch.no_grad()
def fit(features: Tensor, labels: Tensor, world: World) -> Tensor:
    """Fit the probe to the features of all ranks.

    It minimises `sum_i |W^T x_i + b - y_i|^2 + PENALTY n/D |W|^2` over W and b: x_i is the feature of image i, y_i its
    class as a one-hot vector. That is scikit-learn's Ridge with alpha = PENALTY n/D.

    Args:
        features: [n, D] normalised, this rank's share; shares may differ in size or be empty.
        labels: [n] classes.
        world: the ranks.

    Returns:
        [D+1, classes] the weights, and as last row the bias, in float64, the same on all ranks; NaN where a feature is
        not finite.
    """
    shares = world.gather_objects((len(features), int(labels.max()) if len(labels) else -1))
    count, classes = sum(size for size, _ in shares), 1 + max(largest for _, largest in shares)
    bits = _bits(count)
    width = features.shape[1] + 1
    gram = features.new_zeros(width, width, dtype=torch.float64)  # X^T X
    moments = features.new_zeros(classes, width, dtype=torch.float64)  # Y^T X
    for rows, of_rows in zip(features.split(_BLOCK), labels.split(_BLOCK), strict=True):
        x = _with_ones(rows, bits)
        gram.addmm_(x.T, x)
        moments.index_add_(0, of_rows.to(x.device), x)
        watchdog.beat()
    sum_([gram, moments], 2 * bits, world)
    if not gram.isfinite().all():
        return torch.full_like(moments.T, math.nan)
    gram.diagonal()[:-1] += PENALTY * count / (width - 1)
    return torch.cholesky_solve(moments.T, torch.linalg.cholesky(gram))


def _bits(count: int) -> int:
    """Return how many bits the features of so many images keep: 2^(2 bits) count < 2^51 leaves `sum_` two bits."""
    bits = min(_BITS, (51 - count.bit_length()) // 2)
    assert bits > 0 and count * 4**bits < 2**51
    return bits


def sum_(sums: list[Tensor], bits: int, world: World) -> None:
    """Add up tensors over the ranks in place, without a rounding error.

    A sum by way of the mean needs no more memory on more ranks. Mean and product are rounded, together by less than
    2^-52 of the sum: less than half of 2^-bits, so that the next multiple is the sum itself.

    Args:
        sums: in float64; their sums over the ranks are below 2^(51 - bits).
        bits: the sums are multiples of 2^-bits.
        world: the ranks.
    """
    if world.size == 1:
        return
    world.mean_(sums)
    for total in sums:
        total.mul_(world.size * 2.0**bits).round_().mul_(2.0**-bits)


@torch.no_grad()
def predict(weights: Tensor, features: Tensor) -> Tensor:
    """Classify features [n, D] by the weights [D+1, classes] of `fit`; of equal scores the lower class wins.

    Scores are exact like the sums, so that they do not depend on which features share a block: no part of a score
    exceeds twice a column's norm, and the weights are rounded to 53 bits below that, less those of a feature.
    """
    _, exponent = math.frexp(2 * float(weights.norm(dim=0).max()))
    unit = 2.0 ** (exponent - 53 + _BITS)
    rounded = (weights / unit).round() * unit
    return torch.cat([(_with_ones(rows, _BITS) @ rounded).argmax(1) for rows in features.split(_BLOCK)])


def _with_ones(features: Tensor, bits: int) -> Tensor:
    """Round features [n, D] to multiples of 2^-bits in float64, and append ones for the bias: [n, D+1]."""
    rounded = (features.double() * 2.0**bits).round_() * 2.0**-bits
    return torch.cat([rounded, rounded.new_ones(len(rounded), 1)], dim=1)


def accuracy(queries: Features, bank: Features, *, world: World) -> float:
    """Return the accuracy of the probe on the queries; NaN where the bank's features are not finite.

    Args:
        queries: this rank's share.
        bank: this rank's share of what the probe is fitted to.
        world: the ranks.
    """
    return accuracies([queries], bank, world=world)[0]


def accuracies(images: Sequence[Features], bank: Features, *, world: World) -> list[float]:
    """Return what `accuracy` does for each of some sets of images, by one probe."""
    weights = fit(bank.rows, bank.labels, world)
    right = [int((predict(weights, rows) == labels.to(rows.device)).sum()) for rows, labels, _ in images]
    counts = [len(labels) for _, labels, _ in images]
    shares = torch.tensor(world.gather_objects((right, counts)))  # [size, 2, sets]
    if not weights.isfinite().all():
        return [math.nan] * len(images)
    of_sets: list[list[int]] = shares.sum(dim=0).T.tolist()
    return [right / count for right, count in of_sets]
