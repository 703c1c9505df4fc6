"""MoCo's augmentations: the crop on the CPU, everything else in batches on the training device.

Nothing is drawn here. A view is a function of its image and of `DRAWS` uniform numbers that `randomness.uniform` made
for (seed, epoch, sample, view), the first `CROP_DRAWS` of them for the crop. All parameters are computed from the
draws on the CPU, so that they are the same on any device, and which samples an operation is for is known on the host:
nothing waits for the GPU.

The operations are torchvision's (`transforms.v2.functional`), but with a parameter of its own for each sample. What a
sample becomes does not depend on its neighbours in the batch; on the CPU not even in the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from moco_dist.config.schema import DataSection, Interval

CROP_TRIES = 10
CROP_DRAWS = 4 * CROP_TRIES
"""Uniform numbers for a view's crop: area, ratio, top and left of each try."""
WARP_GRID = 4
"""Control points of the elastic distortion along a side."""
COLOUR_DRAWS = 15 + 2 * WARP_GRID**2
"""Uniform numbers for the rest of a view, whatever the recipe."""
DRAWS = CROP_DRAWS + COLOUR_DRAWS
"""Uniform numbers for a whole view."""

# What the colour draws are for.
_JITTER, _GRAYSCALE, _BLUR, _SIGMA, _FLIP = range(5)
_FACTORS, _ORDER = slice(5, 9), slice(9, 13)
_ROTATION, _SHEAR, _ELASTIC = 13, 14, slice(15, COLOUR_DRAWS)


@dataclass(frozen=True)
class Recipe:
    """What is done to an image, how strongly and with what probability."""

    crop_scale: Interval
    """Area of the crop as a fraction of the image's."""
    crop_ratio: Interval
    """Width over height of the crop."""
    rotation: float
    """Largest rotation to either side in degrees."""
    shear: float
    """Largest slant to either side in degrees."""
    elastic: float
    """Largest shift of a control point of the elastic distortion in pixels."""
    flip: float
    """Probability of the horizontal flip."""
    jitter: float
    """Probability of the colour jitter."""
    jitter_strength: tuple[float, float, float, float]
    """Of brightness, contrast, saturation (factor in 1 +- strength) and hue (shift in +- strength turns)."""
    grayscale: float
    """Probability of the conversion to grayscale."""
    grayscale_first: bool
    """Convert to grayscale before the colour jitter, not after it."""
    blur: float
    """Probability of the Gaussian blur."""
    blur_sigma: Interval
    """Standard deviation of the blur in pixels."""

    @classmethod
    def of(cls, data: DataSection) -> Recipe:
        """The recipe that the config names.

        v1: MoCo v1, section 3.3, with the strengths and the order of the authors' code. v2: MoCo v2, section 3, which
        takes it from SimCLR, appendix A, with weaker colours. crop_blur: crop and blur alone.
        """
        flip, jitter, strength, grayscale, blur = {
            "v1": (0.5, 1.0, (0.4, 0.4, 0.4, 0.4), 0.2, 0.0),
            "v2": (0.5, 0.8, (0.4, 0.4, 0.4, 0.1), 0.2, 0.5),
            "crop_blur": (0.0, 0.0, (0.0, 0.0, 0.0, 0.0), 0.0, 0.5),
        }[data.augmentation]
        return cls(
            crop_scale=data.crop_scale,
            crop_ratio=data.crop_ratio,
            rotation=data.rotation_degrees,
            shear=data.shear_degrees,
            elastic=data.elastic_pixels,
            flip=flip,
            jitter=jitter,
            jitter_strength=strength,
            grayscale=grayscale,
            grayscale_first=data.augmentation == "v1",
            blur=blur if data.blur_probability is None else data.blur_probability,
            blur_sigma=data.blur_sigma,
        )

    def gentler(self) -> Recipe:
        """For learning from labels: crops and warps of half the strength, no colours, no blur.

        What contrast is to see through would cost a classifier accuracy: it should know what a class looks like.
        """
        low, high = self.crop_scale
        return replace(
            self,
            crop_scale=((1 + low) / 2, (1 + high) / 2),
            rotation=self.rotation / 2,
            shear=self.shear / 2,
            elastic=self.elastic / 2,
            jitter=0.0,
            grayscale=0.0,
            blur=0.0,
        )


# ---------------------------------------------------------------------------------------------------- crops, on the CPU


