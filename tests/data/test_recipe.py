"""The recipes are the papers', changed as the config says."""

from __future__ import annotations

from tests.data.made import recipe
from tests.views import WARP


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
