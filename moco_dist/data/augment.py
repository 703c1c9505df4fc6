"""Augment a batch of crops on the training device as a recipe says: colours, warp, blur, flip, normalisation.

Nothing is drawn here. A view is a function of its image and of `DRAWS` uniform numbers that `randomness.uniform` made
for (seed, epoch, sample, view), the first `CROP_DRAWS` of them for the crop. All parameters are computed from the
draws on the CPU, so that they are the same on any device, and which samples an operation is for is known on the host:
nothing waits for the GPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from moco_dist.config.data_section import DataSection
from moco_dist.config.section import Interval
from moco_dist.data.crops import CROP_DRAWS
from moco_dist.data.operations import WARP_GRID, blur, brightness, contrast, flip, grayscale, hue, saturation, warp
from moco_dist.ranks import devices

COLOUR_DRAWS = 15 + 2 * WARP_GRID**2
"""Uniform numbers for all that follows a view's crop, whatever the recipe."""
DRAWS = CROP_DRAWS + COLOUR_DRAWS
"""Uniform numbers for a whole view."""

# What the colour draws are for.
_JITTER, _GRAYSCALE, _BLUR, _SIGMA, _FLIP = range(5)
_FACTORS, _ORDER = slice(5, 9), slice(9, 13)
_ROTATION, _SHEAR, _ELASTIC = 13, 14, slice(15, COLOUR_DRAWS)

_OPERATIONS = (brightness, contrast, saturation, hue)
"""The operations of the colour jitter, in the order of their factors."""