def crop_boxes(
    draws: NDArray[np.float32], heights: NDArray[np.int64], widths: NDArray[np.int64], scale: Interval, ratio: Interval
) -> NDArray[np.int64]:
    """Random crops as torchvision's RandomResizedCrop takes them.

    The first of ten tries that fits into the image: area uniform in `scale`, width over height log-uniform in
    `ratio`, position uniform. Where none fits, the largest central crop whose ratio is allowed.

    Args:
        draws: [B, CROP_DRAWS] uniform numbers in [0, 1).
        heights: [B] of the images, in pixels.
        widths: [B]
        scale: area of the crop as a fraction of the image's, least and most.
        ratio: width over height of the crop, least and most.

    Returns:
        [B, 4] top, left, height, width in pixels.
    """
    image = np.stack([heights, widths]).astype(np.int64)  # [2, B] height and width
    area_draw, ratio_draw, *place_draws = np.moveaxis(draws.reshape(-1, CROP_TRIES, 4).astype(np.float64), 2, 0)
    area = (scale[0] + (scale[1] - scale[0]) * area_draw) * image.prod(0)[:, None]  # [B, tries]
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    aspect = np.exp(log_low + (log_high - log_low) * ratio_draw)
    crop = np.rint(np.sqrt(np.stack([area / aspect, area * aspect]))).astype(np.int64)  # [2, B, tries]
    place = np.floor(np.stack(place_draws) * (image[:, :, None] - crop + 1)).astype(np.int64)
    fits = ((crop > 0) & (crop <= image[:, :, None])).all(0)  # [B, tries]
    tried = np.concatenate([place, crop])[:, np.arange(len(fits)), fits.argmax(1)]  # [4, B]
    return np.where(fits.any(1), tried, _central_crop(image, ratio)).T


