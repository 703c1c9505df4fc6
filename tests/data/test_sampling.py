"""A sample of the images is measured ahead of a run: ranges of values, sizes, pixel statistics."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moco_dist.data import sources
from moco_dist.data.pixel_statistics import PIXEL_STATISTICS
from moco_dist.errors import UserError
from tests.data.made import config_of, draw, draws, folder_of

RNG = np.random.default_rng(0)


def folder(root: Path, values: np.ndarray, suffix: str = "png") -> Path:
    """Write images [N, ...] as files; train/ and val/ have one class each, and val/ the last image."""
    for n, image in enumerate(values):
        place = root / ("val" if n == len(values) - 1 else "train") / "a"
        place.mkdir(parents=True, exist_ok=True)
        if suffix == "npy":
            np.save(place / f"{n:03}.npy", image)
        else:
            Image.fromarray(image).save(place / f"{n:03}.{suffix}")
    return root


def levels(low: float, high: float, kind: Any, count: int = 4) -> np.ndarray:
    return np.linspace(low, high, count * 100).reshape(count, 10, 10).astype(kind)


@pytest.mark.parametrize(
    ("values", "suffix", "value_range", "note"),
    [
        (levels(0, 65535, np.uint16), "png", None, ""),
        (levels(0, 4095, np.uint16), "png", None, r"\[0, 65535\]: .* hold 0 to 4095, under an eighth"),
        (levels(60000, 65535, np.uint16), "tif", None, "hold 60000 to 65535, under an eighth of it"),
        (levels(0, 4095, np.uint16), "png", (0, 4095), ""),
        (levels(0, 255, np.int32), "tif", None, "hold 0 to 255, under an eighth of it"),
        (levels(0, 1, np.float32), "tif", None, ""),
        (levels(0, 0.1, np.float32), "npy", None, r"\[0, 1\]: .* hold 0 to 0.1, under an eighth of it"),
        (levels(-3, 9, np.float32), "npy", (0, 9), "hold -3 to 9, and what is beyond is cut off"),
        (levels(0, 20, np.uint8), "png", None, ""),
        (levels(0, 20, np.uint8), "npy", None, ""),
    ],
)  # fmt: skip
def test_a_doubtful_range_is_told(
    tmp_path: Path, values: np.ndarray, suffix: str, value_range: tuple[float, float] | None, note: str
) -> None:
    notes = sources.load(folder_of(folder(tmp_path, values, suffix), value_range=value_range)).remarks
    assert len(notes) == bool(note)
    assert all(re.search(note, line) for line in notes)


@pytest.mark.parametrize("spoilt", [0, -2, -1])  # -1 is held out
@pytest.mark.parametrize("value", [1.5, -0.5, np.nan, np.inf])
def test_floats_beyond_their_range_end_the_run_at_its_start(tmp_path: Path, spoilt: int, value: float) -> None:
    values = levels(0, 1, np.float32)
    values[spoilt, 3, 3] = value
    with pytest.raises(
        UserError, match=r"data.value_range = null: .*\.tif (has values|holds).*=\[LOW,HIGH\]"
    ) as caught:
        sources.load(folder_of(folder(tmp_path, values, "tif")))
    assert "\n" not in str(caught.value)
    if np.isfinite(value):
        assert sources.load(folder_of(tmp_path, value_range=[-1, 2])).remarks == ()


def test_floats_beyond_their_range_that_are_met_later_are_unreadable(tmp_path: Path) -> None:
    values = levels(0, 1, np.float32, count=200)
    values[5] = 7
    source = sources.load(folder_of(folder(tmp_path, values, "tif"))).train
    _, [image] = source.crops(np.arange(4, 7), draws(3), folder_of(tmp_path).data)
    assert image.name.endswith("005.tif") and image.reason == "has values from 7 to 7, beyond 0 to 1"


def test_small_images_are_enlarged_on_request(tmp_path: Path) -> None:
    for n in range(3):
        draw(tmp_path / f"{n}.png", 50, side=5, width=7)
    with pytest.raises(UserError, match=r"5 pixels a side.*use data.image_size=5 or less, or data.enlarge=true"):
        sources.load(folder_of(tmp_path))
    enlarging = folder_of(tmp_path, enlarge=True)
    source = sources.load(enlarging).train
    assert (source.centred(np.arange(3), 8)[0] == 50).all()
    assert (source.crops(np.arange(3), draws(3), enlarging.data)[0] == 50).all()
    with pytest.raises(UserError, match=r"data.enlarge=true"):
        sources.load(config_of(image_size=12))
    digits = sources.load(config_of(image_size=12, enlarge=True)).train
    assert digits.centred(np.arange(3), 12)[0].shape == (3, 1, 12, 12)


@pytest.mark.parametrize("channels", [2, 4, 5])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_statistics_of_other_channels_are_measured(tmp_path: Path, channels: int, kind: type) -> None:
    values = RNG.integers(0, 256, (20, 9, 12, channels), dtype=np.uint8) // np.arange(1, channels + 1, dtype=np.uint8)
    values[..., 0] = 7  # a channel that tells nothing
    scaled = values * (kind(257) if kind is np.uint16 else kind(1))
    run = folder_of(folder(tmp_path, scaled, "npy"), channels=channels)
    data = sources.load(run)
    mean, std = data.train.pixel_statistics
    train = values[:-1] / 255
    np.testing.assert_allclose(mean, train.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(std[1:], train.std((0, 1, 2))[1:], atol=1e-4)
    assert std[0] == pytest.approx(1 / 255, abs=1e-4)
    assert data.remarks == (
        f"data.channels = {channels}: saturation, hue and grayscale are for colour, and are left out",
    )
    kept = sources.with_statistics(run, data.train)
    assert (kept.data.mean, kept.data.std) == (mean, std)
    for path in (tmp_path / "train" / "a").iterdir():
        path.write_bytes(b"")
    assert sources.load(kept).train.pixel_statistics == (mean, std)  # as an evaluation finds them, whatever the images
    with pytest.raises(UserError, match=rf"data.channels = {channels}: no image could be read of 19; .*000.npy: "):
        sources.load(run)


def test_statistics_that_are_given(tmp_path: Path) -> None:
    draw(tmp_path / "0.png", 50), draw(tmp_path / "1.png", 50)
    for gray, numbers in ((3, (0.1, 0.2, 0.3)), (1, (0.5,))):
        run = folder_of(tmp_path, channels=gray, mean=numbers, std=numbers)
        assert sources.load(run).train.pixel_statistics == (numbers, numbers)
    assert sources.load(folder_of(tmp_path)).train.pixel_statistics == PIXEL_STATISTICS["colour"]
    assert sources.load(config_of(mean=[0.4], std=[0.3])).train.pixel_statistics == ((0.4,), (0.3,))
    run = folder_of(tmp_path)
    assert sources.with_statistics(run, sources.load(run).train) is run


def test_images_of_the_wrong_number_of_channels(tmp_path: Path) -> None:
    run = folder_of(folder(tmp_path, RNG.integers(0, 256, (4, 9, 9, 3), dtype=np.uint8)), channels=5)
    with pytest.raises(UserError, match=r"png: has 3 channels as PIL reads it, not 5.*\.npy"):
        sources.load(run)


@pytest.mark.parametrize("channels", [2, 5])
def test_synthetic_images_of_other_channels(channels: int) -> None:
    train = sources.load(config_of(source="synthetic", samples=40, channels=channels)).train
    images = train.centred(np.arange(40), 8)[0] / 255
    mean, std = train.pixel_statistics
    np.testing.assert_allclose(images.mean((0, 2, 3)), mean, atol=0.03)
    np.testing.assert_allclose(images.std((0, 2, 3)), std, atol=0.03)
