"""Walks of folders: the order of the images, and all that a folder may hold beside them."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moco_dist.data.index import Folders, list_folder
from moco_dist.data.tree import SUFFIXES, some, walk
from moco_dist.errors import UserError
from tests.nobody import as_nobody


def recursive(root: Path, below: str = "") -> Iterator[str]:
    """Yield what the walk must give in a tree without links: folder by folder, in the order of the names."""
    for name in sorted(entry.name for entry in (root / below).iterdir()):
        path = f"{below}/{name}" if below else name
        if name.startswith("."):
            continue
        if (root / path).is_dir():
            yield from recursive(root, path)
        elif name.lower().endswith(SUFFIXES):
            yield path


def plant(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


@pytest.mark.parametrize("seed", range(5))
def test_the_order_is_that_of_the_names_folder_by_folder(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    names = ["a", "B", "a b", "a.d", "Ä", "ω", "a-", "0", "\udcff\udcfe", "\ue000", "\U0001f600", ".hidden", "x.jpg"]
    for _ in range(150):
        folders = [rng.choice(names) for _ in range(rng.randrange(4))]
        path = "/".join([*folders, rng.choice(names) + rng.choice([".png", ".JPG", "", ".txt"])])
        with contextlib.suppress(FileExistsError, NotADirectoryError):  # another is in its place
            plant(tmp_path, path)
    tree = walk(tmp_path)
    assert tree.images == list(recursive(tmp_path)) and len(tree.images) > 20
    assert not (tree.repeated or tree.no_files or tree.closed or tree.unfinished)


def to_itself(root: Path) -> list[str]:
    (root / "a" / "self").symlink_to(root / "a" / "self")
    (root / "a" / "one.png").symlink_to("two.png")
    (root / "a" / "two.png").symlink_to("one.png")
    return ["a/one.png", "a/self", "a/two.png"]


def to_nothing(root: Path) -> list[str]:
    (root / "a" / "gone.png").symlink_to("/nowhere/1.png")
    (root / "gone").symlink_to("/nowhere")
    return ["a/gone.png", "gone"]


def no_files(root: Path) -> list[str]:
    os.mkfifo(root / "a" / "pipe.jpg")  # to open one would wait for ever
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(root)  # the path of a socket must be short
        one.bind("socket.png")
        os.chdir(here)
    return ["a/pipe.jpg", "socket.png"]


@pytest.mark.parametrize("make", [to_itself, to_nothing, no_files])
def test_what_is_no_file_is_passed_over_and_told(tmp_path: Path, make: Callable[[Path], list[str]]) -> None:
    plant(tmp_path, "a/1.png", "b/2.png")
    names = make(tmp_path)
    tree = walk(tmp_path)
    assert tree.images == ["a/1.png", "b/2.png"]
    assert sorted(tree.no_files) == names
    [remark] = list_folder(tmp_path, "train").remarks
    assert f"{len(names)} names of no file passed over" in remark and names[0] in remark


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("a/loop", "."),
        ("a/loop", ".."),
        ("a/deeper/loop", "../../.."),  # out of the tree, and around
        ("a/loop", "/"),
        ("a/loop", "../b"),  # what lies in the tree by itself, be it later
        ("z", "a"),
    ],
)
def test_no_folder_is_entered_twice(tmp_path: Path, link: str, target: str) -> None:
    root = plant(tmp_path / "root", "a/1.png", "a/deeper/2.png", "b/3.png")
    plant(tmp_path, "beside/4.png")
    (root / link).symlink_to(target)
    tree = walk(root)
    assert tree.images == ["a/1.png", "a/deeper/2.png", "b/3.png"]
    assert tree.repeated == [link]
    [remark] = list_folder(root, "train").remarks
    assert remark == f"{root}: 1 folder reached again by links, and read only once ({link})"


def test_links_to_folders_elsewhere_are_followed_once_each(tmp_path: Path) -> None:
    elsewhere = plant(tmp_path / "elsewhere", "1.png", "deeper/2.png")
    root = plant(tmp_path / "root", "b/3.png")
    for name in ("a", "c"):
        (root / name).symlink_to(elsewhere)
    (elsewhere / "deeper" / "up").symlink_to(root)
    tree = walk(root)
    assert tree.images == ["a/1.png", "a/deeper/2.png", "b/3.png"]
    assert sorted(tree.repeated) == ["a/deeper/up", "c"]
    (elsewhere.parent / "image.png").touch()
    (root / "b" / "link.png").symlink_to(elsewhere.parent / "image.png")  # images may be links
    assert "b/link.png" in walk(root).images


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    plant(tmp_path, "x.jpg/1.png", "x.jpg/y.png/2.png")
    assert walk(tmp_path).images == ["x.jpg/1.png", "x.jpg/y.png/2.png"]


def test_pictures_of_a_run_are_no_images(tmp_path: Path) -> None:
    plant(tmp_path, "1.png", "z/2.png", "runs/one/augmented_pairs.png", "runs/two/evaluation/knn.png")
    assert len(walk(tmp_path).images) == 4
    plant(tmp_path, "runs/one/metrics.jsonl", "runs/two/metrics.jsonl")
    assert walk(tmp_path).images == ["1.png", "z/2.png"]
    assert list_folder(tmp_path, "train").remarks == (f"{tmp_path}: run directories passed over (runs/one, runs/two)",)
    assert walk(tmp_path / "runs" / "one").images  # it was named


@pytest.fixture
def place() -> Iterator[Path]:
    """Pytest's own folders are closed to nobody as a whole."""
    top = Path(tempfile.mkdtemp(prefix="tree", dir="/tmp"))
    top.chmod(0o755)
    yield top
    for folder, _, _ in os.walk(top):
        Path(folder).chmod(0o700)
    for closed in ("train/b", "closed", "train/a/deeper"):
        if (top / closed).is_dir():
            (top / closed).chmod(0o700)
    shutil.rmtree(top)