def _central_crop(image: NDArray[np.int64], ratio: Interval) -> NDArray[np.int64]:
    """The largest central crop whose ratio is allowed, [4, B] top, left, height, width."""
    height, width = image  # [B] each
    crop = np.stack([np.minimum(height, np.rint(width / ratio[0])), np.minimum(width, np.rint(height * ratio[1]))])
    crop = np.maximum(crop, 1).astype(np.int64)  # torchvision's is empty in an image of a few pixels
    return np.concatenate([(image - crop) // 2, crop])


def crop_file(image: Image.Image, box: Sequence[int] | NDArray[np.int64], size: int) -> Tensor:
    """Crop and resize one decoded image with PIL's antialiased bilinear filter, as torchvision does.

    Args:
        image: mode RGB or L.
        box: top, left, height, width in pixels, a row of `crop_boxes`.
        size: side of the result in pixels.

    Returns:
        uint8 [C, size, size]
    """
    top, left, height, width = map(int, box)
    # Not resize(box=...): its filter would look at pixels outside the crop.
    crop = image.crop((left, top, left + width, top + height))
    return _tensor(crop.resize((size, size), Image.Resampling.BILINEAR))


def centre(image: Image.Image, size: int) -> Tensor:
    """The evaluation view of a decoded image: shorter side to size * 256/224, then the central square.

    Args:
        image: mode RGB or L.
        size: side of the result in pixels.

    Returns:
        uint8 [C, size, size]
    """
    short = round(size * 256 / 224)
    width, height = (short * side // min(image.size) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return _tensor(resized.crop((left, top, left + size, top + size)))


def _tensor(image: Image.Image) -> Tensor:
    """uint8 [C, H, W] of a PIL image."""
    assert image.mode in ("RGB", "L"), f"convert the image from mode {image.mode}"
    pixels = torch.from_numpy(np.array(image))  # [H, W] or [H, W, C]
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def resized_crop(images: Tensor, boxes: NDArray[np.int64], size: int) -> Tensor:
    """Crop each image to a box of its own and resize it, bilinear and antialiased.

    Computed in float64: an error of float32 could depend on the batch, and rounding would make it a whole level.

    Args:
        images: uint8 [B, C, H, W]
        boxes: [B, 4] top, left, height, width in pixels.
        size: side of the result in pixels.

    Returns:
        uint8 [B, C, size, size]
    """
    height, width = images.shape[2:]
    top, left, crop_height, crop_width = torch.from_numpy(boxes).to(images.device, torch.float64).unbind(1)
    rows = interpolation(top, crop_height, height, size)  # [B, size, H]
    cols = interpolation(left, crop_width, width, size)  # [B, size, W]
    resized = separable(rows, images.double(), cols)  # [B, C, size, size]
    # Ties are frequent (the mean of two levels); off the edge, rounding error cannot decide them.
    return resized.add_(0.5 + 1e-6).clamp_(0, 255).to(torch.uint8)  # the conversion truncates


def centre_batch(images: Tensor, size: int) -> Tensor:
    """The evaluation view of images of one size: their central square, resized; nothing is cut off a square.

    Args:
        images: uint8 [B, C, H, W]
        size: side of the result in pixels.

    Returns:
        uint8 [B, C, size, size]; `images` itself where they are of that size.
    """
    height, width = images.shape[2:]
    if height == width == size:
        return images
    side = min(height, width)
    box = np.array([(height - side) // 2, (width - side) // 2, side, side])
    return resized_crop(images, np.tile(box, (len(images), 1)), size)


# ------------------------------------------------------------------------------------------- separable linear operators


def separable(rows: Tensor, x: Tensor, cols: Tensor) -> Tensor:
    """`rows @ x @ cols^T`, with matrices of its own for each sample.

    BLAS takes another path, with another rounding, for a matrix that does not begin at a multiple of 64 bytes; so
    all sides are padded to multiples of 4, lest the result depend on a sample's place in the batch.

    Args:
        rows: [B, S, H]
        x: [B, C, H, W]
        cols: [B, T, W]

    Returns:
        [B, C, S, T]
    """
    product = _padded(x)
    for matrix in (cols, rows):  # each turn multiplies the last axis and swaps the last two
        product = (product.flatten(1, 2) @ _padded(matrix).mT).view(*product.shape[:3], -1).mT
    return product[..., : rows.shape[1], : cols.shape[1]]


def _padded(x: Tensor) -> Tensor:
    """[..., H, W] with zeros after it up to multiples of 4."""
    right, bottom = -x.shape[-1] % 4, -x.shape[-2] % 4
    return F.pad(x, (0, right, 0, bottom)) if right or bottom else x


def interpolation(start: Tensor, length: Tensor, old_size: int, new_size: int) -> Tensor:
    """Matrices that resize a piece of a line, bilinear and antialiased, as PIL and torch do.

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


# ------------------------------------------------------- operations on float images [B, C, H, W] in [0, 1], C = 1 or 3


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """`factor x`, clipped; factor [B] not negative."""
    return (x * _each(factor)).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean gray of the image: `factor x + (1 - factor) mean`, clipped; factor [B] not negative."""
    # Along one axis after the other: over both at once, the order of summation depends on the size of the batch.
    mean = _gray(x).mean(3, keepdim=True).mean(2, keepdim=True)  # [B, 1, 1, 1]
    return _blend(x, mean, factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the gray image: `factor x + (1 - factor) gray`, clipped; factor [B] not negative."""
    return x if x.shape[1] == 1 else _blend(x, _gray(x), factor)


def hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue (HSV); shift [B] in turns, -0.5 to 0.5."""
    if x.shape[1] == 1:
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
    """Luma in all channels."""
    return x if x.shape[1] == 1 else _gray(x).expand_as(x)


def flip(x: Tensor) -> Tensor:
    """Left to right."""
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
    """[1, size, WARP_GRID] what each control point of a line adds to each pixel."""
    points = torch.eye(WARP_GRID, device=device, dtype=torch.float64)[None, None]
    return F.interpolate(points, size=(size, WARP_GRID), mode="bicubic", align_corners=True)[0]


def blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur, reflected at the edges.

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
    """The blur of a line with reflected ends, [B, size, size] in float64."""
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
    """ITU-R 601 luma, [B, 1, H, W]."""
    if x.shape[1] == 1:
        return x
    r, g, b = x.chunk(3, dim=1)
    return r * 0.2989 + g * 0.587 + b * 0.114


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    # No lerp, no add(alpha=...): their vectorised and their scalar code round differently.
    factor = _each(factor)
    return (x * factor + other * (1 - factor)).clamp_(0, 1)


def _each(parameter: Tensor) -> Tensor:
    """[B] to [B, 1, 1, 1]."""
    return parameter[:, None, None, None]


# --------------------------------------------------------------------------------------------- the whole, on the device


class Augment:
    """Everything after the crop, for a batch at once: colours, warp, blur, flip, normalisation.

    Call it outside autocast, which would blur in half precision.

    Args:
        recipe: what to do.
        mean: of each channel, of pixels in [0, 1].
        std: of each channel.
    """

    def __init__(self, recipe: Recipe, mean: Sequence[float], std: Sequence[float]) -> None:
        self.recipe = recipe
        self.mean = torch.tensor(mean, dtype=torch.float64)[:, None, None]  # [C, 1, 1]
        self.std = torch.tensor(std, dtype=torch.float64)[:, None, None]

    def __call__(self, images: Tensor, draws: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """One view of each image.

        Args:
            images: uint8 [B, C, S, S], C = 1 or 3, on the device.
            draws: float32 [B, COLOUR_DRAWS] uniform numbers in [0, 1), on the CPU.
            dtype: float32 or float64, of the arithmetic and of the result.

        Returns:
            [B, C, S, S], normalised.
        """
        assert draws.shape == (len(images), COLOUR_DRAWS) and draws.device.type == "cpu"
        r, x = self.recipe, images.to(dtype).div_(255)
        gray = draws[:, _GRAYSCALE] < r.grayscale  # [B]
        if r.grayscale_first:
            _apply_(x, gray, grayscale)
        _jitter_(x, draws, r)
        if not r.grayscale_first:
            _apply_(x, gray, grayscale)
        x = self._warped(x, draws)
        radius = min(math.ceil(3 * r.blur_sigma[1]), min(x.shape[2:]) - 1)
        sigma = _between(*r.blur_sigma, draws[:, _SIGMA])  # [B]
        _apply_(x, draws[:, _BLUR] < r.blur, lambda part, s: blur(part, s, radius), sigma)
        _apply_(x, draws[:, _FLIP] < r.flip, flip)
        return self._normalise_(x)

    def _warped(self, x: Tensor, draws: Tensor) -> Tensor:
        r = self.recipe
        if not (r.rotation or r.shear or r.elastic):
            return x
        draws = draws.to(x.device, non_blocking=True)
        shifts = _between(-r.elastic, r.elastic, draws[:, _ELASTIC]).view(-1, 2, WARP_GRID, WARP_GRID)
        rotation, shear = (
            _between(-most, most, draws[:, which]) for most, which in ((r.rotation, _ROTATION), (r.shear, _SHEAR))
        )
        return warp(x, rotation, shear, shifts)

    def plain(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Images for the evaluation, uint8 [B, C, H, W]: scaled to [0, 1] and normalised, no more."""
        return self._normalise_(images.to(dtype).div_(255))

    def _normalise_(self, x: Tensor) -> Tensor:
        mean, std = (t.to(x.device, x.dtype, non_blocking=True) for t in (self.mean, self.std))
        return x.sub_(mean).div_(std)


def _between(low: float, high: float, draws: Tensor) -> Tensor:
    return low + (high - low) * draws


def _apply_(x: Tensor, chosen: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> None:
    """Apply an operation to the chosen samples, in place; `chosen` [B] and `parameters` [B] are on the CPU."""
    samples = chosen.nonzero().squeeze(1)  # on the CPU, like the parameters that it selects
    if len(samples):
        of_samples = [p[samples].to(x.device, x.dtype, non_blocking=True) for p in parameters]
        index = samples.to(x.device, non_blocking=True)
        x.index_copy_(0, index, operation(x.index_select(0, index), *of_samples))


def _jitter_(x: Tensor, draws: Tensor, recipe: Recipe) -> None:
    """Colour jitter, in place: for each chosen sample four operations, in an order of its own.

    In each of four turns the samples are sorted by the operation that is theirs now, so that it meets them all at once.
    """
    jittered = draws[:, _JITTER] < recipe.jitter  # [B]
    if not jittered.any():
        return
    operations = (brightness, contrast, saturation, hue)
    strength, middle = torch.tensor([recipe.jitter_strength, (1, 1, 1, 0)])  # [4] each
    low = (middle - strength).clamp(min=torch.tensor([0, 0, 0, -0.5]))
    factors = low + (middle + strength - low) * draws[:, _FACTORS]  # [B, 4]
    order = draws[:, _ORDER].argsort(dim=1, stable=True)  # [B, 4] the operation of each turn
    order[~jittered] = len(operations)  # none
    counts = [turn.bincount(minlength=5).tolist() for turn in order.unbind(1)]
    # one transfer for all turns
    samples = order.argsort(dim=0, stable=True).to(x.device, non_blocking=True)  # [B, 4]
    factors = factors.to(x.device, x.dtype, non_blocking=True)
    for turn, of_turn in zip(samples.unbind(1), counts, strict=True):
        for operation, index, factor in zip(operations, turn.split(of_turn), factors.unbind(1), strict=False):
            if len(index):
                x.index_copy_(0, index, operation(x.index_select(0, index), factor.index_select(0, index)))
