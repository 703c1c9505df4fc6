"""Separable linear maps work along the rows of an image and then its columns: resizing, blur, smooth shifts."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def separable(
    rows: Tensor, x: Tensor, cols: Tensor, after_each: Callable[[Tensor], Tensor] = lambda product: product
) -> Tensor:
    """Compute `rows @ (x @ cols^T)`, with matrices of its own for each sample.

    BLAS takes another path, with another rounding, for a matrix that does not begin at a multiple of 64 bytes; so
    all sides are padded to multiples of 4, lest the result depend on a sample's place in the batch.

    Args:
        rows: [B, S, H]
        x: [B, C, H, W]
        cols: [B, T, W]
        after_each: what is done to the numbers after each of the two products.

    Returns:
        [B, C, S, T]
    """
    product = _padded(x)
    for matrix in (cols, rows):  # each turn multiplies the last axis and swaps the last two
        product = after_each(product.flatten(1, 2) @ _padded(matrix).mT).view(*product.shape[:3], -1).mT
    return product[..., : rows.shape[1], : cols.shape[1]]


def _padded(x: Tensor) -> Tensor:
    """Append zeros to [..., H, W] up to multiples of 4."""
    right, bottom = -x.shape[-1] % 4, -x.shape[-2] % 4
    return F.pad(x, (0, right, 0, bottom)) if right or bottom else x


def interpolation(start: Tensor, length: Tensor, old_size: int, new_size: int) -> Tensor:
    """Make the matrices that resize a piece of a line, bilinear and antialiased, as PIL and torch do.

    A new pixel is the mean of the old ones of the piece under a triangle around its centre, which is as wide as two
    new pixels, or two old ones where the line is stretched.

    Args:
        start: [B] first old pixel of the piece.
        length: [B] old pixels in it.
        old_size: old pixels of the line.
        new_size: new pixels of the piece.

    Returns:
        [B, new_size, old_size], rows that add up to 1, in the precision of `start`.
    """
    start, length = start[:, None, None], length[:, None, None]
    new = torch.arange(new_size, device=start.device, dtype=start.dtype)[:, None]  # [new, 1]
    old = torch.arange(old_size, device=start.device, dtype=start.dtype)  # [old]
    scale = length / new_size
    distance = (old + 0.5) - (start + scale * (new + 0.5))  # [B, new, old]
    weights = (1 - distance.abs() / scale.clamp(min=1)).clamp_(min=0)
    weights *= (old >= start) & (old < start + length)
    return weights / weights.sum(2, keepdim=True)
