"""The linear probe is multinomial logistic regression on frozen features, solved until it converges."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from moco_dist.evaluate import labels as few
from moco_dist.ranks import watchdog
from moco_dist.ranks.collectives import World

DECAYS = tuple(10.0**exponent for exponent in range(-7, 0))
"""Regularisations to choose from, weakest first; weaker ones follow as long as the weakest is the best."""

_WEAKEST = 1e-10
"""Below it the penalty's gradient is lost in what is left of the loss's."""

_BLOCK = 16384
"""Features that the loss sees at a time: bounds the memory of their double precision."""

_MOST_ITERATIONS = 2000


class Probe(NamedTuple):
    """A probe is a linear classifier of features."""

    weight: Tensor
    """[classes, D]"""
    bias: Tensor
    """[classes]"""

    def logits(self, features: Tensor) -> Tensor:
        """Compute logits [n, classes] of features [n, D]."""
        return F.linear(features.to(self.weight), self.weight, self.bias)

    def predict(self, features: Tensor) -> Tensor:
        """Classify features [n, D], in blocks. Returns [n] classes."""
        return torch.cat([self.logits(block).argmax(1) for block in features.split(_BLOCK)])


def fit(features: Tensor, labels: Tensor, classes: int, decay: float) -> Probe:
    """Fit the probe to all features by L-BFGS in double precision.

    It minimises `mean_i CE(W x_i + b, y_i) + decay / 2 |W|^2` over W and b, for features x_i of classes y_i. That is
    scikit-learn's LogisticRegression with C = 1 / (decay n), computed where the features lie.

    Args:
        features: [n, D]
        labels: [n] in 0 .. classes - 1.
        classes: of the problem, whether or not each has an example.
        decay: weight of the penalty, above 0; the bias has none.

    Returns:
        The probe in float64, on the device of the features.
    """
    from scipy.optimize import minimize

    count, dim = features.shape
    labels = labels.to(features.device)
    # Centred features change the bias alone, since it has no penalty, and take a fraction of the iterations.
    mean = features.mean(0, dtype=torch.float64)  # [D]

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight, bias = _unflatten(flat, classes, features.device)
        value = decay / 2 * weight.square().sum()
        of_weight, of_bias = decay * weight, torch.zeros_like(bias)
        for x, y in zip(features.split(_BLOCK), labels.split(_BLOCK), strict=True):
            x = x.double() - mean
            log_p = F.log_softmax(F.linear(x, weight, bias), dim=1)  # [block, classes]
            value = value + F.nll_loss(log_p, y, reduction="sum") / count
            error = log_p.exp_().sub_(F.one_hot(y, classes)).div_(count)
            of_weight += error.T @ x
            of_bias += error.sum(0)
        watchdog.beat()
        return value.item(), torch.cat([of_weight, of_bias[:, None]], dim=1).flatten().cpu().numpy()

    options = {"maxiter": _MOST_ITERATIONS, "maxfun": 2 * _MOST_ITERATIONS, "ftol": 1e-12, "gtol": 1e-7}
    minimum = minimize(loss, np.zeros(classes * (dim + 1)), jac=True, method="L-BFGS-B", options=options)
    weight, bias = _unflatten(minimum.x, classes, features.device)
    return Probe(weight, bias - weight @ mean)


def _unflatten(flat: NDArray[np.float64], classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    table = torch.from_numpy(flat).to(device).view(classes, -1)
    return table[:, :-1].contiguous(), table[:, -1].contiguous()


def choose_decay(
    features: Tensor, labels: Tensor, classes: int, folds: Sequence[few.Fold], world: World
) -> tuple[float, float]:
    """Choose the regularisation that does best on held-out parts of the labelled images themselves.

    The fits are shared out to the ranks. Of equally good ones the strongest counts.

    Args:
        features: [n, D], the same on all ranks.
        labels: [n]
        classes: of the problem.
        folds: pairs of what to fit and what to judge by, indices into the features.
        world: the ranks.

    Returns:
        The regularisation, and its accuracy on what was held out.
    """

    def right(task: tuple[float, few.Fold]) -> int:
        decay, (kept, held_out) = task
        probe = fit(features[kept], labels[kept], classes, decay)
        return int((probe.predict(features[held_out]) == labels[held_out].to(features.device)).sum())

    def count(decays: Sequence[float]) -> dict[float, int]:
        rights = iter(world.share_out([(decay, fold) for decay in decays for fold in folds], right))
        return {decay: sum(itertools.islice(rights, len(folds))) for decay in decays}

    counts = count(DECAYS)
    while (best := max(counts, key=lambda decay: (counts[decay], decay))) == min(counts) and best > _WEAKEST:
        counts |= count([best / 10])
    return best, counts[best] / sum(len(held_out) for _, held_out in folds)
