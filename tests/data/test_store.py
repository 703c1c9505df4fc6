"""The stores: crops of arrays and files, and what takes the place of a file that cannot be read."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from moco_dist.data import sources
from moco_dist.data.store import FileSource
from moco_dist.errors import UserError
from tests.data.made import config_of, draw, draws, folder_of, values


def test_crops_of_a_batch_are_those_of_each_image_and_view() -> None:
    source, data = sources.load(config_of()).train, config_of().data
    indices, numbers = np.array([5, 3, 700, 3]), draws(4, views=2)
    together, unreadable = source.crops(indices, numbers, data)
    assert together.shape == (2, 4, 1, 8, 8)
    assert not unreadable
    for view in range(2):
        for i, index in enumerate(indices):
            [[alone]] = source.crops(np.array([index]), numbers[view : view + 1, i : i + 1], data)[0]
            assert torch.equal(alone, together[view, i])
    assert not torch.equal(together[0, 1], together[0, 3])  # other draws, another crop
    assert not torch.equal(together[0, 1], together[1, 1])


def test_a_file_is_decoded_once_for_both_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for n in range(3):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / f"{n}.png")
    (tmp_path / "1.png").write_bytes(b"no png")
    source, data, opened = sources.load(folder_of(tmp_path)).train, folder_of(tmp_path).data, list[str]()
    monkeypatch.setattr(Image, "open", lambda path, open_=Image.open: opened.append(path.name) or open_(path))
    indices, numbers = np.array([2, 1]), draws(2, views=2)
    together, unreadable = source.crops(indices, numbers, data)
    assert opened == ["2.png", "1.png", "2.png"]  # the last in place of the second
    assert [image.name for image in unreadable] == [str(tmp_path / "1.png")]
    for view in range(2):
        alone, replaced = source.crops(indices, numbers[view : view + 1], data)
        assert torch.equal(alone[0], together[view])
        assert replaced == unreadable
    assert not torch.equal(together[0], together[1])


def test_grayscale(tree: Path) -> None:
    source = sources.load(folder_of(tree, channels=1)).train
    assert source.channels == 1
    assert source.centred(np.arange(5), 8)[0].shape == (5, 1, 8, 8)
    assert len(source.pixel_statistics[0]) == 1


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16", "1", "LA"])
def test_every_kind_of_image_becomes_colour(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode in ("CMYK", "I;16") else "png"
    image = Image.new("L", (16, 12), 200)
    for n in range(2):
        (image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)).save(tmp_path / f"{n}.{suffix}")
    images, unreadable = sources.load(folder_of(tmp_path)).train.centred(np.arange(2), 8)
    assert images.shape == (2, 3, 8, 8)
    assert not unreadable


def broken(root: Path) -> None:
    for n in range(3):
        (root / f"{n}.png").write_bytes(b"no png")


def test_folders_without_a_readable_image(tmp_path: Path) -> None:
    broken(tmp_path)
    with pytest.raises(UserError, match="none of its 3 images can be decoded; mend the files"):
        sources.load(folder_of(tmp_path)).train.centred(np.arange(1), 8)


def cut_short(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def huge_header(path: Path) -> None:
    """A PNG that claims 40000 x 40000 pixels: a decompression bomb to PIL."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "png")
    content = bytearray(file.getvalue())
    content[16:24] = (40_000).to_bytes(4, "big") * 2
    path.write_bytes(content)


CORRUPTIONS: list[Callable[[Path], Any]] = [
    cut_short,
    huge_header,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(40)),
    lambda path: path.write_text("<html>404</html>"),
    lambda path: path.unlink(),
]


@pytest.mark.parametrize("corrupt", CORRUPTIONS)
def test_an_unreadable_image_is_replaced_by_the_next_and_named(tree: Path, corrupt: Callable[[Path], Any]) -> None:
    source = sources.load(folder_of(tree)).train
    assert isinstance(source, FileSource)
    for name in ("20.jpg", "30.jpg"):  # two in a row
        corrupt(tree / "train" / "cat" / name)
    names = [str(tree / "train" / "cat" / name) for name in ("20.jpg", "30.jpg")]
    images, unreadable = source.centred(np.array([0, 1, 4]), 8)
    assert values(images) == [10, 100, 110]
    assert [image.name for image in unreadable] == names
    assert all(image.reason for image in unreadable)
    images, unreadable = source.crops(np.array([2, 0]), draws(2), folder_of(tree).data)
    assert values(images[0]) == [100, 10]
    assert [image.name for image in unreadable] == names[1:]


def test_the_last_image_is_followed_by_the_first(tree: Path) -> None:
    source = sources.load(folder_of(tree)).train
    (tree / "train" / "dog" / "deeper" / "110.JPEG").write_bytes(b"")
    assert values(source.centred(np.array([4]), 8)[0]) == [10]


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    draw(tmp_path / "b.png", 10).rename(Path(str(tmp_path), b"\xff\xfe.png".decode("utf-8", "surrogateescape")))
    draw(tmp_path / "ä b.png", 20)
    assert values(sources.load(folder_of(tmp_path)).train.centred(np.arange(2), 8)[0]) in ([20, 10], [10, 20])


def test_the_digest_tells_names_labels_and_folders_apart(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(root: Path) -> str:
        return sources.load(folder_of(root)).train.digest()

    before = digest(tree)
    assert before == digest(tree) != sources.open_source(folder_of(tree), "test").digest()
    monkeypatch.chdir(tree)
    assert digest(Path()) == before
    draw(tree / "train" / "ant" / "1.jpg", 10)
    more = sources.load(folder_of(tree)).train
    relabelled = more.subset(np.arange(1, 6))  # the images of before
    assert len({before, more.digest(), relabelled.digest()}) == 3
