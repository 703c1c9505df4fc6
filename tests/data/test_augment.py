"""The augmentations against torchvision, one sample at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode

from moco_dist.config.schema import DataSection
from moco_dist.data import augment
from moco_dist.data.augment import Augment, Recipe
from moco_dist.randomness import Stream, uniform

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
DIGITS_RATIO = (3 / 4, 4 / 3)
WARP = {"rotation_degrees": 20, "shear_degrees": 15, "elastic_pixels": 1.5}


def numbers(batch: int, count: int, seed: int = 0) -> np.ndarray:
    return uniform(seed, Stream.VIEW, 0, np.arange(batch), count)


def pixels(batch: int, channels: int, height: int, width: int | None = None, seed: int = 0) -> Tensor:
    """Random uint8 images, each with a black, a white, a gray and some saturated patches, where hue is at an edge."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (batch, channels, height, width or height), generator=generator, dtype=torch.uint8)
    for corner, value in enumerate((0, 255, 128)):
        images[:, :, corner, :2] = value
    images[:, :, 3, :2] = torch.tensor([255, 0, 0][:channels], dtype=torch.uint8)[:, None]
    images[:, :, 3, 2:4] = torch.tensor([10, 200, 200][:channels], dtype=torch.uint8)[:, None]
    return images