@pytest.mark.parametrize("closed", ["train/b", "train/a/deeper", "train", "val", "", "by a link"])
def test_a_folder_that_cannot_be_read_is_a_mistake_of_one_line(place: Path, closed: str) -> None:
    for name in ("train/a/1.png", "train/a/deeper/2.png", "train/b/3.png", "val/a/4.png"):
        plant(place, name)
    if closed == "by a link":
        closed = "train/b/link"
        plant(place, "closed/deeper/5.png")
        (place / closed).symlink_to(place / "closed" / "deeper")
        (place / "closed").chmod(0)
    else:
        (place / closed).chmod(0)
    with as_nobody(), pytest.raises(UserError) as mistake:
        list_folder(place, "train")
    reason = f"{place / closed} cannot be read: Permission denied; ask for access, or remove it"
    assert str(mistake.value) == f"data.root = {place}: {reason}"


def test_a_root_that_is_closed_or_named_strangely(place: Path, tmp_path: Path) -> None:
    plant(place, "closed/data/1.png")
    (place / "closed").chmod(0)
    with as_nobody(), pytest.raises(UserError, match="closed/data: no such folder; give the folder"):
        Folders.of(place / "closed" / "data")
    strange = "new\nline \udcff"
    plant(tmp_path, f"{strange}/self")
    (tmp_path / strange / "link").symlink_to("/nowhere")
    plant(tmp_path, f"{strange}/1.png")
    for line in list_folder(tmp_path / strange, "train").remarks:
        assert line.isprintable() and "new?line ?" in line


def test_a_walk_that_is_ended(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{name}/{number}.png" for name in "abc" for number in range(4)))
    names = iter(range(100))
    tree = walk(tmp_path, lambda: next(names) >= 9)  # the three folders, all of a, two of b
    assert (tree.unfinished, len(tree.images), tree.folders) == ("b", 6, ["", "a", "b"])
    whole = walk(tmp_path, lambda: False)
    assert (whole.unfinished, len(whole.images)) == (None, 12)


def test_some_of_many() -> None:
    assert some(range(5), 9) == [0, 1, 2, 3, 4]
    assert some(range(100), 3) == [0, 49, 99]
    assert some([], 3) == []
