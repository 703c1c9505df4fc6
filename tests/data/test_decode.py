"""Files are decoded to pixels: depth, orientation, palettes, channels, and decoders that fail."""

from __future__ import annotations

import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.ExifTags import Base

from moco_dist.data.decode import RangeError, Unreadable, decode, eight_bits
from moco_dist.data.image_file import shorter_side
from tests.data.made import damaged_avif

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (6, 9)).astype(np.uint16)


def pixels(path: Path, channels: int = 1, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """Decode to [H, W] or [H, W, C]."""
    return np.concatenate([np.asarray(plane) for plane in decode(path, channels, value_range)], axis=-1)


def saved(path: Path, values: np.ndarray, **options: Any) -> Path:
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path, **options)
    return path


def big_endian(path: Path, values: np.ndarray) -> Path:
    Image.frombytes("I;16B", values.shape[::-1], values.astype(">u2").tobytes()).save(path)
    return path


@pytest.mark.parametrize(
    "save",
    [
        lambda root: saved(root / "a.png", DEEP),
        lambda root: saved(root / "a.tif", DEEP),
        lambda root: big_endian(root / "a.tif", DEEP),
        lambda root: saved(root / "a.pgm", DEEP),  # opens in mode I
        lambda root: saved(root / "a.tiff", DEEP.astype(np.int32)),
        lambda root: saved(root / "a.npy", DEEP),
        lambda root: saved(root / "b.npy", DEEP.astype(">u2")),
        lambda root: saved(root / "c.npy", DEEP.astype(np.int64)),
    ],
)
def test_sixteen_bits_are_scaled(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    path, expected = save(tmp_path), np.rint(DEEP / 257)
    np.testing.assert_array_equal(pixels(path), expected)
    np.testing.assert_array_equal(pixels(path, 3), np.repeat(expected[:, :, None], 3, axis=2))
    twelve = np.rint(np.clip(DEEP / 4095, 0, 1) * 255)
    assert np.abs(pixels(path, 1, (0, 4095)) - twelve).max() <= 1 and (twelve < 255).any()


@pytest.mark.parametrize("suffix", ["tif", "npy"])
def test_floats_from_0_to_1_are_scaled(tmp_path: Path, suffix: str) -> None:
    values = RNG.random((6, 9)).astype(np.float32)
    values[0, :2] = 0, 1
    path = saved(tmp_path / f"a.{suffix}", values)
    np.testing.assert_array_equal(pixels(path), np.rint(255 * values))
    np.testing.assert_array_equal(pixels(path, 1, (-1, 1)), np.rint(127.5 * (values + 1)))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[0, 300.5]], np.float32), "has values from 0 to 300.5, beyond 0 to 1"),
        (np.array([[-0.1, 1]]), "has values from -0.1 to 1, beyond 0 to 1"),
        (np.array([[0, np.nan]], np.float16), "not finite"),
        (np.array([[-np.inf, 0]], np.float32), "not finite"),
        (np.array([[0, 65536]], np.int32), "has values from 0 to 65536, beyond 0 to 65535"),
        (np.array([[-1, 65535]], np.int32), "has values from -1 to 65535"),
        (np.array([[1j]]), "no real numbers"),
        (np.array([["a"]]), "no real numbers"),
    ],
)
def test_values_out_of_range_are_refused(values: np.ndarray, reason: str) -> None:
    with pytest.raises(RangeError, match=reason):
        eight_bits(values, None)
    if values.dtype.kind in "if" and np.isfinite(values).all():
        assert eight_bits(values, (-1, 1e6)).shape == values.shape


@given(low=st.integers(-(2**31), 2**31 - 2000), kind=st.sampled_from([np.int32, np.int64, np.float64]))
def test_a_large_offset_costs_no_level(low: int, kind: type) -> None:
    levels = np.arange(256)
    np.testing.assert_array_equal(eight_bits((low + 4 * levels).astype(kind), (low, low + 4 * 255)), levels)


