"""Operations change a batch of images, each image by a parameter of its own.

They are torchvision's (`transforms.v2.functional`) and take float images [B, C, H, W] in [0, 1] on any device; of
other channels than three, those about colour leave an image as it is. What an image becomes does not depend on its
neighbours in the batch; on the CPU not even in the last bit.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from moco_dist.data.separable import separable

WARP_GRID = 4
"""Control points of the elastic distortion along a side."""


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply by a factor and clip: `factor x`; factor [B] not negative."""
    return (x * _each(factor)).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean gray and clip: `factor x + (1 - factor) mean`; factor [B] not negative."""
    # Along one axis after the other: over both at once, the order of summation depends on the size of the batch.
    mean = _gray(x).mean(3, keepdim=True).mean(2, keepdim=True)  # [B, 1, 1, 1]
    return _blend(x, mean, factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the gray image and clip: `factor x + (1 - factor) gray`; factor [B] not negative."""
    return _blend(x, _gray(x), factor) if x.shape[1] == 3 else x


def hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of HSV; shift [B] in turns, -0.5 to 0.5."""
    if x.shape[1] != 3:
        return x
    r, g, b = x.unbind(1)
    low, high = x.aminmax(dim=1)  # [B, H, W]
    chroma = high - low
    divisor = chroma.masked_fill(chroma == 0, 1)  # gray has no hue, and needs none
    sextant = torch.where(
        high == r, (g - b) / divisor, torch.where(high == g, 2 + (b - r) / divisor, 4 + (r - g) / divisor)
    )
    sextant = sextant + 6 * shift[:, None, None]
    # Back from HSV without its six cases: a channel lies below the maximum by chroma * clip(min(k, 4 - k), 0, 1), k
    # the distance in sextants, modulo 6, from 5, 3 and 1 for red, green and blue.
    origin = torch.arange(5, 0, -2, device=x.device, dtype=x.dtype)[:, None, None]  # [3, 1, 1]
    k = sextant[:, None] + origin  # [B, 3, H, W]
    k = k - 6 * (k / 6).floor_()
    return high[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


def grayscale(x: Tensor) -> Tensor:
    """Put the luma in all channels."""
    return _gray(x).expand_as(x) if x.shape[1] == 3 else x


def flip(x: Tensor) -> Tensor:
    """Mirror the images, left to right."""
    return x.flip(3)


def warp(x: Tensor, rotation: Tensor, shear: Tensor, shifts: Tensor) -> Tensor:
    """Turn, slant and distort about the centre, bilinear; what comes from outside repeats the edge.

    The distortion is that of Simard et al. 2003 ("Best practices for convolutional neural networks applied to visual
    document analysis", section 2) with few numbers: a grid of shifts, bicubic between its points.

    Args:
        x: [B, C, H, W]
        rotation: [B] degrees, clockwise.
        shear: [B] degrees, along the rows.
        shifts: [B, 2, G, G] of the control points, across and down, in pixels.
    """
    height, width = x.shape[2:]
    # float64 without fused operations, as everywhere: an error of float32 could depend on the place in the batch
    angle, slant = (_each(t.double() * (math.pi / 180)) for t in (rotation, shear))  # [B, 1, 1, 1]
    across = torch.arange(width, device=x.device, dtype=torch.float64) - (width - 1) / 2  # [W]
    down = torch.arange(height, device=x.device, dtype=torch.float64)[:, None] - (height - 1) / 2  # [H, 1]
    cos, sin = angle.cos(), angle.sin()
    turned_down = down * cos - across * sin  # [B, 1, H, W]
    turned = torch.cat([across * cos + down * sin + turned_down * slant.tan(), turned_down], dim=1)  # [B, 2, H, W]
    basis_down, basis_across = (_bicubic_basis(side, x.device).expand(len(x), -1, -1) for side in (height, width))
    there = turned + separable(basis_down, shifts.double(), basis_across)
    half = torch.tensor([width / 2, height / 2], dtype=torch.float64)[:, None, None].to(x.device, non_blocking=True)
    grid = (there / half).permute(0, 2, 3, 1).to(x.dtype)  # [B, H, W, 2] in -1 .. 1
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _bicubic_basis(size: int, device: torch.device) -> Tensor:
    """Compute what each control point of a line adds to each pixel, [1, size, WARP_GRID]."""
    points = torch.eye(WARP_GRID, device=device, dtype=torch.float64)[None, None]
    return F.interpolate(points, size=(size, WARP_GRID), mode="bicubic", align_corners=True)[0]


def blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur with a Gaussian, reflected at the edges.

    Args:
        x: [B, C, H, W], sides greater than `radius`.
        sigma: [B] standard deviation in pixels.
        radius: the kernel has 2 radius + 1 pixels.
    """
    height, width = x.shape[2:]
    rows = _blur_matrix(sigma, radius, height)
    cols = rows if height == width else _blur_matrix(sigma, radius, width)
    return separable(rows.to(x.dtype), x, cols.to(x.dtype))


def _blur_matrix(sigma: Tensor, radius: int, size: int) -> Tensor:
    """Make the matrices that blur a line with reflected ends, [B, size, size] in float64."""
    assert radius < size, f"a line of {size} pixels cannot be reflected over {radius}"
    near = torch.arange(radius + 1, device=sigma.device, dtype=torch.float64)  # [radius + 1]
    # float64, because the exp of a number may depend on its place in the tensor in the last bit
    half = torch.exp(-0.5 * (near / sigma.double()[:, None]) ** 2)  # [B, radius + 1] the kernel from its middle
    half = half / (2 * half.sum(1, keepdim=True) - half[:, :1])
    half = F.pad(half, (0, 1))  # what is farther than the radius
    target = torch.arange(size, device=sigma.device)[:, None]  # [size, 1]
    source = torch.arange(size, device=sigma.device)  # [size], itself and its mirror images before and after the line
    beyond = radius + 1
    direct = (source - target).abs()
    before = (source + target).masked_fill(source == 0, beyond)  # the first and last pixel are their own mirror images
    after = (2 * (size - 1) - source - target).masked_fill(source == size - 1, beyond)
    direct, before, after = torch.stack([direct, before, after]).clamp_(max=beyond)
    return half[:, direct] + half[:, before] + half[:, after]


def _gray(x: Tensor) -> Tensor:
    """Compute the luma of ITU-R 601, [B, 1, H, W]; of other channels than three, their mean."""
    if x.shape[1] == 1:
        return x
    if x.shape[1] != 3:
        total: Tensor = functools.reduce(torch.add, x.split(1, dim=1))  # in the same order for any batch
        return total / x.shape[1]
    r, g, b = x.chunk(3, dim=1)
    return r * 0.2989 + g * 0.587 + b * 0.114


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Mix two images and clip: `factor x + (1 - factor) other`."""
    # No lerp, no add(alpha=...): their vectorised and their scalar code round differently.
    factor = _each(factor)
    return (x * factor + other * (1 - factor)).clamp_(0, 1)


def _each(parameter: Tensor) -> Tensor:
    """Give a parameter [B] the shape [B, 1, 1, 1]."""
    return parameter[:, None, None, None]
