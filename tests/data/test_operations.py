"""The operations against torchvision, one image at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv
from torchvision.transforms import InterpolationMode

from moco_dist.data import operations
from tests.data.made import pixels

JITTER = [
    (operations.brightness, tv.adjust_brightness, (0.0, 2.0)),
    (operations.contrast, tv.adjust_contrast, (0.0, 2.0)),
    (operations.saturation, tv.adjust_saturation, (0.0, 2.0)),
    (operations.hue, tv.adjust_hue, (-0.5, 0.5)),
]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (13, 7), (32, 32)])
@pytest.mark.parametrize(("ours", "theirs", "interval"), JITTER, ids=["brightness", "contrast", "saturation", "hue"])
def test_colours_are_torchvisions(
    ours: Callable, theirs: Callable, interval: tuple, height: int, width: int, channels: int
) -> None:
    x = pixels(9, channels, height, width) / 255
    before = x.clone()
    factors = torch.linspace(*interval, 9)
    expected = torch.stack([theirs(image, float(f)) for image, f in zip(x, factors, strict=True)])
    torch.testing.assert_close(ours(x, factors), expected, atol=1e-5, rtol=0)
    assert torch.equal(x, before)
    if channels == 3 or ours in (operations.brightness, operations.contrast):
        assert not torch.allclose(expected, x, atol=0.1)


@pytest.mark.parametrize("channels", [1, 3])
def test_grayscale_and_flip_are_torchvisions(channels: int) -> None:
    x = pixels(5, channels, 13, 7) / 255
    torch.testing.assert_close(operations.grayscale(x), tv.rgb_to_grayscale(x, channels), atol=1e-5, rtol=0)
    assert torch.equal(operations.flip(x), tv.horizontal_flip(x))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "radius"), [(8, 8, 6), (8, 8, 7), (13, 9, 3), (32, 32, 6), (33, 40, 12), (5, 5, 0)]
)
def test_blur_is_torchvisions(height: int, width: int, radius: int, channels: int) -> None:
    x = pixels(6, channels, height, width) / 255
    sigmas = torch.linspace(0.1, 4.0, 6)
    expected = [tv.gaussian_blur(i, [2 * radius + 1] * 2, [float(s)]) for i, s in zip(x, sigmas, strict=True)]
    torch.testing.assert_close(operations.blur(x, sigmas, radius), torch.stack(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 40)])
def test_warp_is_torchvisions(height: int, width: int) -> None:
    x = torch.zeros(6, 3, height, width)
    x[:, :, 10:-10, 10:-10] = torch.rand(6, 3, height - 20, width - 20)  # far from the edge, which is filled otherwise
    rotation, shear = torch.linspace(-20, 20, 6), torch.tensor([0.0, 15, -15, 0, 10, -5])
    still = torch.zeros(6, 2, operations.WARP_GRID, operations.WARP_GRID)
    bilinear = InterpolationMode.BILINEAR
    expected = [
        tv.affine(image, float(r), [0, 0], 1.0, [float(s), 0], interpolation=bilinear)
        for image, r, s in zip(x, rotation, shear, strict=True)
    ]
    torch.testing.assert_close(operations.warp(x, rotation, shear, still), torch.stack(expected), atol=1e-4, rtol=0)
    shifts = 4 * torch.rand(6, 2, operations.WARP_GRID, operations.WARP_GRID) - 2
    field = F.interpolate(shifts, (height, width), mode="bicubic", align_corners=True)
    field = field * (2 / torch.tensor([width, height]))[:, None, None]
    bent = [tv.elastic(i, f.permute(1, 2, 0)[None], interpolation=bilinear) for i, f in zip(x, field, strict=True)]
    out = operations.warp(x, torch.zeros(6), torch.zeros(6), shifts)
    torch.testing.assert_close(out, torch.stack(bent), atol=1e-4, rtol=0)
    assert (out - x).abs().max() > 0.1


def test_what_comes_from_outside_repeats_the_edge() -> None:
    gray = torch.full((2, 1, 12, 12), 0.7)
    out = operations.warp(gray, torch.tensor([30.0, 5]), torch.tensor([0.0, 30]), torch.full((2, 2, 4, 4), 3.0))
    torch.testing.assert_close(out, gray)


def test_hue_at_the_edges_of_the_sextants() -> None:
    levels = torch.tensor([0.0, 0.5, 1.0])
    x = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 3, 9).expand(13, -1, -1, -1)
    shifts = torch.arange(-6, 7) / 12
    expected = torch.stack([tv.adjust_hue(image, float(s)) for image, s in zip(x, shifts, strict=True)])
    torch.testing.assert_close(operations.hue(x, shifts), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("ours", [operations.contrast, operations.hue, lambda x, s: operations.blur(x, 1 + s, 6)])
def test_nor_does_a_large_image(ours: Callable) -> None:
    x, parameter = pixels(3, 3, 224) / 255, torch.tensor([0.1, 0.2, 0.4])  # kernels use several threads for it
    one_by_one = [ours(image, p) for image, p in zip(x.split(1), parameter.split(1), strict=True)]
    assert torch.equal(ours(x, parameter), torch.cat(one_by_one))


@pytest.mark.parametrize("channels", [2, 4, 12])
def test_colours_of_other_channels_are_left_alone(channels: int) -> None:
    x = torch.rand(5, channels, 6, 7, generator=torch.Generator().manual_seed(0))
    factor = torch.linspace(0, 0.5, 5)
    assert torch.equal(operations.saturation(x, factor), x)
    assert torch.equal(operations.hue(x, factor), x)
    assert torch.equal(operations.grayscale(x), x)
    gray = x.mean((1, 2, 3), keepdim=True)
    mixed = factor[:, None, None, None] * x + (1 - factor[:, None, None, None]) * gray
    torch.testing.assert_close(operations.contrast(x, factor), mixed)
    for i in range(5):  # not even in the last bit
        assert torch.equal(operations.contrast(x[i : i + 1], factor[i : i + 1])[0], operations.contrast(x, factor)[i])
