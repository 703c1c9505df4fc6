"""The index lists the names, labels and classes of the images in a folder, without decoding one.

Nothing here needs torch or numpy, so that the launcher can look into a folder of images on a login node.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from moco_dist.data.tree import SHARD_INDEX, SUFFIXES, Tree, top_folder, walk
from moco_dist.errors import UserError, printable, some_names

Split = Literal["train", "test"]

_TRAIN, _VALIDATION, _TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")
"""Names of the folders of the splits, in small or capital letters."""


class Listing(NamedTuple):
    """A listing names the images of one split of an image folder, in an order that no file system decides."""

    folder: Path
    """The folder that the names are paths below."""
    names: list[bytes]
    """[N] paths of the images below the folder."""
    labels: list[int] | None
    """[N] classes of the images, as places in `classes`; None where the folder has no class folders."""
    classes: tuple[str, ...] = ()
    """Names of the class folders, sorted."""
    skipped: int = 0
    """Number of images beside the class folders, which have no class and are left out."""
    remarks: tuple[str, ...] = ()
    """A line for each kind of files and folders that were passed over, and for images that may be held-out ones."""


class Folders(NamedTuple):
    """Folders tell where an image folder keeps its training images and its held-out images."""

    train: Path
    """The folder `train/`, or the root itself where there is none."""
    held_out: Path | None
    """The folder `val/` or else `test/`, if there is one."""
    classes: tuple[str, ...]
    """Names of the folders in `train/`, sorted; a root without `train/` has none here, see `classes_in_root`."""
    unknown_class: str
    """The first class of the held-out images that the training images lack; empty where there is none."""
    beside: tuple[str, ...]
    """Names of the folders and images beside `train/`, which belong to no split, sorted."""

    @classmethod
    def of(cls, root: Path) -> Folders:
        """Look into a folder and its direct subfolders.

        Raises:
            UserError: there is no such folder, one cannot be read, or two go by the names of one split.
        """
        if not is_folder(root):
            raise UserError.of("data.root", root, "no such folder", "give the folder that holds the images")
        try:
            names = _visible(root, is_folder)
            train, *held_out = (_one_of(root, names, split) for split in (_TRAIN, _VALIDATION, _TEST))
            held = next((root / name for name in held_out if name), None)
            classes = _visible(root / train, is_folder) if train else []
            beside = [*(n for n in names if not _is_split(n)), *_visible(root, _is_image)] if train else []
            unknown = sorted(set(_visible(held, is_folder)) - set(classes)) if held and classes else []
        except OSError as error:
            raise closed(root, Path(error.filename or root), str(error.strerror)) from None
        return cls(root / train if train else root, held, tuple(classes), next(iter(unknown), ""), tuple(beside))


def list_folder(root: Path, split: Split) -> Listing:
    """List the images of one split of an image folder; without labelled held-out images, the test split is empty.

    Args:
        root: the folder, as the user names it in `data.root`.
        split: train or test.

    Raises:
        UserError: there is no such folder, no image in it, or a part that cannot be read; or the held-out images have a
            class that the training images lack.
    """
    folders = Folders.of(root)
    folder = folders.train if split == "train" else folders.held_out
    if folder is None or (split == "test" and not folders.classes):
        return Listing(root, [], None, folders.classes)
    if split == "test" and folders.unknown_class:
        rule = f"{folder.name}/ has a class that {folders.train.name}/ lacks: {printable(folders.unknown_class)}"
        raise UserError.of("data.root", root, rule, "rename or remove it")
    tree = read_tree(root, folder)
    if not tree.images and split == "test":
        rule = f"no image below {folder.name}/ ({', '.join(SUFFIXES)})"
        raise UserError.of("data.root", root, rule, "add held-out images, or remove it")
    if not tree.images:
        rule = "is empty" if is_empty(folder) else f"no image below it ({', '.join(SUFFIXES)})"
        rule += f", and of the shards in it no {SHARD_INDEX}, with which packing ends" if tree.suffixes[".tar"] else ""
        raise UserError.of("data.root", folder, rule, "give the folder that holds the images")
    return listing_of(folders, tree)


def listing_of(folders: Folders, tree: Tree) -> Listing:
    """List the images of a tree that was walked: of the folder of the training images, or of the held-out ones."""
    trains = tree.root == folders.train
    classes = folders.classes or classes_in_root(folders, tree)
    place_of = {name: place for place, name in enumerate(classes)}
    places = [place_of.get(top_folder(name), -1) for name in tree.images]
    if trains and max(places, default=-1) < 0:  # no folder in it holds an image
        return Listing(tree.root, _encoded(tree.images), None, remarks=tuple(_remarks(folders, tree)))
    names = [name for name, place in zip(tree.images, places, strict=True) if place >= 0]
    labels = [place for place in places if place >= 0]
    with_image, skipped = set(labels), len(places) - len(labels)
    empty = [name for name, place in place_of.items() if place not in with_image] if trains else []
    remarks = tuple(_remarks(folders, tree, skipped, empty))
    return Listing(tree.root, _encoded(names), labels, classes, skipped, remarks)


def read_tree(root: Path, folder: Path, ended: Callable[[], bool] | None = None) -> Tree:
    """Walk a split of an image folder, as `walk`. Raises UserError, which names the folder that cannot be read."""
    tree = walk(folder, ended)
    for name, reason in tree.closed.items():
        raise closed(root, folder / name, reason)
    return tree


def classes_in_root(folders: Folders, tree: Tree) -> tuple[str, ...]:
    """Return the class folders of a root without split folders: two or more, in one of which every image lies."""
    if folders.train != tree.root or folders.held_out or any(os.sep not in name for name in tree.images):
        return ()
    tops = sorted(set(map(top_folder, tree.images)))
    return tuple(tops) if len(tops) > 1 else ()


def is_folder(path: Path | os.DirEntry[str]) -> bool:
    """Tell whether a path is a folder; `is_dir` raises where a folder above is closed, or a link leads to itself."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_empty(folder: Path) -> bool:
    """Tell whether a path is a folder that can be read, with nothing in it."""
    try:
        return folder.is_dir() and not any(folder.iterdir())
    except OSError:
        return False


