"""Sources: what they hold, and what they say of a folder that does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from moco_dist import config
from moco_dist.data import sources
from moco_dist.data.pixel_statistics import PIXEL_STATISTICS
from moco_dist.data.store import FileSource, Source
from moco_dist.errors import UserError, shown
from moco_dist.train.loop import advice
from tests.data.made import MNIST, config_of, draw, draws, folder_of, values


def test_digits() -> None:
    data, expected = sources.load(config_of()), load_digits()
    assert data.bank is data.train
    assert data.queries is not None
    assert (len(data.train), len(data.queries)) == (1438, 359)
    assert data.train.channels == 1
    assert data.train.shortest_side() == 8
    together = np.concatenate([data.train.labels, data.queries.labels])
    np.testing.assert_array_equal(np.bincount(together), np.bincount(expected.target))
    assert np.bincount(data.queries.labels).min() > 20
    images, unreadable = data.train.centred(np.arange(1438), 8)
    assert not unreadable
    assert (images.min(), images.max()) == (0, 255)
    pixels = np.round(expected.images * (255 / 16)).astype(np.uint8)
    of_scikit_learn = {(one.tobytes(), label) for one, label in zip(pixels, expected.target, strict=True)}
    assert {
        (one.numpy().tobytes(), label) for one, label in zip(images, data.train.labels, strict=True)
    } < of_scikit_learn
    mean, std = data.train.pixel_statistics  # are those of the training images
    assert images.double().div(255).mean().item() == pytest.approx(mean[0], abs=2e-3)
    assert images.double().div(255).std().item() == pytest.approx(std[0], abs=2e-3)


def test_the_splits_have_no_image_in_common() -> None:
    def rows(source: Source) -> set[bytes]:
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


def test_of_too_few_images_no_batch_is_proposed(tmp_path: Path) -> None:
    for number in range(2):
        draw(tmp_path / "ab"[number] / "0.png", 50)
    for images, fraction in ((0, 0.99), (1, 0.5)):
        run = folder_of(tmp_path, knn_split="validation", validation_fraction=fraction)
        with pytest.raises(UserError, match=rf"the training set has {images} images, less than one batch; add images"):
            sources.load(run)


def test_a_batch_larger_than_the_training_set() -> None:
    with pytest.raises(UserError, match=r"optim.global_batch = 2000: the training set has 1438 images.*at most 1438"):
        sources.load(config_of(batch=2000))
    with pytest.raises(UserError, match="the training set has 1294 images"):  # what the validation split leaves
        sources.load(config_of(batch=1400, knn_split="validation"))


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


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize("content", [b"", b"<html>", b"\0\0\x08\x03" + bytes(12), b"\0\0\x08\x03\0\0\0\2" + bytes(50)])
def test_damaged_data(content: bytes, download: bool, tmp_path: Path) -> None:
    """A copy that was broken off, or a page that a proxy has put in the place of a file."""
    for split in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            file = tmp_path / "MNIST" / "raw" / f"{split}-{kind}-ubyte"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    with pytest.raises(UserError, match=r"holds a damaged file of mnist \(.*; copy the files again") as error:
        sources.load(config_of(source="mnist", root=str(tmp_path), download=download))
    assert str(error.value).isprintable()


def test_mnist() -> None:
    if not MNIST.is_dir():
        pytest.skip(f"no MNIST at {MNIST}")
    data = sources.load(config_of(source="mnist", root=str(MNIST), image_size=28))
    assert data.queries is not None
    assert (len(data.train), len(data.queries), data.train.channels) == (60_000, 10_000, 1)
    assert data.train.labels is not None
    assert data.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    images = data.train.centred(np.arange(60_000), 28)[0]
    mean, std = data.train.pixel_statistics
    assert images.double().div(255).mean().item() == pytest.approx(mean[0], abs=1e-3)
    assert images.double().div(255).std().item() == pytest.approx(std[0], abs=1e-3)


def test_a_tree_of_classes(tree: Path) -> None:
    data = sources.load(folder_of(tree))
    assert data.bank is data.train
    assert data.queries is not None
    assert isinstance(data.train, FileSource)
    assert data.train.classes == ("cat", "dog")
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert values(data.train.centred(np.arange(5), 8)[0]) == [10, 20, 30, 100, 110]
    assert data.queries.labels is not None
    assert data.queries.labels.tolist() == [0, 1]
    assert values(data.queries.centred(np.arange(2), 8)[0]) == [40, 120]
    crops, unreadable = data.train.crops(np.array([4, 0]), draws(2), folder_of(tree).data)
    assert crops.shape == (1, 2, 3, 8, 8)
    assert values(crops[0]) == [110, 10]
    assert not unreadable
    some = data.train.subset(np.array([3, 1]))
    assert some.labels is not None
    assert some.labels.tolist() == [1, 0]
    assert values(some.centred(np.arange(2), 8)[0]) == [100, 20]
    assert data.train.pixel_statistics == PIXEL_STATISTICS["colour"]


def test_a_tree_without_classes(tmp_path: Path) -> None:
    for value in (10, 20):
        draw(tmp_path / f"folder {value // 20}" / f"{value}.jpg", value)
    draw(tmp_path / "loose.jpg", 30)
    draw(tmp_path / ".hidden" / "x.jpg", 50)
    draw(tmp_path / "folder 0" / "._resource.jpg", 50)
    (tmp_path / "readme.txt").write_text("no image")
    data = sources.load(folder_of(tmp_path, knn_split="validation"))
    assert (data.bank, data.queries) == (None, None)
    assert data.train.labels is None
    assert values(data.train.centred(np.arange(len(data.train)), 8)[0]) == [10, 20, 30]


def test_classes_without_split_folders(tree: Path) -> None:
    """They change neither which images there are nor their order; a part of them can be held out."""
    data = sources.load(folder_of(tree / "train"))
    assert data.queries is None
    assert values(data.train.centred(np.arange(5), 8)[0]) == [10, 20, 30, 100, 110]
    cut = sources.load(folder_of(tree / "train", knn_split="validation", validation_fraction=0.4))
    assert cut.queries is not None and cut.queries.labels is not None and cut.train.labels is not None
    assert (len(cut.train), len(cut.queries)) == (3, 2)
    assert sorted([*cut.train.labels, *cut.queries.labels]) == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("split", "data", "line"),
    [
        ("train", {}, "no val/ with classes, so no kNN; eval.knn_split=validation evaluates on a part of the images"),
        ("train/dog", {"knn_split": "validation"}, "no class folders, so no kNN"),
        ("train/dog", {"knn_every": 0}, None),
        ("train", {"knn_split": "validation"}, None),
        (".", {}, None),
    ],
)
def test_a_run_without_knn_is_told_why(tree: Path, split: str, data: dict[str, Any], line: str | None) -> None:
    run = config.parse({**folder_of(tree / split, **data).model_dump(), "moco": {"queue_size": 2}})
    advised = [
        text for text in advice(run, config.layout(run, 1), sources.load(run), torch.device("cpu")) if "kNN" in text
    ]
    assert advised == ([f"data.root: {line}"] if line else [])


def test_keys_that_do_not_count_are_told(tree: Path) -> None:
    run = config.load(None, [f"data.root={tree}", "optim.milestones=2,3"])
    lines = list(advice(run, config.layout(run, 1), sources.load(run), torch.device("cpu")))
    assert lines == [
        "optim.milestones and optim.decay: optim.schedule=cosine has no drops, so that they do not count; for drops at "
        "milestones, set optim.schedule=step",
        f"data.root = {shown(str(tree))}: data.source=digits reads no folder, so that it does not count; for a folder "
        "of images, add data.source=imagefolder",
    ]
    run = config.load(None, ["optim.milestones=2,3", "optim.schedule=step"])
    assert not list(advice(run, config.layout(run, 1), sources.load(run), torch.device("cpu")))


def test_what_is_passed_over_is_told_at_the_start(tree: Path) -> None:
    for place in ("train/notes.txt", "val/notes.txt", "val/beside.png"):
        (tree / place).touch()
    run = folder_of(tree)
    lines = list(advice(run, config.layout(run, 1), sources.load(run), torch.device("cpu")))
    assert [line for line in lines if "passed over" in line or "beside" in line] == [
        f"{tree}/train: 1 file with other suffixes passed over (.txt 1)",
        f"{tree}/val: 1 image beside the class folders has no class, left out",
        f"{tree}/val: 1 file with other suffixes passed over (.txt 1)",
    ]
    assert len(sources.load(folder_of(tree, knn_every=0)).remarks) == 1


@pytest.mark.parametrize("mistake", ["empty", "surplus", "loop"])
def test_held_out_images_are_not_looked_at_where_nothing_is_evaluated_on_them(tree: Path, mistake: str) -> None:
    for image in (tree / "val").rglob("*.*") if mistake == "empty" else ():
        image.unlink()
    if mistake != "empty":
        draw(tree / "val" / "emu" / "a.png", 10)
    if mistake == "loop":
        (tree / "val" / "loop").symlink_to(tree / "val" / "loop")
    with pytest.raises(UserError, match="val/"):
        sources.load(folder_of(tree))
    for key, value in (("knn_every", 0), ("knn_split", "validation")):
        assert sources.load(folder_of(tree, **{key: value})).train.labels is not None


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
