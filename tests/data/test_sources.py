"""Sources: what they hold, and what they say of a folder that does not fit."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from moco_dist import config
from moco_dist.data import augment, sources
from moco_dist.errors import UserError
from moco_dist.randomness import Stream, uniform

MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"


def config_of(batch: int = 2, **data: Any) -> config.Config:
    knn = {key: data.pop(key) for key in ("knn_every", "knn_split", "validation_fraction") if key in data}
    return config.parse({"data": {"image_size": 8, **data}, "optim": {"global_batch": batch}, "eval": knn})


def folder_of(root: Path, **data: Any) -> config.Config:
    return config_of(source="imagefolder", root=str(root), **data)


def draw(path: Path, value: int, side: int = 16, mode: str = "RGB", width: int | None = None) -> Path:
    """A plain image, so that its one gray value tells it from the others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width or side, side), value if mode == "L" else (value,) * 3).save(path, quality=95)
    return path


def values(images: torch.Tensor) -> list[int]:
    """The gray value of each plain image, to the ten."""
    assert images.dtype == torch.uint8
    return [round(value / 10) * 10 for value in images.double().mean(dim=(1, 2, 3)).tolist()]


def draws(count: int) -> torch.Tensor:
    return torch.from_numpy(uniform(0, Stream.VIEW, 0, np.arange(count), augment.CROP_DRAWS))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """train/ with cats (10, 20, 30) and dogs (100, 110), val/ with one of each."""
    for value in (10, 20, 30):
        draw(tmp_path / "train" / "cat" / f"{value}.jpg", value)
    for value in (100, 110):
        draw(tmp_path / "train" / "dog" / "deeper" / f"{value}.JPEG", value)
    draw(tmp_path / "val" / "cat" / "a.png", 40)
    draw(tmp_path / "val" / "dog" / "b.jpg", 120)
    return tmp_path


# ------------------------------------------------------------------ in memory


def test_digits() -> None:
    data = sources.load(config_of())
    assert data.bank is data.train
    assert data.queries is not None
    assert (len(data.train), len(data.queries)) == (1438, 359)
    assert data.train.channels == 1
    assert data.train.shortest_side() == 8
    together = np.concatenate([data.train.labels, data.queries.labels])
    np.testing.assert_array_equal(np.bincount(together), np.bincount(load_digits().target))
    assert np.bincount(data.queries.labels).min() > 20
    images, unreadable = data.train.centred(np.arange(1438), 8)
    assert not unreadable
    assert (images.min(), images.max()) == (0, 255)
    mean, std = data.train.statistics  # are those of the training images
    assert images.double().div(255).mean().item() == pytest.approx(mean[0], abs=2e-3)
    assert images.double().div(255).std().item() == pytest.approx(std[0], abs=2e-3)


def test_the_splits_have_no_image_in_common() -> None:
    def rows(source: sources.Source) -> set[bytes]:
        images, _ = source.centred(np.arange(len(source)), 8)
        return {image.numpy().tobytes() for image in images}

    for split in ("test", "validation"):
        data = sources.load(config_of(knn_split=split))
        assert data.bank is not None
        assert data.queries is not None
        assert not rows(data.bank) & rows(data.queries)


def test_validation_is_cut_from_the_training_set() -> None:
    whole = sources.load(config_of()).train
    data = sources.load(config_of(knn_split="validation", validation_fraction=0.25))
    assert data.queries is not None
    assert data.bank is data.train
    assert (len(data.queries), len(data.train)) == (round(1438 / 4), 1438 - round(1438 / 4))
    again = sources.load(config.parse({**config_of(knn_split="validation").model_dump(), "run": {"seed": 5}}))
    assert again.queries is not None
    assert len(again.queries) == 144
    np.testing.assert_array_equal(
        np.bincount(np.concatenate([data.train.labels, data.queries.labels])), np.bincount(whole.labels)
    )
    same = sources.load(config_of(knn_split="validation"))
    assert same.queries is not None
    np.testing.assert_array_equal(again.queries.labels, same.queries.labels)  # whatever the seed