def test_eight_bits_are_left_alone() -> None:
    values = RNG.integers(0, 256, (4, 5), dtype=np.uint8)
    assert eight_bits(values, (0, 4095)) is values
    np.testing.assert_array_equal(eight_bits(values > 99, None), 255 * (values > 99))


def deep_png(path: Path, values: np.ndarray) -> Path:
    """Write 16-bit colour, which PIL does not."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = values.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 2: 4, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bit_colour_has_its_upper_bits(tmp_path: Path, channels: int) -> None:
    values = RNG.integers(0, 65536, (6, 9, channels)).astype(np.uint16)
    path = deep_png(tmp_path / "a.png", values)
    shown = values[:, :, :3] if channels > 2 else np.repeat(values[:, :, :1], 3, axis=2)
    np.testing.assert_array_equal(pixels(path, 3), shown // 256)
    with pytest.raises(RangeError, match=r"16 bits a channel, of which PIL reads 8.*\.npy"):
        decode(path, 3, (0, 4095))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_images_are_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    image, path = Image.fromarray(RNG.integers(0, 256, (8, 16, 3), dtype=np.uint8)), tmp_path / f"a.{suffix}"
    exif = image.getexif()
    exif[Base.Orientation] = orientation
    image.save(path, exif=exif)
    with Image.open(path) as opened:
        upright = ImageOps.exif_transpose(opened)
    np.testing.assert_array_equal(pixels(path, 3), np.asarray(upright.convert("RGB")))
    assert decode(path, 3, None)[0].size == ((16, 8) if orientation < 5 else (8, 16))
    np.testing.assert_array_equal(pixels(path, 1), np.asarray(upright.convert("L")))
    assert shorter_side(path) == 8


def test_damaged_metadata_leave_the_pixels(tmp_path: Path) -> None:
    image, path = Image.fromarray(RNG.integers(0, 256, (8, 16, 3), dtype=np.uint8)), tmp_path / "a.jpg"
    for exif in (b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01", b"Exif\0\0"):
        image.save(path, exif=exif)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert pixels(path, 3).shape == (8, 16, 3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "YCbCr"])
def test_ordinary_images_are_as_pil_converts_them(tmp_path: Path, mode: str, channels: int) -> None:
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    Image.fromarray(RNG.integers(0, 256, (9, 7, 4), dtype=np.uint8)).convert("RGB").convert(mode).save(path)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    np.testing.assert_array_equal(pixels(path, channels), expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("transparency", [b"\0\x80\xff", 2])
def test_palettes_with_transparency_warn_nobody(tmp_path: Path, transparency: Any, channels: int) -> None:
    palette, path = Image.fromarray(RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)).quantize(8), tmp_path / "a.png"
    palette.save(path, transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as image:
            expected = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(pixels(path, channels), expected)


@pytest.mark.parametrize("channels", [2, 4, 5, 12])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_arrays_of_other_channels(tmp_path: Path, channels: int, kind: type) -> None:
    levels = RNG.integers(0, 256, (14, 17, channels))
    values = levels / np.float32(255) if kind is np.float32 else levels * (257 if kind is np.uint16 else 1)
    for values_as_saved in (values, values.transpose(2, 0, 1)):
        path = saved(tmp_path / "a.npy", np.ascontiguousarray(values_as_saved.astype(kind)))
        planes = decode(path, channels, None)
        np.testing.assert_array_equal(np.stack([np.asarray(plane) for plane in planes], axis=2), levels)
        assert shorter_side(path) == 14
    with pytest.raises(ValueError, match=rf"\[14, 17, {channels}\], not 7 channels"):
        decode(saved(path, values), 7, None)
    with pytest.raises(ValueError, match=r"not 3 channels as data.channels says"):
        decode(path, 3, None)


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (1, 9, 7), (9, 7, 3), (3, 9, 7)])
def test_arrays_of_gray_and_colour(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = RNG.integers(0, 256, shape, dtype=np.uint8)
    path = saved(tmp_path / "a.npy", values)
    last = values.transpose(1, 2, 0) if shape[0] in (1, 3) else values
    image = Image.fromarray(last.squeeze(2) if last.shape[2:] == (1,) else last)
    for channels, mode in ((1, "L"), (3, "RGB")):
        np.testing.assert_array_equal(pixels(path, channels), np.asarray(image.convert(mode)))


@pytest.mark.parametrize(("mode", "channels"), [("LA", 2), ("RGBA", 4), ("CMYK", 4)])
def test_images_of_two_and_four_channels(tmp_path: Path, mode: str, channels: int) -> None:
    values = RNG.integers(0, 256, (9, 7, channels), dtype=np.uint8)
    path = tmp_path / "a.tif"
    Image.frombytes(mode, (7, 9), values.tobytes()).save(path)
    planes = decode(path, channels, None)
    np.testing.assert_array_equal(np.stack([np.asarray(plane) for plane in planes], axis=2), values)
    with pytest.raises(ValueError, match=rf"has {channels} channels as PIL reads it, not 6 .* saved as \.npy"):
        decode(path, 6, None)


def huge(path: Path) -> None:
    """An array that claims more pixels than an image may have; its content is a hole in the file."""
    np.lib.format.open_memmap(path.with_suffix(".npy"), mode="w+", dtype=np.uint8, shape=(20_000, 20_000))
    path.with_suffix(".npy").rename(path)


def pickled(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([[{}]]), allow_pickle=True)


def archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, np.zeros((2, 2)))


def cut_short(path: Path) -> None:
    np.save(path, np.zeros((10, 10)))
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("a.jpg", damaged_avif, "."),
        ("a.npy", huge, "has 400000000 pixels, more than"),
        ("a.npy", pickled, "Python objects"),
        ("a.npy", cut_short, ""),
        ("a.npy", lambda path: np.save(path, np.zeros(9)), r"has the shape \[9\]; save \[H, W\]"),
        ("a.npy", lambda path: path.write_bytes(b""), ""),
        ("a.npy", archive, "magic"),
        ("a.png", lambda path: path.write_bytes(b"no image"), "cannot identify image file$"),
        ("a.png", lambda path: None, "No such file"),
    ],
)
def test_what_cannot_be_read_has_a_reason(tmp_path: Path, name: str, make: Callable[[Path], Any], reason: str) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(Exception) as caught:
        decode(path, 3, None)
    assert not isinstance(caught.value, MemoryError)
    unreadable = Unreadable.of(path, caught.value)
    assert str(unreadable) == f"{path}: {unreadable.reason}" and str(tmp_path) not in unreadable.reason
    assert re.search(reason, unreadable.reason), unreadable
    assert shorter_side(path) is None or name != "a.png"


@pytest.mark.parametrize(("mode", "suffix"), [("LAB", "tif"), ("CMYK", "tif"), ("YCbCr", "tif"), ("PA", "png")])
def test_colours_of_any_kind_become_gray(mode: str, suffix: str, tmp_path: Path) -> None:
    """PIL converts some modes into colour alone."""
    image = Image.new("RGB", (4, 4), (250, 250, 250))
    if mode == "LAB":
        image = Image.new("LAB", (4, 4), (250, 128, 128))
    elif mode == "PA":
        image = image.convert("RGBA").quantize()
    else:
        image = image.convert(mode)
    path = tmp_path / f"image.{suffix}"
    image.save(path)
    for channels in (1, 3):
        (plane,) = decode(path, channels, None)
        assert np.asarray(plane).mean() > 240


def test_a_name_is_told_on_one_line() -> None:
    message = str(Unreadable.of(os.fsdecode(b"new\nline\xff.png"), ValueError("broken")))
    assert message == "new?line?.png: broken"
