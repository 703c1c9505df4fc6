"""The whole augmentation against torchvision, one image at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor

from moco_dist.data import crops, operations
from moco_dist.data.augment import COLOUR_DRAWS, DRAWS, Augment, Recipe
from tests.data.made import DIGITS_RATIO, colour_draws, numbers, pixels, recipe
from tests.views import WARP

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def alone(probability: float, name: str) -> Recipe:
    """A recipe of one operation, so strong that it is seen (a blur of sigma 0.1 is none)."""
    return replace(
        recipe(blur_sigma=[0.5, 2]), **{"flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0, name: probability}
    )


def test_warps_are_drawn_up_to_their_limits() -> None:
    images, draws = pixels(1, 1, 28).expand(3, -1, -1, -1), torch.full((3, COLOUR_DRAWS), 0.5)
    draws[1, 13], draws[2, 14] = 0, 0.75
    still = replace(recipe("crop_blur", **WARP), blur=0.0)
    out = Augment(still, MEAN[:1], STD[:1])(images, draws)
    plain = images / 255
    no_shift, zero = torch.zeros(1, 2, 4, 4), torch.zeros(1)
    turned = operations.warp(plain[:1], torch.tensor([-20.0]), zero, no_shift)
    slanted = operations.warp(plain[:1], zero, torch.tensor([7.5]), no_shift)
    expected = tv.normalize(torch.cat([plain[:1], turned, slanted]), MEAN[:1], STD[:1])
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)


def sample_oracle(image: Tensor, draws: list[float], r: Recipe, size: int) -> Tensor:
    """One sample by torchvision, in the order of the papers' code."""
    channels = image.shape[0]
    x = image.float() / 255

    def to_gray(x: Tensor) -> Tensor:
        return tv.rgb_to_grayscale(x, channels) if draws[1] < r.grayscale else x

    if r.grayscale_first:
        x = to_gray(x)
    if draws[0] < r.jitter:
        for op in sorted(range(4), key=lambda op: draws[9 + op]):
            s, u = r.jitter_strength[op], draws[5 + op]
            factor = -s + 2 * s * u if op == 3 else max(0, 1 - s) + (1 + s - max(0, 1 - s)) * u
            x = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)[op](x, factor)
    if not r.grayscale_first:
        x = to_gray(x)
    if draws[2] < r.blur:
        low, high = r.blur_sigma
        radius = min(math.ceil(3 * high), size - 1)
        x = tv.gaussian_blur(x, [2 * radius + 1] * 2, [low + (high - low) * draws[3]])
    if draws[4] < r.flip:
        x = tv.horizontal_flip(x)
    return tv.normalize(x, MEAN[:channels], STD[:channels])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [5, 8, 32])
@pytest.mark.parametrize("name", ["v1", "v2", "crop_blur", "strong"])
def test_views_are_torchvisions(name: str, size: int, channels: int) -> None:
    if name == "strong":
        r = replace(recipe(blur_probability=1.0, blur_sigma=[0.5, 0.9]), jitter_strength=(1.5, 1.5, 1.5, 0.5))
    else:
        r = recipe(name)
    images, draws = pixels(48, channels, size), colour_draws(48)
    before = images.clone(), draws.clone()
    out = Augment(r, MEAN[:channels], STD[:channels])(images, draws)
    expected = [sample_oracle(image, d, r, size) for image, d in zip(images, draws.tolist(), strict=True)]
    assert out.dtype == torch.float32 and out.is_contiguous()
    torch.testing.assert_close(out, torch.stack(expected), atol=1e-4, rtol=0)
    assert torch.equal(images, before[0]) and torch.equal(draws, before[1])


def test_float64_agrees_with_float32() -> None:
    augmentation, images, draws = Augment(recipe(), MEAN, STD), pixels(32, 3, 16), colour_draws(32)
    single, double = augmentation(images, draws), augmentation(images, draws, torch.float64)
    assert double.dtype == torch.float64
    assert 0 < (single - double).abs().max() < 1e-4


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "batch"),
    [(5, 24), (7, 24), (8, 24), (13, 24), (28, 12), (32, 12), (33, 12)],
)
def test_a_view_does_not_depend_on_its_batch(size: int, batch: int, channels: int) -> None:
    images, draws = pixels(batch, channels, size), colour_draws(batch)
    sides = np.full(batch, size)
    boxes = crops.crop_boxes(numbers(batch, crops.CROP_DRAWS), sides, sides, (0.2, 1.0), DIGITS_RATIO)
    augmentation = Augment(recipe(**WARP), MEAN[:channels], STD[:channels])
    cropped = crops.resized_crop(images, torch.from_numpy(boxes), size)
    whole = augmentation(cropped, draws)
    everyone = torch.arange(batch)
    for subset in (*everyone.split(1), *everyone.split(3), *everyone.split(batch // 2), everyone.flip(0)):
        assert torch.equal(crops.resized_crop(images[subset], torch.from_numpy(boxes)[subset], size), cropped[subset])
        assert torch.equal(augmentation(cropped[subset], draws[subset]), whole[subset])


@pytest.mark.parametrize("name", ["flip", "jitter", "grayscale", "blur"])
@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_probabilities(name: str, probability: float) -> None:
    count = 4000
    images, draws = pixels(1, 3, 8).expand(count, -1, -1, -1), colour_draws(count)
    augmentation = Augment(alone(probability, name), MEAN, STD)
    changed = (augmentation(images, draws) != augmentation.plain(images)).flatten(1).any(1)
    deviation = math.sqrt(probability * (1 - probability) / count)
    assert abs(changed.float().mean().item() - probability) <= 4 * deviation + (1 / count if probability > 0 else 0)


def test_operations_are_drawn_independently() -> None:
    images, draws = pixels(1, 3, 8).expand(4000, -1, -1, -1), colour_draws(4000)
    plain = Augment(recipe(), MEAN, STD).plain(images)
    changed = torch.stack(
        [
            (Augment(alone(0.5, name), MEAN, STD)(images, draws) != plain).flatten(1).any(1)
            for name in ("flip", "jitter", "grayscale", "blur")
        ]
    )
    correlation = torch.corrcoef(changed.float()) - torch.eye(4)
    assert correlation.abs().max() < 4 / math.sqrt(4000)


def test_plain_scales_and_normalises() -> None:
    images = pixels(4, 3, 9)
    before = images.clone()
    out = Augment(recipe(), MEAN, STD).plain(images)
    torch.testing.assert_close(out, tv.normalize(images / 255, MEAN, STD), atol=1e-6, rtol=0)
    assert torch.equal(images, before)
    assert Augment(recipe(), MEAN, STD).plain(images, torch.float64).dtype == torch.float64


def test_draws_of_another_shape_are_refused() -> None:
    with pytest.raises(AssertionError):
        Augment(recipe(), MEAN, STD)(pixels(4, 3, 8), torch.rand(4, DRAWS))
