"""Weighted kNN classification over all ranks (Wu et al. 2018, "InstDisc", section 3.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moco_dist.collectives import World

_QUERIES = 256  # at a time: bounds the memory of a similarity matrix


@torch.no_grad()
def predict(
    queries: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    bank_indices: Tensor,
    *,
    k: int,
    temperature: float,
    world: World,
) -> Tensor:
    """Classes of the queries by the votes of their k nearest images of a bank that is spread over the ranks.

    A neighbour votes for its class with weight exp(cosine / temperature). Of equally similar images those of lower
    index count, so the result does not depend on which rank holds what.

    Args:
        queries: [Q, D] normalised, the same on all ranks.
        bank: [n, D] normalised, this rank's share; shares may differ in size or be empty.
        bank_labels: [n] classes.
        bank_indices: [n] each image's index in the whole bank.
        k: neighbours; a bank of fewer has them all.
        temperature: of the votes.
        world: the ranks.

    Returns:
        [Q] classes, the same on all ranks.
    """
    sizes = world.gather_objects((len(bank), int(bank_labels.max()) if len(bank) else -1))
    k = min(k, sum(size for size, _ in sizes))
    classes = 1 + max(largest for _, largest in sizes)
    local = min(k, max(size for size, _ in sizes))  # candidates of one rank
    predictions = []
    for q in queries.split(_QUERIES):
        similarity, order, labels = _candidates(q, bank, bank_labels, bank_indices, local)
        if world.size > 1:
            similarity, order, labels = (
                torch.cat(list(world.all_gather(t[None])), dim=1) for t in (similarity, order, labels)
            )
        nearest = order.topk(k, dim=1).indices  # [q, k]
        votes = (similarity.gather(1, nearest).double() / temperature).exp()
        scores = votes.new_zeros(len(q), classes).scatter_add_(1, labels.gather(1, nearest), votes)
        predictions.append(scores.argmax(dim=1))
    return torch.cat(predictions)


def _candidates(q: Tensor, bank: Tensor, labels: Tensor, indices: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` nearest of this rank's share: similarity, sort key and label, each [q, count].

    The sort key is the similarity less a trifle that grows with the index: below float32's resolution, so it only
    parts equals. A share of fewer images is filled up with ones that are infinitely far.
    """
    similarity = q @ bank.T  # [q, n]
    key = similarity.double() - indices.to(q.device) * 2.0**-48
    found = min(count, len(bank))
    top = key.topk(found, dim=1)
    missing = count - found
    return (
        F.pad(similarity.gather(1, top.indices), (0, missing), value=-torch.inf),
        F.pad(top.values, (0, missing), value=-torch.inf),
        F.pad(labels.to(q.device)[top.indices], (0, missing)),
    )


def accuracy(
    queries: tuple[Tensor, Tensor], bank: tuple[Tensor, Tensor, Tensor], *, k: int, temperature: float, world: World
) -> float:
    """Fraction of the queries whose class the kNN tells.

    Args:
        queries: this rank's share: [n, D] features and [n] labels.
        bank: this rank's share: features, labels and indices.
        k: neighbours.
        temperature: of the votes.
        world: the ranks.
    """
    features, labels = (gather_rows(t, world) for t in queries)
    predicted = predict(features, *bank, k=k, temperature=temperature, world=world)
    return float((predicted == labels.to(predicted.device)).double().mean())


def gather_rows(tensor: Tensor, world: World) -> Tensor:
    """Concatenate shares [n, ...] whose n differs between the ranks."""
    if world.size == 1:
        return tensor
    tensor = tensor.to(world.device)
    counts = world.gather_objects(len(tensor))
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    gathered = world.all_gather(padded)
    return torch.cat([g[:n] for g, n in zip(gathered.chunk(world.size), counts, strict=True)])