def _remarks(folders: Folders, tree: Tree, skipped: int = 0, empty: Sequence[str] = ()) -> Iterator[str]:
    """Yield a line for each kind of files and folders that a walk passed over, and for held-out images in use."""
    here, trains = printable(str(tree.root)), tree.root == folders.train
    if skipped:
        have = "has" if skipped == 1 else "have"
        yield f"{here}: {_count(skipped, 'image')} beside the class folders {have} no class, left out"
    yield from passed_over(tree)
    if empty:
        yield f"{here}: {_count(len(empty), 'class folder')} without an image ({some_names(empty)})"
    if not trains and folders.unknown_class:
        yield f"{here} cannot be classified: {folders.train.name}/ lacks its class {printable(folders.unknown_class)}"
    if trains and folders.beside:
        names = some_names(folders.beside)
        yield f"{here} holds the training images: folders and images beside it are passed over ({names})"
    held_out = [name for name in tree.folders if _is_split(os.path.basename(name), _VALIDATION + _TEST)]  # noqa: PTH119
    if trains and held_out:
        names = some_names(held_out)
        yield f"{here} is trained on as a whole, with what may be held-out images ({names}); name the folder of train/"


def passed_over(tree: Tree) -> Iterator[str]:
    """Yield a line for each kind of files and folders that a walk passed over."""
    here = printable(str(tree.root))
    if number := tree.suffixes.total():
        yield f"{here}: {_count(number, 'file')} with other suffixes passed over ({_frequencies(tree.suffixes)})"
    if tree.no_files:
        names = some_names(tree.no_files)
        yield f"{here}: {_count(len(tree.no_files), 'name')} of no file passed over, such as a broken link ({names})"
    if tree.repeated:
        names = some_names(tree.repeated)
        yield f"{here}: {_count(len(tree.repeated), 'folder')} reached again by links, and read only once ({names})"
    if tree.runs:
        yield f"{here}: run directories passed over ({some_names(tree.runs)})"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _frequencies(suffixes: Counter[str]) -> str:
    """Write how many files have each suffix, the most frequent ones first."""
    ordered = sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))
    return some_names([f"{suffix or 'none'} {count}" for suffix, count in ordered], 5)


def closed(root: Path, folder: Path, reason: str) -> UserError:
    """Return the mistake of a folder below `data.root` that cannot be read."""
    rule = f"{printable(str(folder))} cannot be read: {reason}"
    return UserError.of("data.root", root, rule, "ask for access, or remove it")


def _one_of(root: Path, names: Iterable[str], split: tuple[str, ...]) -> str:
    """Return the folder that goes by a name of a split, or an empty name. Raises UserError where there are two."""
    first, *others = [name for name in names if _is_split(name, split)] or [""]
    if others:
        rule = f"{first}/ and {others[0]}/ go by the name of one split"
        raise UserError.of("data.root", root, rule, "rename or remove one of them")
    return first


def _is_split(name: str, splits: tuple[str, ...] = _TRAIN + _VALIDATION + _TEST) -> bool:
    return name.lower() in splits


def _encoded(names: Iterable[str]) -> list[bytes]:
    return [os.fsencode(name) for name in names]


def _visible(folder: Path, kind: Callable[[os.DirEntry[str]], bool]) -> list[str]:
    """Return the visible names of a kind in a folder, sorted. Raises OSError."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name[0] != "." and kind(entry))


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(SUFFIXES) and not is_folder(entry)