def colour_draws(batch: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(numbers(batch, augment.COLOUR_DRAWS, seed))


def recipe(name: str = "v2", **changes: object) -> Recipe:
    return Recipe.of(DataSection.model_validate({"augmentation": name, **changes}))


def alone(probability: float, name: str) -> Recipe:
    """A recipe of one operation, so strong that it is seen (a blur of sigma 0.1 is none)."""
    return replace(
        recipe(blur_sigma=[0.5, 2]), **{"flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0, name: probability}
    )


# -------------------------------------------------------------------------------------------------------------- recipes


def test_recipes_are_the_papers() -> None:
    v1, v2, crop_blur = recipe("v1"), recipe("v2"), recipe("crop_blur")
    assert (v1.flip, v1.jitter, v1.jitter_strength, v1.grayscale, v1.blur) == (0.5, 1, (0.4,) * 4, 0.2, 0)
    assert (v2.flip, v2.jitter, v2.jitter_strength, v2.grayscale, v2.blur) == (0.5, 0.8, (0.4, 0.4, 0.4, 0.1), 0.2, 0.5)
    assert (crop_blur.flip, crop_blur.jitter, crop_blur.grayscale, crop_blur.blur) == (0, 0, 0, 0.5)
    assert v1.grayscale_first and not v2.grayscale_first
    assert v2.crop_scale == (0.2, 1.0) and v2.blur_sigma == (0.1, 2.0)


def test_the_config_overrides_the_recipe() -> None:
    changed = recipe("v1", blur_probability=0.25, crop_scale=[0.5, 0.9], crop_ratio=[1, 2], blur_sigma=[1, 3])
    assert (changed.blur, changed.crop_scale, changed.crop_ratio, changed.blur_sigma) == (
        0.25,
        (0.5, 0.9),
        (1, 2),
        (1, 3),
    )
    assert recipe("v2", blur_probability=0.0).blur == 0
    warped = recipe("crop_blur", **WARP)
    assert (warped.rotation, warped.shear, warped.elastic) == (20, 15, 1.5)


def test_labels_are_learnt_from_gentler_views() -> None:
    v2 = recipe("v2", **WARP, crop_scale=[0.2, 0.8]).gentler()
    assert (v2.crop_scale, v2.rotation, v2.shear, v2.elastic) == ((0.6, 0.9), 10, 7.5, 0.75)
    assert (v2.jitter, v2.grayscale, v2.blur, v2.flip) == (0, 0, 0, 0.5)


# ---------------------------------------------------------------------------------------------------------------- crops


def box_oracle(draws: list[float], height: int, width: int, scale: tuple, ratio: tuple) -> list[int]:
    """RandomResizedCrop.make_params of torchvision, line by line, with given random numbers."""
    for t in range(10):
        u_area, u_ratio, u_top, u_left = draws[4 * t : 4 * t + 4]
        target_area = height * width * (scale[0] + (scale[1] - scale[0]) * u_area)
        log_ratio = math.log(ratio[0]), math.log(ratio[1])
        aspect = np.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * u_ratio)  # math.exp may round otherwise
        w, h = round(math.sqrt(target_area * aspect)), round(math.sqrt(target_area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return [int(u_top * (height - h + 1)), int(u_left * (width - w + 1)), h, w]
    if width / height < min(ratio):
        w, h = width, round(width / min(ratio))
    elif width / height > max(ratio):
        w, h = round(height * max(ratio)), height
    else:
        w, h = width, height
    h, w = max(h, 1), max(w, 1)  # torchvision would return an empty crop of an image of some pixels
    return [(height - h) // 2, (width - w) // 2, h, w]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    sides=st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500)), min_size=1, max_size=8),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.5, 2), st.floats(0.5, 2)).map(sorted),
)
@example(seed=0, sides=[(10, 400), (400, 10), (32, 32)], scale=[0.9, 1.0], ratio=[3 / 4, 4 / 3])
def test_crop_boxes_are_torchvisions(seed: int, sides: list, scale: list, ratio: list) -> None:
    draws = numbers(len(sides), augment.CROP_DRAWS, seed)
    heights, widths = np.array(sides).T
    boxes = augment.crop_boxes(draws, heights, widths, tuple(scale), tuple(ratio))
    oracle = [box_oracle(d, h, w, tuple(scale), tuple(ratio)) for d, (h, w) in zip(draws.tolist(), sides, strict=True)]
    assert boxes.dtype == np.int64
    np.testing.assert_array_equal(boxes, oracle)
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all()
    assert (top + height <= heights).all() and (left + width <= widths).all()


def test_a_later_try_is_taken_where_the_first_does_not_fit() -> None:
    draws = np.full((1, augment.CROP_DRAWS), 0.999, dtype=np.float32)  # the whole area at the widest ratio: never fits
    draws[0, 4 * 6 : 4 * 7] = 0.25, 0.5, 0.0, 0.999  # but the seventh does
    side = np.array([100])
    np.testing.assert_array_equal(
        augment.crop_boxes(draws, side, side, (0.2, 1.0), DIGITS_RATIO), [[0, 100 - 63, 63, 63]]
    )


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(10, 100, [0, 43, 10, 13]), (100, 10, [43, 0, 13, 10]), (30, 30, [0, 0, 30, 30])],
)
def test_the_fallback_is_the_central_crop(height: int, width: int, box: list[int]) -> None:
    draws = np.full((1, augment.CROP_DRAWS), 0.9999, dtype=np.float32)
    boxes = augment.crop_boxes(draws, np.array([height]), np.array([width]), (0.9, 1.0), DIGITS_RATIO)
    np.testing.assert_array_equal(boxes, [box])


def test_crops_cover_their_interval() -> None:
    side = np.full(4000, 200)
    _, left, height, width = augment.crop_boxes(
        numbers(4000, augment.CROP_DRAWS), side, side, (0.2, 0.5), DIGITS_RATIO
    ).T
    area = height * width / 200**2
    assert area.min() == pytest.approx(0.2, abs=0.01) and area.max() == pytest.approx(0.5, abs=0.01)
    assert area.mean() == pytest.approx(0.35, abs=0.01)
    assert np.log(width / height).mean() == pytest.approx(0, abs=0.02)
    assert (left / (200 - width)).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "size"), [(28, 28, 28), (32, 32, 32), (33, 21, 17), (96, 64, 16), (9, 11, 24)]
)
def test_resized_crop_is_torchvisions(channels: int, height: int, width: int, size: int) -> None:
    images, batch = pixels(16, channels, height, width), 16
    sides = np.full(batch, height), np.full(batch, width)
    boxes = augment.crop_boxes(numbers(batch, augment.CROP_DRAWS), *sides, (0.1, 1.0), (0.5, 2.0))
    out = augment.resized_crop(images, boxes, size)
    assert out.shape == (batch, channels, size, size) and out.dtype == torch.uint8
    top, left, h, w = torch.from_numpy(boxes).double().unbind(1)
    rows, cols = augment.interpolation(top, h, height, size), augment.interpolation(left, w, width, size)
    exact = augment.separable(rows, images.double(), cols)
    for i, box in enumerate(boxes.tolist()):
        theirs = tv.resized_crop(images[i].float(), *box, [size, size], antialias=True)
        torch.testing.assert_close(exact[i].float(), theirs, atol=1e-3, rtol=0)
        assert (out[i] - theirs).abs().max() < 0.501
        levels = tv.resized_crop(images[i], *box, [size, size], antialias=True)
        assert (out[i].int() - levels.int()).abs().max() <= 1


