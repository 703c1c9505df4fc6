"""The stores: crops of arrays and files, and what takes the place of a file that cannot be read."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from moco_dist.data import sources
from moco_dist.data.store import Away, FileSource
from moco_dist.errors import UserError
from tests.data.made import config_of, damaged_avif, draw, draws, folder_of, values


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
    with pytest.raises(UserError, match=r"none of its 3 images can be decoded; .*: cannot identify .*; mend the"):
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


def turned_cut_short(path: Path) -> None:
    image = Image.new("RGB", (64, 64))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    path.write_bytes(path.read_bytes()[:-200])


CORRUPTIONS: list[Callable[[Path], Any]] = [
    cut_short,
    huge_header,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(40)),
    lambda path: path.write_text("<html>404</html>"),
    lambda path: path.unlink(),
    damaged_avif,
    lambda path: Image.new("F", (16, 16), 300).save(path, "TIFF"),
    turned_cut_short,
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
    assert [image.name for image in unreadable] == names[:1]  # the second is not asked for
    assert all(image.reason for image in unreadable)
    images, unreadable = source.crops(np.array([2, 0]), draws(2), folder_of(tree).data)
    assert values(images[0]) == [100, 10]
    assert [image.name for image in unreadable] == names[1:]
    assert [image.name for image in source.centred(np.arange(5), 8)[1]] == names  # each once


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


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        KeyboardInterrupt(),
        SystemExit(),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ESTALE, "Stale file handle"),
        OSError(errno.ENOTCONN, "Transport endpoint is not connected"),
    ],
    ids=repr,
)
def test_what_is_no_fault_of_an_image_makes_none_unreadable(
    tree: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shared disk that is away ends the run as a crash, which is begun again, and no other image is taken."""
    source = sources.load(folder_of(tree)).train

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    kind = Away if isinstance(error, OSError) else type(error)
    with pytest.raises(kind):
        source.centred(np.array([0]), 8)
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(kind):
        source.crops(np.array([0]), draws(1), folder_of(tree, decode="cpu").data)


def test_a_bomb_is_refused_with_its_reason_and_a_large_image_is_not(
    tree: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    source = sources.load(folder_of(tree)).train
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16 * 16 - 1)  # PIL warns of more, and refuses twice as many
    assert not source.centred(np.arange(5), 8)[1]
    draw(tree / "train" / "cat" / "20.jpg", 20, side=40)
    [bomb] = source.centred(np.arange(5), 8)[1]
    assert "exceeds limit of 510 pixels" in bomb.reason
    assert not recwarn.list


def test_both_splits_are_upright(tmp_path: Path) -> None:
    """Images of one class alone lie on their side: upright, all are dark above and light below."""
    ramp = np.tile(np.linspace(0, 255, 24).astype(np.uint8)[:, None, None], (1, 24, 3))
    for split in ("train", "val"):
        for name, turn, orientation in (("a", 0, 1), ("b", 1, 6), ("c", 2, 3)):
            (tmp_path / split / name).mkdir(parents=True)
            image = Image.fromarray(np.ascontiguousarray(np.rot90(ramp, turn)))
            exif = image.getexif()
            exif[0x0112] = orientation
            image.save(tmp_path / split / name / "0.jpg", exif=exif)
    data = sources.load(folder_of(tmp_path))
    assert data.queries is not None
    for source in (data.train, data.queries):
        for images in (
            source.centred(np.arange(3), 8)[0],
            source.crops(np.arange(3), draws(3), folder_of(tmp_path).data)[0][0],
        ):
            rows = images.double().mean((1, 3))  # [3, 8]
            assert (rows.diff(dim=1) > 3).all()
            assert images.double().std(3).max() < 3


@pytest.mark.parametrize(("height", "width"), [(1, 60000), (60000, 1), (1, 1), (2, 30001), (3, 7000)])
def test_extreme_shapes_take_the_memory_of_a_crop(tmp_path: Path, height: int, width: int) -> None:
    Image.new("RGB", (width, height), (9, 200, 3)).save(tmp_path / "0.png")
    run = folder_of(tmp_path, enlarge=True, image_size=224)
    source = sources.open_source(run, "train")
    shapes = list[tuple[int, int]]()
    resize = Image.Image.resize

    def watched(image: Image.Image, size: tuple[int, int], *args: Any) -> Image.Image:
        shapes.append(size)
        return resize(image, size, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", watched)
        centre, crop = source.centred(np.array([0]), 224)[0], source.crops(np.array([0]), draws(1), run.data)[0][0]
    for images in (centre, crop):
        assert (images == torch.tensor([9, 200, 3])[:, None, None]).all() and images.shape == (1, 3, 224, 224)
    assert len(shapes) == 2 and all(a * b <= 17 * 256**2 for a, b in shapes)
