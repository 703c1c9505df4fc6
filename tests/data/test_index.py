"""The index of an image folder: names, labels and classes, and the folders that they are read from."""

from __future__ import annotations

import os
import subprocess
import sys
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


def test_a_folder_without_train_has_neither_classes_nor_a_test_split(tree: Path) -> None:
    index = list_folder(tree / "train", "train")
    assert (index.labels, index.classes, len(index.names)) == (None, (), 5)
    assert not list_folder(tree / "train", "test").names


def test_the_folders_of_the_splits(tree: Path) -> None:
    assert Folders.of(tree) == (tree / "train", tree / "val", ("cat", "dog"), "")
    (tree / "test" / "emu").mkdir(parents=True)
    assert Folders.of(tree).held_out == tree / "val"  # val/ goes before test/
    (tree / "val" / "eel").mkdir()
    (tree / "val" / ".hidden").mkdir()
    assert Folders.of(tree).unknown_class == "eel"
    with pytest.raises(UserError, match="val/ has a class that train/ lacks: eel"):
        list_folder(tree, "test")
    list_folder(tree, "train")


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
from pathlib import Path
from moco_dist.data.index import list_folder
assert len(list_folder(Path({str(tree)!r}), "train").names) == 5
heavy = {{"torch", "torchvision", "sklearn", "numpy"}} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