def test_without_knn_there_is_nothing_to_compare() -> None:
    data = sources.load(config_of(knn_every=0))
    assert (data.bank, data.queries) == (None, None)
    assert len(data.train) == 1438


def test_a_batch_larger_than_the_training_set() -> None:
    with pytest.raises(UserError, match=r"optim.global_batch = 2000: the training set has 1438 images.*at most 1438"):
        sources.load(config_of(batch=2000))
    with pytest.raises(UserError, match="the training set has 1294 images"):  # what the validation split leaves
        sources.load(config_of(batch=1400, knn_split="validation"))


def test_crops_of_a_batch_are_those_of_each_image() -> None:
    source, data = sources.load(config_of()).train, config_of().data
    indices = np.array([5, 3, 700, 3])
    together, unreadable = source.crops(indices, draws(4), data)
    assert together.shape == (4, 1, 8, 8)
    assert not unreadable
    for i, index in enumerate(indices):
        assert torch.equal(source.crops(np.array([index]), draws(4)[i : i + 1], data)[0][0], together[i])
    assert not torch.equal(together[1], together[3])  # other draws, another crop


def test_synthetic() -> None:
    data = sources.load(config_of(source="synthetic", samples=40, channels=3))
    assert data.queries is not None
    assert (len(data.train), len(data.queries), data.train.channels) == (40, 10, 3)
    images = data.train.centred(np.arange(40), 8)[0]
    assert torch.equal(
        images, sources.load(config_of(source="synthetic", samples=40)).train.centred(np.arange(40), 8)[0]
    )


