"""Walk a folder of images: its images in an order that no file system decides, and what is passed over.

Nothing here needs torch or numpy, so that the launcher can look into a folder of images on a login node.
"""

import errno
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from moco_dist.run.paths import METRICS

T = TypeVar("T")

ARRAY_SUFFIX = ".npy"
"""Ends the name of an image that is a NumPy array."""
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".gif", ".bmp", ".webp", ".avif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ARRAY_SUFFIX),
)
"""A file is an image where its name ends with one of these, in small or capital letters."""
SHARD_INDEX = "shards.npz"
"""The file by which a folder of shards is known; see `shards`."""


@dataclass
class Tree:
    """A tree is what lies below a folder; all paths are relative to it. Hidden files and folders are left out."""

    root: Path
    images: list[str] = field(default_factory=list)
    """[N] paths of the images, sorted folder by folder."""
    folders: list[str] = field(default_factory=list)
    """Folders that were entered; the root is the empty path."""
    suffixes: Counter[str] = field(default_factory=Counter)
    """Numbers of the files that are no images, by suffix in small letters; a name without one has the empty suffix."""
    repeated: list[str] = field(default_factory=list)
    """Folders that had been entered by another path, such as a link to a folder above; they are not entered again."""
    no_files: list[str] = field(default_factory=list)
    """Links that lead nowhere, and what is neither file nor folder, such as a socket."""
    runs: list[str] = field(default_factory=list)
    """Run directories, whose pictures are no data; they are not entered."""
    closed: dict[str, str] = field(default_factory=dict)
    """Folders that could not be read, and why."""
    unfinished: str | None = None
    """The folder in which the walk was ended, so that more lies in the tree; None where all was seen."""


def walk(root: Path, ended: Callable[[], bool] | None = None) -> Tree:
    """List all that lies below a folder. Links are followed, and no folder is entered twice.

    A folder that a link leads to and that lies in the tree too is entered where it lies, not by the link.

    Args:
        root: the folder.
        ended: called at each name; where it returns true, the walk ends and what was seen until then is returned.
    """
    tree, inside = Tree(root), {"": list[str]()}
    above = {*root.resolve().parents, *root.absolute().parents}  # a link to one of them would lead out of the tree
    entered = {number for folder in above if (number := _number(folder))}
    waiting, links = [""], deque[str]()
    while (waiting or links) and tree.unfinished is None:
        folder = waiting.pop() if waiting else links.popleft()
        path = os.path.join(root, folder)  # noqa: PTH118  Path is ten times slower on a million files
        try:
            status = os.stat(path)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in entered:
                tree.repeated.append(folder)
                continue
            entered.add((status.st_dev, status.st_ino))
            if folder and os.path.exists(os.path.join(path, METRICS)):  # noqa: PTH110, PTH118
                tree.runs.append(folder)
                continue
            inside[folder] = []
            subfolders, linked = _enter(tree, folder, inside[folder], ended)
        except OSError as error:
            tree.closed[folder] = str(error.strerror)
            continue
        waiting += sorted(subfolders, reverse=True)
        links += sorted(linked)
        if folder:
            inside[os.path.dirname(folder)].append(folder)  # noqa: PTH120
    tree.folders, tree.images = list(inside), list(_sorted(inside))
    return tree


def top_folder(path: str) -> str:
    """Return the first folder of a path in a tree; of a file beside the folders, its own name."""
    return path.split(os.sep, 1)[0]


def some(items: Sequence[T], count: int) -> list[T]:
    """Return so many items, or fewer, spread evenly from the first to the last."""
    number = min(count, len(items))
    return [items[place * (len(items) - 1) // max(1, number - 1)] for place in range(number)]


def _enter(tree: Tree, folder: str, images: list[str], ended: Callable[[], bool] | None) -> tuple[list[str], list[str]]:
    """Sort the names in a folder into images, what is passed over, subfolders and links to folders; returns these two.

    Raises:
        OSError: the folder, or what a link in it leads to, cannot be read.
    """
    subfolders, links = list[str](), list[str]()
    with os.scandir(os.path.join(tree.root, folder)) as entries:  # noqa: PTH118
        for entry in entries:
            name = entry.name
            if ended is not None and ended():
                tree.unfinished = folder
                break
            if name[0] == ".":
                continue
            path = f"{folder}{os.sep}{name}" if folder else name
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError as error:
                if error.errno != errno.ELOOP:
                    tree.closed[path] = str(error.strerror)
                    continue
                is_folder = is_file = False  # a link that leads to itself
            if is_folder:
                (links if entry.is_symlink() else subfolders).append(path)
            elif not is_file:
                tree.no_files.append(path)
            elif name.lower().endswith(SUFFIXES):
                images.append(path)
            else:
                tree.suffixes[os.path.splitext(name)[1].lower()] += 1  # noqa: PTH122
    return subfolders, links


def _sorted(inside: dict[str, list[str]]) -> Iterator[str]:
    """Yield the images of entered folders; in each, images and folders come in the order of their names."""
    waiting = [""]
    while waiting:
        path = waiting.pop()
        if path in inside:
            waiting += sorted(inside[path], reverse=True)
        else:
            yield path


def _number(folder: Path) -> tuple[int, int] | None:
    """Return the numbers by which the file system knows a folder; None where it cannot be asked."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