@dataclass(frozen=True)
class Recipe:
    """A recipe says what is done to an image, how strongly and with what probability."""

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
    """Strength of brightness, contrast, saturation (factor in 1 +- strength) and hue (shift in +- strength turns)."""
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
        """Read the recipe that the config names.

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
        """Return the recipe for learning from labels: crops and warps of half the strength, no colours, no blur.

        What contrast is to see through would cost a classifier accuracy: it should know what a class looks like.
        """
        low, high = self.crop_scale
        scale = (1 + low) / 2, (1 + high) / 2
        rotation, shear, elastic = self.rotation / 2, self.shear / 2, self.elastic / 2
        return replace(self.colourless(), crop_scale=scale, rotation=rotation, shear=shear, elastic=elastic)

    def colourless(self) -> Recipe:
        """Return the recipe without colours and blur."""
        return replace(self, jitter=0.0, grayscale=0.0, blur=0.0)


class Augment:
    """The augmentation does everything after the crop, for a batch at once: colours, warp, blur, flip, normalisation.

    Call it outside autocast, which would blur in half precision.

    Args:
        recipe: what to do.
        mean: of each channel, of pixels in [0, 1].
        std: of each channel.
    """

    def __init__(self, recipe: Recipe, mean: Sequence[float], std: Sequence[float]) -> None:
        self.recipe = recipe
        self.mean, self.std = of_channels(mean), of_channels(std)

    def __call__(self, images: Tensor, draws: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Make one view of each image.

        Args:
            images: uint8 [B, C, S, S], on the device, in any memory format.
            draws: float32 [B, COLOUR_DRAWS] uniform numbers in [0, 1), on the CPU.
            dtype: float32 or float64, of the arithmetic and of the result.

        Returns:
            [B, C, S, S], normalised.
        """
        assert draws.shape == (len(images), COLOUR_DRAWS) and draws.device.type == "cpu"
        r, x = self.recipe, self._warped(_coloured(images, draws, self.recipe, dtype), draws)
        radius = min(math.ceil(3 * r.blur_sigma[1]), min(x.shape[2:]) - 1)
        sigma = _between(*r.blur_sigma, draws[:, _SIGMA])  # [B]
        _apply_(x, draws[:, _BLUR] < r.blur, lambda part, s: blur(part, s, radius), sigma)
        _apply_(x, draws[:, _FLIP] < r.flip, flip)
        return normalise_(x, self.mean, self.std)

    def _warped(self, x: Tensor, draws: Tensor) -> Tensor:
        """Warp the images by their draws [B, COLOUR_DRAWS]; without a warp in the recipe, return them as they are."""
        r = self.recipe
        if not (r.rotation or r.shear or r.elastic):
            return x
        draws = draws.to(x.device, non_blocking=True)
        shifts = _between(-r.elastic, r.elastic, draws[:, _ELASTIC]).view(-1, 2, WARP_GRID, WARP_GRID)
        rotation = _between(-r.rotation, r.rotation, draws[:, _ROTATION])
        shear = _between(-r.shear, r.shear, draws[:, _SHEAR])
        return warp(x, rotation, shear, shifts)

    def flipping(self, probability: float) -> Augment:
        """Return the augmentation that flips images with a probability, and normalises them as this one does."""
        mean, std = (numbers.flatten().tolist() for numbers in (self.mean, self.std))
        return Augment(replace(Recipe.of(DataSection()).colourless(), flip=probability), mean, std)

    def plain(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Scale the evaluation's images, uint8 [B, C, H, W], to [0, 1] and normalise them, no more."""
        return normalise_(images.to(dtype).div_(255), self.mean, self.std)


def of_channels(values: Sequence[float]) -> Tensor:
    """Return a number of each channel as `normalise_` takes them: float64 [C, 1, 1]."""
    return torch.tensor(values, dtype=torch.float64)[:, None, None]


def normalise_(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Subtract the mean and divide by the standard deviation of each channel, in place."""
    mean, std = (t.to(x.device, x.dtype, non_blocking=True) for t in (mean, std))
    return x.sub_(mean).div_(std)


def _between(low: float, high: float, draws: Tensor) -> Tensor:
    """Scale uniform numbers from [0, 1) to [low, high)."""
    return low + (high - low) * draws


def _apply_(x: Tensor, chosen: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> None:
    """Apply an operation to the chosen samples, in place; `chosen` [B] and `parameters` [B] are on the CPU."""
    samples = chosen.nonzero().squeeze(1)  # on the CPU, like the parameters that it selects
    if len(samples):
        of_samples = [p[samples].to(x.device, x.dtype, non_blocking=True) for p in parameters]
        index = samples.to(x.device, non_blocking=True)
        x.index_copy_(0, index, operation(x.index_select(0, index), *of_samples))


def _coloured(images: Tensor, draws: Tensor, recipe: Recipe, dtype: torch.dtype) -> Tensor:
    """Jitter the colours of some images, and turn some gray, by their draws; [B, C, S, S] in 0 to 1."""
    gray = draws[:, _GRAYSCALE] < recipe.grayscale  # [B]
    order, factors = _turns(draws, recipe)
    if _suits_kernel(images, dtype) and (recipe.jitter or recipe.grayscale):
        coloured: Tensor = _kernels().colour(images, order, factors, gray, gray_first=recipe.grayscale_first)
        return coloured
    x = images.to(dtype, memory_format=torch.contiguous_format).div_(255)
    if recipe.grayscale_first:
        _apply_(x, gray, grayscale)
    _jitter_(x, order, factors)
    if not recipe.grayscale_first:
        _apply_(x, gray, grayscale)
    return x


def _turns(draws: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Return the operation of each of four turns, [B, 4], 4 for none, and the factor of each operation, [B, 4]."""
    strength, middle = torch.tensor([recipe.jitter_strength, (1, 1, 1, 0)])  # [4] each
    low = (middle - strength).clamp(min=torch.tensor([0, 0, 0, -0.5]))
    factors = low + (middle + strength - low) * draws[:, _FACTORS]
    order = draws[:, _ORDER].argsort(dim=1, stable=True)
    order[draws[:, _JITTER] >= recipe.jitter] = len(_OPERATIONS)
    return order, factors


def _jitter_(x: Tensor, order: Tensor, factors: Tensor) -> None:
    """Jitter the colours in place: four operations for each sample, as `_turns` says.

    In each of four turns the samples are sorted by the operation that is theirs now, so that it meets them all at once.
    """
    if (order == len(_OPERATIONS)).all():
        return
    counts = [turn.bincount(minlength=5).tolist() for turn in order.unbind(1)]
    # one transfer for all turns
    samples = order.argsort(dim=0, stable=True).to(x.device, non_blocking=True)  # [B, 4]
    factors = factors.to(x.device, x.dtype, non_blocking=True)
    for turn, of_turn in zip(samples.unbind(1), counts, strict=True):
        for operation, index, factor in zip(_OPERATIONS, turn.split(of_turn), factors.unbind(1), strict=False):
            if len(index):
                x.index_copy_(0, index, operation(x.index_select(0, index), factor.index_select(0, index)))


def _suits_kernel(images: Tensor, dtype: torch.dtype) -> bool:
    """Return whether Triton's kernel computes the colours of this batch."""
    return _is_on_gpu(images) and images.shape[1] == 3 and dtype == torch.float32 and bool(_kernels())


def _is_on_gpu(images: Tensor) -> bool:
    return images.is_cuda


@functools.cache
def _kernels() -> Any:
    """Return the module of Triton's kernel; None where it does not work."""

    def try_out(kernels: Any) -> None:
        numbers = torch.zeros(1, 4)
        images = torch.zeros(1, 3, 2, 2, dtype=torch.uint8, device="cuda")
        kernels.colour(images, numbers.long(), numbers, numbers[:, 0] > 0, gray_first=False)

    return devices.kernels("moco_dist.data.colour_kernels", try_out, "colours")
