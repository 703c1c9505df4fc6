"""Classify by weighted kNN, over a bank that is spread over all ranks (Wu et al. 2018, "InstDisc", section 3.4)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moco_dist.evaluate.features import Features, gather_rows
from moco_dist.ranks import watchdog
from moco_dist.ranks.collectives import World

_QUERIES, _BLOCK = 1024, 16384
"""Queries and images of the bank compared at a time: bounds the memory of a similarity matrix."""


@torch.no_grad()
def predict(queries: Tensor, bank: Features, *, k: int, temperature: float, world: World) -> Tensor:
    """Classify queries by the votes of their k nearest images of a bank that is spread over the ranks.

    A neighbour votes for its class with weight exp(cosine / temperature). Of equally similar images those of lower
    index count, so the result does not depend on which rank holds what.

    Args:
        queries: [Q, D] normalised, the same on all ranks.
        bank: this rank's share; shares may differ in size or be empty.
        k: neighbours; a bank of fewer has them all.
        temperature: of the votes.
        world: the ranks.

    Returns:
        [Q] classes, the same on all ranks.
    """
    sizes = world.gather_objects((len(bank.rows), int(bank.labels.max()) if len(bank.rows) else -1))
    k = min(k, sum(size for size, _ in sizes))
    classes = 1 + max(largest for _, largest in sizes)
    local = min(k, max(size for size, _ in sizes))  # candidates of one rank
    predictions = []
    for q in queries.split(_QUERIES):
        candidates = _candidates(q, bank, local)
        similarity, order, labels = (torch.cat(list(world.all_gather(t[None])), dim=1) for t in candidates)
        nearest = order.topk(k, dim=1).indices  # [q, k]
        cosines = similarity.gather(1, nearest).double()  # [q, k]
        votes = ((cosines - cosines.amax(1, keepdim=True)) / temperature).exp()  # of the ratios alone: no overflow
        scores = votes.new_zeros(len(q), classes).scatter_add_(1, labels.gather(1, nearest), votes)
        predictions.append(scores.argmax(dim=1))
    return torch.cat(predictions)


def _candidates(q: Tensor, bank: Features, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find the `count` nearest of this rank's share: similarity, sort key and label, each [q, count].

    A float32 product rounds differently for shares of different sizes; a float64 one, rounded to float32, does not.
    The sort key is the similarity less a trifle that grows with the index, to part equals alike on any number of
    ranks. A share of fewer images is filled up with ones that are infinitely far.
    """
    wide = q.double()
    nearest = [q.new_empty(len(q), 0), wide.new_empty(len(q), 0), bank.labels.new_empty(len(q), 0, device=q.device)]
    for images, classes, numbers in zip(*(t.split(_BLOCK) for t in bank), strict=True):
        similarity = (wide @ images.double().T).to(q.dtype)  # [q, block]
        key = similarity.double() - numbers.to(q.device) * 2.0**-48
        of_block = classes.to(q.device).expand_as(similarity)
        merged = [torch.cat(pair, dim=1) for pair in zip(nearest, (similarity, key, of_block), strict=True)]
        top = merged[1].topk(min(count, merged[1].shape[1]), dim=1).indices
        nearest = [m.gather(1, top) for m in merged]
        watchdog.beat()  # a large data set takes longer than a rank may go without a step
    missing, far = count - nearest[0].shape[1], (-torch.inf, -torch.inf, 0)
    similarity, key, classes = (F.pad(t, (0, missing), value=v) for t, v in zip(nearest, far, strict=True))
    return similarity, key, classes


class Classified(NamedTuple):
    """These queries were classified by kNN; they are the same on all ranks."""

    queries: Features
    """The queries of all ranks, in the order of ranks."""
    predicted: Tensor
    """[Q] classes, on the device."""

    @property
    def right(self) -> Tensor:
        """Return which queries are classified rightly, [Q], on the CPU."""
        return self.predicted.cpu() == self.queries.labels

    @property
    def accuracy(self) -> float:
        """Return the fraction of the queries that are classified rightly."""
        return float(self.right.double().mean())


def classify(queries: Features, bank: Features, *, k: int, temperature: float, world: World) -> Classified:
    """Classify the queries of all ranks.

    Args:
        queries: this rank's share.
        bank: this rank's share.
        k: number of neighbours.
        temperature: of the votes.
        world: the ranks.
    """
    rows, labels, indices = (gather_rows(share, world) for share in queries)
    predicted = predict(rows, bank, k=k, temperature=temperature, world=world)
    return Classified(Features(rows, labels.cpu(), indices.cpu()), predicted)