@pytest.mark.parametrize("source", ["mnist", "cifar10"])
def test_missing_data(tmp_path: Path, source: str) -> None:
    with pytest.raises(UserError, match=r"no such folder; mend the path, or add data\.download=true"):
        sources.load(config_of(source=source, root=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match=r"data.root = .*: is empty; .*data.download=true"):
        sources.load(config_of(source=source, root=str(tmp_path)))
    (tmp_path / "other").touch()
    with pytest.raises(UserError, match=f"holds no {source} of torchvision's layout"):
        sources.load(config_of(source=source, root=str(tmp_path)))


def test_mnist() -> None:
    if not MNIST.is_dir():
        pytest.skip(f"no MNIST at {MNIST}")
    data = sources.load(config_of(source="mnist", root=str(MNIST), image_size=28))
    assert data.queries is not None
    assert (len(data.train), len(data.queries), data.train.channels) == (60_000, 10_000, 1)
    assert data.train.labels is not None
    assert data.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    images = data.train.centred(np.arange(60_000), 28)[0]
    mean, std = data.train.statistics
    assert images.double().div(255).mean().item() == pytest.approx(mean[0], abs=1e-3)
    assert images.double().div(255).std().item() == pytest.approx(std[0], abs=1e-3)


# ------------------------------------------------------------------- in files


def test_a_tree_of_classes(tree: Path) -> None:
    data = sources.load(folder_of(tree))
    assert data.bank is data.train
    assert data.queries is not None
    assert isinstance(data.train, sources.FileSource)
    assert data.train.classes == ("cat", "dog")
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert values(data.train.centred(np.arange(5), 8)[0]) == [10, 20, 30, 100, 110]
    assert data.queries.labels is not None
    assert data.queries.labels.tolist() == [0, 1]
    assert values(data.queries.centred(np.arange(2), 8)[0]) == [40, 120]
    crops, unreadable = data.train.crops(np.array([4, 0]), draws(2), folder_of(tree).data)
    assert crops.shape == (2, 3, 8, 8)
    assert values(crops) == [110, 10]
    assert not unreadable
    some = data.train.subset(np.array([3, 1]))
    assert some.labels is not None
    assert some.labels.tolist() == [1, 0]
    assert values(some.centred(np.arange(2), 8)[0]) == [100, 20]
    assert data.train.statistics == sources.STATISTICS["colour"]


def test_grayscale(tree: Path) -> None:
    source = sources.load(folder_of(tree, channels=1)).train
    assert source.channels == 1
    assert source.centred(np.arange(5), 8)[0].shape == (5, 1, 8, 8)
    assert len(source.statistics[0]) == 1


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16", "1", "LA"])
def test_every_kind_of_image_becomes_colour(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode in ("CMYK", "I;16") else "png"
    image = Image.new("L", (16, 12), 200)
    for n in range(2):
        (image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)).save(tmp_path / f"{n}.{suffix}")
    images, unreadable = sources.load(folder_of(tmp_path)).train.centred(np.arange(2), 8)
    assert images.shape == (2, 3, 8, 8)
    assert not unreadable


def test_a_tree_without_classes(tmp_path: Path) -> None:
    for value in (10, 20, 30):
        draw(tmp_path / f"folder {value // 20}" / f"{value}.jpg", value)
    draw(tmp_path / ".hidden" / "x.jpg", 50)
    draw(tmp_path / "folder 0" / "._resource.jpg", 50)
    (tmp_path / "readme.txt").write_text("no image")
    data = sources.load(folder_of(tmp_path))
    assert (data.bank, data.queries) == (None, None)
    assert data.train.labels is None
    assert values(data.train.centred(np.arange(len(data.train)), 8)[0]) == [10, 20, 30]


def test_train_without_val(tree: Path) -> None:
    for path in sorted((tree / "val").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tree / "val").rmdir()
    data = sources.load(folder_of(tree))
    assert data.bank is data.train
    assert data.queries is None
    held_out = sources.load(folder_of(tree, knn_split="validation", validation_fraction=0.4)).queries
    assert held_out is not None
    assert len(held_out) == 2


def test_files_beside_the_classes_have_none(tree: Path) -> None:
    draw(tree / "train" / "stray.jpg", 200)
    data = sources.load(folder_of(tree))
    assert len(data.train) == 5
    assert values(data.train.centred(np.arange(5), 8)[0]) == [10, 20, 30, 100, 110]


def nothing(root: Path) -> None:
    root.rmdir()


def empty(root: Path) -> None:
    pass


def no_image(root: Path) -> None:
    (root / "a.txt").touch()


def unknown_class(root: Path) -> None:
    for name in ("train/cat/1", "train/cat/2", "val/cat/3", "val/emu/4"):
        draw(root / f"{name}.jpg", 10)


def small(root: Path) -> None:
    for n in range(3):
        draw(root / f"{n}.png", 10, side=5, width=30)


def broken(root: Path) -> None:
    for n in range(3):
        (root / f"{n}.png").write_bytes(b"no png")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing, "no such folder; give the folder that holds the images"),
        (empty, "is empty; give the folder"),
        (no_image, r"no image below it \(.jpg, .jpeg"),
        (unknown_class, "val/ has a class that train/ lacks: emu; rename or remove it"),
        (small, "data.image_size = 8: the images have 5 pixels a side, less than the crop; use data.image_size=5 or"),
    ],
)
def test_folders_that_do_not_fit(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    make(root)
    with pytest.raises(UserError, match=message) as caught:
        sources.load(folder_of(root))
    assert "\n" not in str(caught.value)


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
    assert isinstance(source, sources.FileSource)
    for name in ("20.jpg", "30.jpg"):  # two in a row
        corrupt(tree / "train" / "cat" / name)
    names = [str(tree / "train" / "cat" / name) for name in ("20.jpg", "30.jpg")]
    images, unreadable = source.centred(np.array([0, 1, 4]), 8)
    assert values(images) == [10, 100, 110]
    assert unreadable == names
    images, unreadable = source.crops(np.array([2, 0]), draws(2), folder_of(tree).data)
    assert values(images) == [100, 10]
    assert unreadable == names[1:]


def test_the_last_image_is_followed_by_the_first(tree: Path) -> None:
    source = sources.load(folder_of(tree)).train
    (tree / "train" / "dog" / "deeper" / "110.JPEG").write_bytes(b"")
    assert values(source.centred(np.array([4]), 8)[0]) == [10]


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    draw(tmp_path / "b.png", 10).rename(Path(str(tmp_path), b"\xff\xfe.png".decode("utf-8", "surrogateescape")))
    draw(tmp_path / "ä b.png", 20)
    assert values(sources.load(folder_of(tmp_path)).train.centred(np.arange(2), 8)[0]) in ([20, 10], [10, 20])