def test_a_crop_of_the_same_size_is_copied() -> None:
    images = pixels(2, 3, 20)
    out = augment.resized_crop(images, np.array([[3, 5, 12, 12], [8, 0, 12, 12]]), 12)
    assert torch.equal(out, torch.stack([images[0, :, 3:15, 5:17], images[1, :, 8:20, 0:12]]))


def picture(channels: int, height: int, width: int) -> Image.Image:
    array = pixels(1, channels, height, width)[0].permute(1, 2, 0).numpy()
    return Image.fromarray(array.squeeze(-1) if channels == 1 else array)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("box", [(5, 7, 40, 30), (0, 0, 50, 60), (20, 11, 16, 16), (30, 40, 3, 9)])
def test_crop_file_is_torchvisions(channels: int, box: tuple[int, ...]) -> None:
    image = picture(channels, 50, 60)
    out = augment.crop_file(image, np.array(box), 16)
    assert out.dtype == torch.uint8 and out.is_contiguous()
    assert torch.equal(out, tv.pil_to_tensor(tv.resized_crop(image, *box, [16, 16], antialias=True)))


def test_files_and_arrays_are_cropped_alike() -> None:
    image, box = picture(3, 50, 60), np.array([[5, 7, 40, 30]])
    array = augment.resized_crop(tv.pil_to_tensor(image)[None], box, 16)[0]
    assert (array.int() - augment.crop_file(image, box[0], 16).int()).abs().max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width", "size"), [(50, 67, 16), (301, 200, 224), (8, 8, 8), (30, 99, 28)])
def test_centre_is_torchvisions(channels: int, height: int, width: int, size: int) -> None:
    image = picture(channels, height, width)
    theirs = tv.center_crop(tv.resize(image, [round(size * 256 / 224)], antialias=True), [size, size])
    assert torch.equal(augment.centre(image, size), tv.pil_to_tensor(theirs))


def test_centre_batch() -> None:
    images = pixels(3, 3, 28)
    assert augment.centre_batch(images, 28) is images
    resized = augment.centre_batch(images, 20)
    assert (resized - tv.resize(images.float(), [20, 20], antialias=True)).abs().max() < 0.501
    wide = pixels(3, 1, 28, 40)
    assert torch.equal(augment.centre_batch(wide, 28), wide[:, :, :, 6:34])


# -------------------------------------------------------------------------------------------- operations, one at a time

JITTER = [
    (augment.brightness, tv.adjust_brightness, (0.0, 2.0)),
    (augment.contrast, tv.adjust_contrast, (0.0, 2.0)),
    (augment.saturation, tv.adjust_saturation, (0.0, 2.0)),
    (augment.hue, tv.adjust_hue, (-0.5, 0.5)),
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
    if channels == 3 or ours in (augment.brightness, augment.contrast):
        assert not torch.allclose(expected, x, atol=0.1)


@pytest.mark.parametrize("channels", [1, 3])
def test_grayscale_and_flip_are_torchvisions(channels: int) -> None:
    x = pixels(5, channels, 13, 7) / 255
    torch.testing.assert_close(augment.grayscale(x), tv.rgb_to_grayscale(x, channels), atol=1e-5, rtol=0)
    assert torch.equal(augment.flip(x), tv.horizontal_flip(x))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "radius"), [(8, 8, 6), (8, 8, 7), (13, 9, 3), (32, 32, 6), (33, 40, 12), (5, 5, 0)]
)
def test_blur_is_torchvisions(height: int, width: int, radius: int, channels: int) -> None:
    x = pixels(6, channels, height, width) / 255
    sigmas = torch.linspace(0.1, 4.0, 6)
    expected = [tv.gaussian_blur(i, [2 * radius + 1] * 2, [float(s)]) for i, s in zip(x, sigmas, strict=True)]
    torch.testing.assert_close(augment.blur(x, sigmas, radius), torch.stack(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 40)])
