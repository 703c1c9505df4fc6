"""The index lists the names, labels and classes of the images in a folder, without decoding one.

Nothing here needs torch or numpy, so that the launcher can look into a folder of images on a login node.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image

from moco_dist.errors import UserError

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else it prints what it raises too, in each worker

Split = Literal["train", "test"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".npy")
"""A file is an image where its name ends with one of these, in small or capital letters."""

ARRAY_SUFFIX = ".npy"
"""Ends the name of an image that is a NumPy array."""


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


class Folders(NamedTuple):
    """Folders tell where an image folder keeps its training images and its held-out images."""

    train: Path
    """The folder `train/`, or the root itself where there is none."""
    held_out: Path | None
    """The folder `val/` or else `test/`, if there is one."""
    classes: tuple[str, ...]
    """Names of the folders in `train/`, sorted; a root without `train/` has no classes."""
    unknown_class: str
    """The first class of the held-out images that the training images lack; empty where there is none."""

    @classmethod
    def of(cls, root: Path) -> Folders:
        """Look into a folder and its direct subfolders. Raises OSError."""
        train = root / "train" if (root / "train").is_dir() else root
        held_out = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
        classes = _subfolders(train) if train != root else ()
        unknown = sorted(set(_subfolders(held_out)) - set(classes)) if held_out and classes else []
        return cls(train, held_out, classes, next(iter(unknown), ""))


def list_folder(root: Path, split: Split) -> Listing:
    """List the images of one split of an image folder; without labelled held-out images, the test split is empty.

    Args:
        root: the folder, as the user names it in `data.root`.
        split: train or test.

    Raises:
        UserError: there is no such folder or no image in it, or a held-out class that the training images lack.
    """
    if not root.is_dir():
        raise UserError.of("data.root", root, "no such folder", "give the folder that holds the images")
    train, held_out, classes, unknown_class = Folders.of(root)
    folder = train if split == "train" else held_out
    if folder is None or (split == "test" and not classes):
        return Listing(root, [], None, classes)
    if split == "test" and unknown_class:
        rule = f"{folder.name}/ has a class that train/ lacks: {unknown_class}"
        raise UserError.of("data.root", root, rule, "rename or remove it")
    names = [os.fsencode(name) for name in _image_names(folder)]
    if not names:
        rule = "is empty" if is_empty(folder) else f"no image below it ({', '.join(SUFFIXES)})"
        raise UserError.of("data.root", folder, rule, "give the folder that holds the images")
    if not classes:
        return Listing(folder, names, None)
    label, separator = {os.fsencode(name): place for place, name in enumerate(classes)}, os.fsencode(os.sep)
    labelled = [name for name in names if name.split(separator, 1)[0] in label]
    labels = [label[name.split(separator, 1)[0]] for name in labelled]
    return Listing(folder, labelled, labels, classes, skipped=len(names) - len(labelled))


def shorter_side(path: str | Path) -> int | None:
    """Read the shorter side of an image in pixels from the head of its file; None where that cannot be read."""
    try:
        if Path(path).suffix.lower() == ARRAY_SUFFIX:
            return sorted(array_shape(path))[-2]  # the channels are fewer than the pixels of a side
        with opened(path) as image:
            return min(image.size)
    except MemoryError:
        raise
    except Exception:  # decoders raise errors of their own kinds
        return None


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """Open an image file without PIL's warnings, which each worker would tell anew.

    They are about metadata, and about images of more pixels than usual; PIL refuses those of 179 million and more.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as image:
            yield image


def array_shape(path: str | Path) -> tuple[int, ...]:
    """Read the shape of an image that is a NumPy array from the head of its file.

    Raises:
        OSError, ValueError: it is no such array, of other than two or three axes, or cut short.
        DecompressionBombError: it has more pixels than PIL allows an image.
    """
    from numpy.lib.format import open_memmap  # a launcher that looks at other images has no need of it

    shape: tuple[int, ...] = open_memmap(path, mode="r").shape
    if len(shape) not in (2, 3):
        raise ValueError(f"has the shape {list(shape)}; save [H, W] or [H, W, C]")
    height, width = sorted(shape)[-2:]
    if Image.MAX_IMAGE_PIXELS and height * width > 2 * Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"has {height * width} pixels, more than {2 * Image.MAX_IMAGE_PIXELS}")
    return shape


def is_empty(folder: Path) -> bool:
    """Tell whether a path is a folder with nothing in it."""
    return folder.is_dir() and not any(folder.iterdir())


def _subfolders(folder: Path) -> tuple[str, ...]:
    """Return the names of a folder's visible subfolders, sorted. Raises OSError."""
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != "."))


def _image_names(folder: Path, below: str = "") -> Iterator[str]:
    """Yield the paths of the images below a folder, sorted folder by folder; hidden files and folders are left out."""
    for entry in sorted(os.scandir(folder / below), key=lambda e: e.name):
        name = os.path.join(below, entry.name)  # noqa: PTH118  Path is ten times slower on a million files
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _image_names(folder, name)
        elif entry.name.lower().endswith(SUFFIXES):
            yield name
