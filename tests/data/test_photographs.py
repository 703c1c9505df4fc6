"""The quick way from a JPEG to its views: near Pillow's pixels, and Pillow's own judgement of what can be read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ExifTags import Base
from torch import Tensor

from moco_dist.data import photographs, sources
from moco_dist.data.crops import Box, crop_file
from moco_dist.data.decode import decode
from tests.data.made import draws, folder_of

simplejpeg = pytest.importorskip("simplejpeg", reason="the quick decoder is not installed")


def scene(height: int, width: int) -> Image.Image:
    """An image with as much in its fine details as a sharp photograph: each octave of noise is half of the last."""
    rng = np.random.default_rng(0)
    pixels = np.full((height, width, 3), 127.0)
    for octave in range(1, 7):
        coarse = rng.normal(0, 60 / 2**octave, (2**octave + 1, 2**octave + 1, 3))
        planes = [Image.fromarray(coarse[:, :, c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(3)]
        pixels += np.stack([np.asarray(plane) for plane in planes], axis=2)
    return Image.fromarray((pixels + rng.normal(0, 4, pixels.shape)).clip(0, 255).astype(np.uint8))


def saved(path: Path, image: Image.Image, orientation: int = 1, **options: Any) -> Path:
    exif = image.getexif()
    exif[Base.Orientation] = orientation
    image.save(path, "JPEG", **{"quality": 90, "exif": exif, **options})
    return path


def by_pillow(path: Path, boxes: list[Box], size: int, channels: int) -> list[Tensor]:
    (plane,) = decode(path, channels, None)
    return [crop_file(plane, box, size).movedim(0, 2) for box in boxes]


def errors(path: Path, boxes: list[Box], size: int, channels: int = 3) -> list[Tensor]:
    """The difference of each view from Pillow's, in gray levels."""
    views = photographs.crop_views(path, lambda height, width: boxes, size, channels, None)
    theirs = by_pillow(path, boxes, size, channels)
    return [(view.int() - other.int()).abs().float() for view, other in zip(views, theirs, strict=True)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": 1, "progressive": True}, {"quality": 40}])
def test_views_are_pillows_within_a_level(options: dict[str, Any], channels: int, tmp_path: Path) -> None:
    boxes = [(0, 0, 75, 100), (10, 21, 40, 33), (30, 5, 16, 90)]
    for mode in ("RGB", "L"):
        path = saved(tmp_path / f"{mode}.jpg", scene(75, 100).convert(mode), **options)
        with mock.patch.object(photographs, "decode", side_effect=AssertionError("the slow way")):
            views = photographs.crop_views(path, lambda height, width: boxes, 32, channels, None)
        assert [(view.dtype, view.shape) for view in views] == 3 * [(torch.uint8, (32, 32, channels))]
        for error in errors(path, boxes, 32, channels):
            grayed = mode == "RGB" and channels == 1  # libjpeg's luminance is not rounded twice
            assert error.max() <= 1 + grayed and error.mean() < 0.25 + 0.25 * grayed


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("sides", [(400, 528), (401, 527)])
def test_a_large_photograph_is_decoded_reduced_and_upright(
    sides: tuple[int, int], orientation: int, tmp_path: Path
) -> None:
    height, width = sides if orientation < 5 else sides[::-1]
    path = saved(tmp_path / "a.jpg", scene(*sides), orientation)
    boxes = [(0, 0, height, width), (height - 301, width - 305, 301, 305), (45, 47, 299, 293)]
    reductions = list[int]()
    pixels = photographs.Photograph.pixels

    def watched(self: photographs.Photograph, channels: int, reduction: int) -> photographs.Pixels | None:
        reductions.append(reduction)
        return pixels(self, channels, reduction)

    with mock.patch.object(photographs.Photograph, "pixels", watched):
        for error in errors(path, boxes, 48):
            assert error.mean() < 2 and error.quantile(0.99) < 8
    odd = sides == (401, 527)
    assert reductions == [1 if odd and orientation > 1 else 4]


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_a_number_that_is_no_orientation_turns_nothing(orientation: int, tmp_path: Path) -> None:
    path = saved(tmp_path / "odd.jpg", scene(75, 100), orientation)
    photograph = photographs.Photograph.of(path)
    assert photograph and (photograph.height, photograph.width) == (75, 100)
    assert all(error.max() <= 1 for error in errors(path, [(10, 21, 40, 70)], 16))


def test_the_orientation_is_found_behind_a_byte_that_fills(tmp_path: Path) -> None:
    """Any number of 0xFF may stand ahead of a segment. Taken for its kind, it leads far beyond the segment."""
    path = saved(tmp_path / "filled.jpg", scene(75, 100), 6)
    content = path.read_bytes()
    place = content.index(b"\xff\xe1")
    beyond = place + 2 + int.from_bytes(content[place + 1 : place + 3])
    path.write_bytes((content[:place] + b"\xff" + content[place:]).ljust(beyond, b"\0") + b"\xff\xda")
    photograph = photographs.Photograph.of(path)
    assert photograph and (photograph.height, photograph.width) == (100, 75)


def test_crops_are_never_enlarged_by_the_reduction(tmp_path: Path) -> None:
    path, large, small = saved(tmp_path / "a.jpg", scene(400, 520)), (0, 0, 400, 400), (3, 3, 140, 150)
    for boxes, reduction in (([large], 4), ([large, small], 1), ([(0, 0, 144, 144)], 2), ([(0, 0, 400, 143)], 1)):
        photograph = photographs.Photograph.of(path)
        assert photograph and photograph.reduction(boxes, 48) == reduction, boxes
        assert max(errors(path, boxes, 48)[-1].mean() for _ in boxes) < 2


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("sides", [(64, 96), (61, 99)])
def test_both_decoders_give_the_same_pixels(sides: tuple[int, int], subsampling: int) -> None:
    """A run may therefore go on where the quick one is missing."""
    file = io.BytesIO()
    scene(*sides).save(file, "JPEG", subsampling=subsampling)
    for channels in (1, 3):
        for reduction in (1, 2, 4, 8):
            of_both = [
                decoder(file.getvalue(), sides[::-1], channels, reduction)
                for decoder in (photographs.by_turbo, photographs.by_pillow)
            ]
            assert of_both[0].shape == (-(-sides[0] // reduction), -(-sides[1] // reduction), channels)
            np.testing.assert_array_equal(*of_both)


def test_pillow_judges_what_can_be_read(tmp_path: Path) -> None:
    """Whatever is wrong with a file: it is readable where it is for Pillow, and with the same pixels."""
    whole = saved(tmp_path / "a.jpg", scene(48, 64), progressive=True).read_bytes()
    rng, path, boxes = np.random.default_rng(0), tmp_path / "b.jpg", [(3, 4, 40, 50)]
    refused = [0, 0]
    damaged = [whole[: len(whole) * part // 16] for part in range(16)]
    damaged += [whole[:-1], whole[:-2], whole[:-3], whole + b"tail", b"\x89PNG" + whole]
    for place in rng.integers(2, len(whole), 120):
        damaged.append(whole[:place] + bytes(rng.integers(0, 256, 1, dtype=np.uint8)) + whole[place + 1 :])
    for content in damaged:
        path.write_bytes(content)
        try:
            expected = by_pillow(path, boxes, 16, 3)
        except Exception as error:
            refused[0] += 1
            with pytest.raises(type(error)) as caught:
                photographs.crop_views(path, lambda height, width: boxes, 16, 3, None)
            assert str(caught.value) == str(error)
        else:
            views = photographs.crop_views(path, lambda height, width: boxes, 16, 3, None)
            assert (views[0].int() - expected[0].int()).abs().max() <= 1
            refused[1] += 1
    assert min(refused) > 10


def cmyk(path: Path) -> None:
    scene(30, 40).convert("CMYK").save(path, "JPEG")


def png(path: Path) -> None:
    scene(30, 40).save(path, "PNG")


def deep(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 65536, (30, 40)).astype(np.uint16)).save(path, "PNG")


@pytest.mark.parametrize("make", [cmyk, png, deep])
def test_other_images_go_pillows_way(make: Any, tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png"):
        make(tmp_path / name)
        for channels in (1, 3):
            assert errors(tmp_path / name, [(2, 3, 25, 30)], 16, channels)[0].max() <= 1


def test_images_of_many_channels(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (30, 40, 5), dtype=np.uint8)
    np.save(tmp_path / "a.npy", values)
    [view] = photographs.crop_views(tmp_path / "a.npy", lambda height, width: [(2, 3, 16, 16)], 16, 5, None)
    assert torch.equal(view, torch.from_numpy(values[2:18, 3:19]))


def test_data_decode_chooses_the_way(tmp_path: Path) -> None:
    for number in range(2):
        saved(tmp_path / f"{number}.jpg", scene(60, 80))
    ways = {}
    for way in ("cpu", "pillow"):
        data = folder_of(tmp_path, decode=way, image_size=32).data
        source = sources.open_source(folder_of(tmp_path, decode=way, image_size=32), "train")
        with mock.patch.object(photographs, "crop_views", wraps=photographs.crop_views) as quick:
            ways[way], unreadable = source.crops(np.arange(2), draws(2, views=2), data)
        assert quick.called == (way == "cpu") and not unreadable
        for place in range(2):  # whatever else is in a rank's share of the batch
            numbers = draws(2, views=2)[:, place : place + 1]
            assert torch.equal(source.crops(np.array([place]), numbers, data)[0][:, 0], ways[way][:, place])
        assert ways[way].shape == (2, 2, 3, 32, 32)
    difference = (ways["cpu"].int() - ways["pillow"].int()).abs().float()
    assert 0 < difference.mean() < 0.25 and difference.max() == 1