def test_warp_is_torchvisions(height: int, width: int) -> None:
    x = torch.zeros(6, 3, height, width)
    x[:, :, 10:-10, 10:-10] = torch.rand(6, 3, height - 20, width - 20)  # far from the edge, which is filled otherwise
    rotation, shear = torch.linspace(-20, 20, 6), torch.tensor([0.0, 15, -15, 0, 10, -5])
    still = torch.zeros(6, 2, augment.WARP_GRID, augment.WARP_GRID)
    bilinear = InterpolationMode.BILINEAR
    expected = [
        tv.affine(image, float(r), [0, 0], 1.0, [float(s), 0], interpolation=bilinear)
        for image, r, s in zip(x, rotation, shear, strict=True)
    ]
    torch.testing.assert_close(augment.warp(x, rotation, shear, still), torch.stack(expected), atol=1e-4, rtol=0)
    shifts = 4 * torch.rand(6, 2, augment.WARP_GRID, augment.WARP_GRID) - 2
    field = F.interpolate(shifts, (height, width), mode="bicubic", align_corners=True)
    field = field * (2 / torch.tensor([width, height]))[:, None, None]
    bent = [tv.elastic(i, f.permute(1, 2, 0)[None], interpolation=bilinear) for i, f in zip(x, field, strict=True)]
    out = augment.warp(x, torch.zeros(6), torch.zeros(6), shifts)
    torch.testing.assert_close(out, torch.stack(bent), atol=1e-4, rtol=0)
    assert (out - x).abs().max() > 0.1


def test_what_comes_from_outside_repeats_the_edge() -> None:
    gray = torch.full((2, 1, 12, 12), 0.7)
    out = augment.warp(gray, torch.tensor([30.0, 5]), torch.tensor([0.0, 30]), torch.full((2, 2, 4, 4), 3.0))
    torch.testing.assert_close(out, gray)


def test_warps_are_drawn_up_to_their_limits() -> None:
    images, draws = pixels(1, 1, 28).expand(3, -1, -1, -1), torch.full((3, augment.COLOUR_DRAWS), 0.5)
    draws[1, 13], draws[2, 14] = 0, 0.75
    still = replace(recipe("crop_blur", **WARP), blur=0.0)
    out = Augment(still, MEAN[:1], STD[:1])(images, draws)
    plain = images / 255
    no_shift, zero = torch.zeros(1, 2, 4, 4), torch.zeros(1)
    turned = augment.warp(plain[:1], torch.tensor([-20.0]), zero, no_shift)
    slanted = augment.warp(plain[:1], zero, torch.tensor([7.5]), no_shift)
    expected = tv.normalize(torch.cat([plain[:1], turned, slanted]), MEAN[:1], STD[:1])
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)


def test_hue_at_the_edges_of_the_sextants() -> None:
    levels = torch.tensor([0.0, 0.5, 1.0])
    x = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 3, 9).expand(13, -1, -1, -1)
    shifts = torch.arange(-6, 7) / 12
    expected = torch.stack([tv.adjust_hue(image, float(s)) for image, s in zip(x, shifts, strict=True)])
    torch.testing.assert_close(augment.hue(x, shifts), expected, atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------------------------------ the whole


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
    boxes = augment.crop_boxes(numbers(batch, augment.CROP_DRAWS), sides, sides, (0.2, 1.0), DIGITS_RATIO)
    augmentation = Augment(recipe(**WARP), MEAN[:channels], STD[:channels])
    crops = augment.resized_crop(images, boxes, size)
    whole = augmentation(crops, draws)
    everyone = torch.arange(batch)
    for subset in (*everyone.split(1), *everyone.split(3), *everyone.split(batch // 2), everyone.flip(0)):
        assert torch.equal(augment.resized_crop(images[subset], boxes[subset.numpy()], size), crops[subset])
        assert torch.equal(augmentation(crops[subset], draws[subset]), whole[subset])


@pytest.mark.parametrize("ours", [augment.contrast, augment.hue, lambda x, s: augment.blur(x, 1 + s, 6)])
def test_nor_does_a_large_image(ours: Callable) -> None:
    x, parameter = pixels(3, 3, 224) / 255, torch.tensor([0.1, 0.2, 0.4])  # kernels use several threads for it
    one_by_one = [ours(image, p) for image, p in zip(x.split(1), parameter.split(1), strict=True)]
    assert torch.equal(ours(x, parameter), torch.cat(one_by_one))


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
        Augment(recipe(), MEAN, STD)(pixels(4, 3, 8), torch.rand(4, augment.DRAWS))
