"""The index of an image folder: names, labels and classes, and the folders that they are read from."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moco_dist.data.index import SUFFIXES, Folders, list_folder
from moco_dist.errors import UserError
from tests.data.made import draw
from tests.jobs import ROOT


def test_a_tree_of_classes(tree: Path) -> None:
    train, test = list_folder(tree, "train"), list_folder(tree, "test")
    assert train.names == [b"cat/10.jpg", b"cat/20.jpg", b"cat/30.jpg", *train.names[3:]]
    assert train.names[3:] == [b"dog/deeper/100.JPEG", b"dog/deeper/110.JPEG"]
    assert train.labels == [0, 0, 0, 1, 1]
    assert train.folder == tree / "train"
    assert test.labels == [0, 1]
    assert train.classes == test.classes == ("cat", "dog")
    assert (len(test.names), train.skipped) == (2, 0)


def test_images_beside_the_classes_are_skipped_and_counted(tree: Path) -> None:
    before = list_folder(tree, "train")
    for name in ("a.png", "z.png", ".hidden.png", "readme.txt"):
        draw(tree / "train" / "x.png", 10).rename(tree / "train" / name)
    index = list_folder(tree, "train")
    assert index.skipped == 2
    assert index.names == before.names
    assert index.remarks == (
        f"{tree}/train: 2 images beside the class folders have no class, left out",
        f"{tree}/train: 1 file with other suffixes passed over (.txt 1)",
    )
    assert not before.remarks


def test_class_folders_without_split_folders(tree: Path) -> None:
    index = list_folder(tree / "train", "train")
    labelled = list_folder(tree, "train")
    assert (index.names, index.labels, index.classes) == (labelled.names, labelled.labels, ("cat", "dog"))
    assert not list_folder(tree / "train", "test").names
    (tree / "train" / "notes").mkdir()  # holds no image, and is no class
    (tree / "train" / "notes" / "a.txt").touch()
    assert list_folder(tree / "train", "train").classes == ("cat", "dog")
    draw(tree / "train" / "a.png", 10)  # lies in no class folder: then none is one
    assert list_folder(tree / "train", "train").labels is None
    assert list_folder(tree / "train" / "dog", "train").labels is None  # one folder alone is no class
    assert len(list_folder(tree / "train" / "dog", "train").names) == 2


def test_a_folder_of_training_images_without_class_folders(tree: Path) -> None:
    (tree / "train").rename(tree / "classes")
    for number in range(3):
        draw(tree / "train" / f"{number}.png", 10)
    (tree / "train" / "notes").mkdir()  # holds no image, and does not make the images beside it lack a class
    index = list_folder(tree, "train")
    assert (len(index.names), index.labels, index.classes, index.skipped) == (3, None, (), 0)


def test_the_folders_of_the_splits(tree: Path) -> None:
    assert Folders.of(tree) == (tree / "train", tree / "val", ("cat", "dog"), "", ())
    (tree / "test" / "emu").mkdir(parents=True)
    assert Folders.of(tree).held_out == tree / "val"  # val/ goes before test/
    (tree / "val" / "eel").mkdir()
    (tree / "val" / ".hidden").mkdir()
    assert Folders.of(tree).unknown_class == "eel"
    with pytest.raises(UserError, match="val/ has a class that train/ lacks: eel"):
        list_folder(tree, "test")
    list_folder(tree, "train")


@pytest.mark.parametrize(
    ("train", "held_out"),
    [("Train", "Val"), ("TRAIN", "TEST"), ("training", "validation"), ("Training", "Valid"), ("train", "Testing")],
)
def test_the_folders_of_the_splits_by_their_other_names(tree: Path, train: str, held_out: str) -> None:
    before = [list_folder(tree, "train"), list_folder(tree, "test")]
    (tree / "train").rename(tree / train)
    (tree / "val").rename(tree / held_out)
    for split, folder, listing in zip(("train", "test"), (train, held_out), before, strict=True):
        assert list_folder(tree, split) == listing._replace(folder=tree / folder)  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [("Train", "train"), ("train", "training"), ("VAL", "val"), ("Test", "testing")])
def test_two_folders_for_one_split(tree: Path, names: tuple[str, str]) -> None:
    for name in names:
        (tree / name).mkdir(exist_ok=True)
    with pytest.raises(UserError, match=rf"{tree}: {names[0]}/ and {names[1]}/ go by the name of one split; rename or"):
        list_folder(tree, "train")


def held_out_deeper(tree: Path) -> Path:
    (tree / "dataset").mkdir()
    for name in ("train", "val"):
        (tree / name).rename(tree / "dataset" / name)
    return tree


def held_out_alone(tree: Path) -> Path:
    (tree / "train" / "cat").rename(tree / "cat")
    (tree / "train" / "dog").rename(tree / "dog")
    (tree / "train").rmdir()
    (tree / "val").rename(tree / "Test")
    return tree


def held_out_within_train(tree: Path) -> Path:
    (tree / "val").rename(tree / "train" / "Validation")
    return tree


def held_out_by_class(tree: Path) -> Path:
    (tree / "val").rename(tree / "train" / "cat" / "valid")
    return tree / "train"


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (held_out_deeper, "dataset/val"),
        (held_out_alone, "Test"),
        (held_out_within_train, "Validation"),
        (held_out_by_class, "cat/valid"),
    ],
)
def test_what_may_be_held_out_and_is_trained_on_is_told(tree: Path, make: Callable[[Path], Path], where: str) -> None:
    index = list_folder(make(tree), "train")
    assert len(index.names) == 7
    [remark] = index.remarks
    assert remark.startswith(f"{index.folder} is trained on as a whole, with what may be held-out images ({where})")
    if make is held_out_alone:
        assert index.labels is None  # Test/ is no class beside cat/ and dog/


def test_what_lies_beside_train_is_told(tree: Path) -> None:
    draw(tree / "bus" / "a.png", 10)  # of classes one of which is named train
    draw(tree / "loose.png", 10)
    (tree / "notes.txt").touch()
    (tree / "test").mkdir()
    [remark] = list_folder(tree, "train").remarks
    assert remark.startswith(f"{tree}/train holds the training images: ")
    assert remark.endswith("folders and images beside it are passed over (bus, loose.png)")
    assert not list_folder(tree, "test").remarks


def test_class_folders_without_an_image_are_classes_and_told(tree: Path) -> None:
    (tree / "train" / "ant").mkdir()
    index = list_folder(tree, "train")
    assert (index.classes, index.labels) == (("ant", "cat", "dog"), [1, 1, 1, 2, 2])
    assert index.remarks == (f"{tree}/train: 1 class folder without an image (ant)",)
    assert list_folder(tree, "test").labels == [1, 2]


def test_files_with_other_suffixes_are_counted(tree: Path) -> None:
    for number in range(5):
        (tree / "train" / "cat" / f"{number}.TXT").touch()
    for name in ("a.heic", "dog/b.heic", "dog/deeper/Makefile", ".DS_Store", "c.tar.gz"):
        (tree / "train" / name).touch()
    [remark] = list_folder(tree, "train").remarks
    assert remark == f"{tree}/train: 9 files with other suffixes passed over (.txt 5, .heic 2, none 1, .gz 1)"


def test_a_held_out_folder_without_images(tree: Path) -> None:
    for image in (tree / "val").rglob("*.*"):
        image.unlink()
    with pytest.raises(UserError, match=rf"data.root = {tree}: no image below val/ \(.*; add held-out images, or"):
        list_folder(tree, "test")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_in_either_case(tmp_path: Path, suffix: str) -> None:
    for name in (f"a{suffix}", f"b{suffix.upper()}", f"c{suffix}.txt"):
        (tmp_path / name).touch()
    assert list_folder(tmp_path, "train").names == [f"a{suffix}".encode(), f"b{suffix.upper()}".encode()]


def test_links_are_followed(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "train").symlink_to(tree / "train")
    assert list_folder(other, "train").names == list_folder(tree, "train").names


def test_listing_needs_no_torch(tree: Path) -> None:
    """All that the index imports, and what these import in turn, is there on a login node without torch."""
    program = f"""
import sys
from collections.abc import Callable
from pathlib import Path
from moco_dist.data.index import list_folder
assert len(list_folder(Path({str(tree)!r}), "train").names) == 5
heavy = {{"torch", "torchvision", "sklearn", "numpy"}} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
