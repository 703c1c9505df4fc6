"""Compute what Momentum Contrast (He et al. 2020) needs: pure functions and two updates in place."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from moco_dist.summation import norm


def contrast_logits(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Compute the similarity of each query to its positive key and to the queue, in float32 or wider.

    `[q . k, q . queue_1, ..., q . queue_K] / temperature` (He et al. 2020, equation 1 and algorithm 1), positive
    first, so that the label of every row is 0.

    Args:
        q: [N, C] queries, normalised.
        k: [N, C] their positive keys, normalised.
        queue: [K, C] keys of earlier steps, normalised.
        temperature: tau.

    Returns:
        [N, 1+K]
    """
    # Under autocast a matrix product would be rounded to bf16: at tau = 0.07 that is an error of 0.1 in a logit.
    with torch.autocast(q.device.type, enabled=False):
        q, k = q.to(queue.dtype), k.to(queue.dtype)
        positive = (q * k).sum(dim=1, keepdim=True)  # [N, 1]
        negative = q @ queue.T  # [N, K]
        return torch.cat([positive, negative], dim=1) / temperature


def info_nce(logits: Tensor) -> Tensor:
    """Compute the cross-entropy with the positive at index 0, the mean over the rows of [N, 1+K]: a scalar."""
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return F.cross_entropy(logits, labels)


def top_k_accuracy(logits: Tensor, ks: Sequence[int] = (1, 5)) -> list[Tensor]:
    """Compute the fraction of the rows of [N, 1+K] whose positive is among the k largest, for each of `ks`.

    Counting the negatives that reach the positive is one pass, a sort is many; and ties count as misses, so that a
    collapsed encoder, to which all keys are alike, scores 0.
    """
    ahead = (logits[:, 1:] >= logits[:, :1]).sum(dim=1)  # [N]
    return [(ahead < k).to(logits.dtype).mean() for k in ks]


@torch.no_grad()
def contrast_details(logits: Tensor, temperature: float) -> dict[str, Tensor]:
    """Compute how alike queries and keys are, and how sure the softmax is: means over the rows of [N, 1+K].

    Returns:
        The cosine with the positive key; the largest cosine with a key of the queue; the softmax's entropy in nats.
    """
    shares = logits.log_softmax(dim=1)  # [N, 1+K]
    return {
        "positive_similarity": logits[:, 0].mean() * temperature,
        "hardest_similarity": logits[:, 1:].amax(dim=1).mean() * temperature,
        "entropy": -(shares.exp().mul_(shares)).sum(dim=1).mean(),
    }


@torch.no_grad()
def distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Compute `|one - other| / |one|` over all numbers of two lists of tensors alike in shape: a scalar."""
    return norm(torch._foreach_sub(list(one), list(other))) / norm(one)


@torch.no_grad()
def momentum_update_(key: Sequence[Tensor], query: Sequence[Tensor], momentum: float) -> None:
    """Set `key <- momentum key + (1 - momentum) query`, in place (He et al. 2020, equation 2)."""
    torch._foreach_mul_(list(key), momentum)
    torch._foreach_add_(list(key), list(query), alpha=1 - momentum)


@torch.no_grad()
def enqueue_(queue: Tensor, keys: Tensor, cursor: int) -> int:
    """Write keys over the oldest ones, in place, wrapping at the end; any number of keys fits any queue.

    Args:
        queue: [K, C]
        keys: [B, C]; of more than K the last K stay.
        cursor: row of the oldest key.

    Returns:
        The cursor behind the last key written.
    """
    size, count = len(queue), len(keys)
    end = (cursor + count) % size
    kept = keys[-size:].to(queue.dtype)
    start = (end - len(kept)) % size
    head = min(len(kept), size - start)  # rows up to the end of the queue
    queue[start : start + head] = kept[:head]
    queue[: len(kept) - head] = kept[head:]
    return end
