"""Check without torch that the data of a run is there, and count its images.

The trainer opens the data on the nodes by the same rules, those of moco_dist/data/index.py for a folder of images.
"""

import contextlib
import functools
import os
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from launcher.checks import finding
from launcher.checks.finding import Finding
from moco_dist.config import Config
from moco_dist.data.image_file import ImageFile, shorter_side
from moco_dist.data.index import Folders, listing_of, read_tree
from moco_dist.data.tree import SHARD_INDEX, SUFFIXES, Tree, some, top_folder
from moco_dist.errors import UserError
from moco_dist.run.checkpoints import CheckpointIndex
from moco_dist.run.paths import RunPaths

_SECONDS = 1.5
"""The time for a look into a folder, which may hold a million images on a shared disk."""
_FILES = {
    "mnist": tuple(f"MNIST/raw/{s}-{kind}-ubyte" for s in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")),
    "cifar10": tuple(f"cifar-10-batches-py/{n}" for n in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")),
}
_WEIGHTS = ("*.safetensors", "pytorch_model.bin", "*.index.json")
"""A folder of weights holds a file that one of these patterns matches."""
_IMAGES = {"digits": 1438, "mnist": 60_000, "cifar10": 50_000}
_SIDES = {"digits": 8, "mnist": 28, "cifar10": 32}
_SAMPLES = 9


@dataclass(frozen=True)
class Folder:
    """A tree of images."""

    images: int | None
    """Images of training; an estimate from the classes that were read where time ran out; None without any."""
    exact: bool
    labelled: bool
    foreign: str = ""
    """A class of the held-out images that the training images lack."""
    sides: tuple[int, ...] = ()
    """Shorter sides of some images, in pixels."""
    trouble: str = ""
    """Why it cannot be read, as the trainer would tell it."""


@dataclass(frozen=True)
class Images:
    """Number of training images."""

    count: int
    exact: bool


def count(config: Config, *, staged: bool) -> Images | None:
    """Training images of a run; None where that cannot be told in time."""
    data = config.data
    if data.source != "imagefolder":
        images, exact, labelled = _IMAGES.get(data.source, data.samples), True, True
    elif staged or not _is(Path.is_dir, data.root or ""):
        return None
    else:
        folder = look(str(data.root))
        if not folder.images:
            return None
        images, exact, labelled = folder.images, folder.exact, folder.labelled
    if labelled and config.eval.knn_every and config.eval.knn_split == "validation":
        images -= max(1, round(images * config.eval.validation_fraction))
    return Images(images, exact)


def check(config: Config, stage: str | None) -> Iterator[Finding]:
    """Check that the data of the run is there."""
    data = config.data
    if stage:
        yield from _staged(Path(stage), data.root)
    elif data.root and not data.download and data.source in ("mnist", "cifar10", "imagefolder"):
        yield from _root(config, Path(data.root))
    if data.root and data.source in ("digits", "synthetic"):
        rule = f"data.source={data.source} reads no folder, so that it does not count"
        yield finding.warning("data.root", data.root, rule, "for a folder of images, add data.source=imagefolder")
    side = _SIDES.get(data.source)
    if side and data.image_size > side and not data.enlarge:
        rule = f"the images of {data.source} have {side} pixels a side"
        yield finding.error("data.image_size", data.image_size, rule, _smaller(side))
    if config.run.init_from and not CheckpointIndex(RunPaths(config.run_dir).checkpoints).last():
        yield from _weights(Path(config.run.init_from))


def _weights(start: Path) -> Iterator[Finding]:
    """Check the weights that a run begins from: a file, a run, or a folder of weights. Only the trainer reads them."""
    is_folder = _is(Path.is_dir, start)
    if not is_folder and not _is(Path.is_file, start):
        yield finding.error(
            "run.init_from",
            start,
            "no such file",
            "give a file of safetensors or of torch.save",
        )
    elif not os.access(start, os.R_OK | os.X_OK if is_folder else os.R_OK):
        yield finding.error("run.init_from", start, "cannot be read by you", "ask for access, or copy it")
    elif is_folder and not CheckpointIndex(RunPaths(start).checkpoints).last() and not _has(start, _WEIGHTS):
        rule = f"is a folder without weights: it holds none of {', '.join(_WEIGHTS)} and no checkpoint"
        yield finding.error("run.init_from", start, rule, "give a run directory, a folder of weights or a file")
    elif not is_folder and not start.stat().st_size:
        yield finding.error("run.init_from", start, "is empty", "copy it again")


def _has(folder: Path, patterns: Sequence[str]) -> bool:
    """Return whether a folder holds something of one of the patterns."""
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def _staged(archive: Path, root: str | None) -> Iterator[Finding]:
    try:
        is_packed = _is(Path.is_file, archive / SHARD_INDEX)
        if not (is_packed or zipfile.is_zipfile(archive) or tarfile.is_tarfile(archive)):
            yield finding.error("--stage", archive, "is no tar and no zip", "pack the data as one of them")
    except OSError as error:
        yield finding.error("--stage", archive, f"cannot be read: {error.strerror}", "give a tar or zip")
    if root is None:
        yield finding.warning("--stage", archive, "the run reads no folder", "drop it, or set data.source")
    elif Path(root).is_absolute() or ".." in Path(root).parts:
        yield finding.error(
            "data.root", root, "must be a folder in the archive of --stage", "use data.root=. for its top"
        )


def _root(config: Config, root: Path) -> Iterator[Finding]:
    source = config.data.source
    if not _is(Path.is_dir, root):
        yield finding.error("data.root", root, "no such folder from here", "give the folder of the data")
    elif not os.access(root, os.R_OK | os.X_OK):
        yield finding.error("data.root", root, "cannot be read by you", "ask for access, or copy it")
    elif source == "imagefolder":
        yield from _tree(config, root)
    else:
        missing = [name for name in _FILES[source] if not _is(Path.is_file, root / name)]
        processed = (root / f"MNIST/processed/{name}.pt" for name in ("training", "test"))
        legacy = source == "mnist" and all(_is(Path.is_file, file) for file in processed)
        if missing and not legacy:
            rule = f"has no {missing[0]}, as torchvision lays {source} out"
            yield finding.error("data.root", root, rule, "mend the path, or add data.download=true")


def _tree(config: Config, root: Path) -> Iterator[Finding]:
    folder, image_size = look(str(root)), 0 if config.data.enlarge else config.data.image_size
    if folder.trouble:
        yield Finding("error", folder.trouble)
    elif folder.exact and not folder.images:
        rule = f"no image below it ({', '.join(SUFFIXES)})"
        yield finding.error("data.root", root, rule, "give the folder that holds the images")
    if folder.foreign and config.eval.knn_every and config.eval.knn_split == "test":
        rule = f"its held-out images have a class that train/ lacks: {folder.foreign}"
        yield finding.error("data.root", root, rule, "rename or remove it")
    if folder.sides and (typical := int(median(folder.sides))) < image_size:
        rule = f"the images have about {typical} pixels a side, less than the crop"
        tell = finding.error if max(folder.sides) < image_size else finding.warning  # the trainer looks at others
        yield tell("data.image_size", image_size, rule, _smaller(typical))


def _smaller(side: int) -> str:
    return f"use data.image_size={side} or less, or data.enlarge=true to scale them up"


@functools.cache  # a sweep checks each of its members
def look(root: str) -> Folder:
    """Return what a tree of images holds, as far as it can be read in a second or two."""
    top, deadline = Path(root), time.monotonic() + _SECONDS
    if _is(Path.is_file, top / SHARD_INDEX):
        return _packed(top)
    try:
        folders = Folders.of(top)
        tree = read_tree(top, folders.train, lambda: time.monotonic() > deadline)
    except UserError as error:
        return Folder(None, False, False, trouble=str(error))
    if tree.unfinished is None:
        listing = listing_of(folders, tree)
        images: int | None = len(listing.names)
        labelled = listing.labels is not None
    else:
        images, labelled = _expected(tree, folders.classes), bool(folders.classes)
    sides = _sides([tree.root / name for name in some(tree.images, _SAMPLES)])
    return Folder(images, tree.unfinished is None, labelled, folders.unknown_class, sides)


def _packed(root: Path) -> Folder:
    """Return what a folder of shards holds; its index tells at once."""
    from moco_dist.data import shards  # it needs numpy, which other commands do without

    try:
        train = shards.open_split(root, "train")
        shards.open_split(root, "test")
    except UserError as error:
        return Folder(None, False, False, trouble=str(error))
    members = [train.places.member(number, train.names[number]) for number in some(range(len(train.names)), _SAMPLES)]
    return Folder(len(train.names), True, train.labels is not None, sides=_sides(members))


def _expected(tree: Tree, classes: tuple[str, ...]) -> int | None:
    """Images of all classes, as those that were read to their ends let expect; None: there is none such."""
    assert tree.unfinished is not None
    counts = Counter(map(top_folder, tree.images))
    read = [name for name in classes if name in counts and name != top_folder(tree.unfinished)]
    return sum(counts[name] for name in read) * len(classes) // len(read) if read else None


def _is(kind: Callable[[Path], bool], path: str | Path) -> bool:
    """Path.is_dir or Path.is_file, which raise where a folder above is closed to this user."""
    with contextlib.suppress(OSError):
        return kind(Path(path))
    return False


def _sides(image_files: Sequence[ImageFile]) -> tuple[int, ...]:
    """Shorter sides of images, as far as they can be read."""
    return tuple(side for file in image_files if (side := shorter_side(file)) is not None)
