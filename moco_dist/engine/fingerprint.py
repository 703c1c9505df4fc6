"""Compare what ranks hold by fingerprints: three numbers of a rank's tensors, on the device and without a wait."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

PIECES = ("fingerprint_0", "fingerprint_1", "fingerprint_2")
"""Names of the three numbers."""
_BITS = 20
"""Bits of a number: few enough for a float32 to hold after it was divided by the number of ranks, and multiplied."""
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def fingerprint(tensors: Iterable[Tensor]) -> Tensor:
    """Compute [3] whole numbers from the bits of some tensors, in their order.

    Bits are added up as integers, a row at a time, and rows and tensors are weighted by their places. So two ranks
    whose tensors differ in a bit, or in the order of rows, have other numbers but by chance; those that differ in the
    order within a row may have the same ones.
    """
    sums = torch.stack([_weighted(_rows(tensor)) for tensor in tensors])
    total = _weighted(sums)
    return torch.stack([(total >> (_BITS * place)) & (2**_BITS - 1) for place in range(len(PIECES))]).double()


def are_apart(pieces: Iterable[Sequence[float]]) -> bool:
    """Tell whether a number differs between ranks; each of `pieces` has that of every rank."""
    return any(len({round(number) for number in of_ranks}) > 1 for of_ranks in pieces)


def _rows(tensor: Tensor) -> Tensor:
    """Add up the bits of each row of a tensor [n, ...], as integers of 32 bits, which is ten times as fast: [n]."""
    tensor = tensor.detach()
    integers = tensor.view(_INTEGERS[tensor.element_size()])
    if tensor.dim() > 1:
        dtype = torch.int32 if tensor.element_size() <= 4 else torch.int64
        return integers.sum(dim=tuple(range(1, tensor.dim())), dtype=dtype)
    return integers.view(-1)


def _weighted(numbers: Tensor) -> Tensor:
    """Add up [n] integers, each times an odd number that belongs to its place; what is over 64 bits goes."""
    weights = torch.arange(1, 2 * len(numbers), 2, device=numbers.device) * 2654435761
    return (numbers.long() * weights).sum()
