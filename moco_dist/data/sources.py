"""Where images come from: arrays in memory, or files that are decoded when they are needed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision import datasets

from moco_dist import randomness
from moco_dist.config import Config
from moco_dist.config.schema import DataSection
from moco_dist.data import augment
from moco_dist.errors import UserError

Labels = NDArray[np.int64]
Split = Literal["train", "test"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

# What PIL raises at broken files, by format.
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of the training images, one for each channel."""

STATISTICS: dict[str, Statistics] = {
    "digits": ((0.3053,), (0.3760,)),
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "colour": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet's
    "grayscale": ((0.449,), (0.226,)),  # the same, averaged
}


class Source(Protocol):
    """Images with or without labels, read by index."""

    @property
    def labels(self) -> Labels | None: ...

    @property
    def channels(self) -> int: ...

    @property
    def statistics(self) -> Statistics: ...

    def __len__(self) -> int: ...

    def subset(self, indices: NDArray[np.int64]) -> Source:
        """The images at these indices alone."""

    def shortest_side(self) -> int | None:
        """Of a typical image, in pixels; None where nothing can be read."""

    def crops(self, indices: NDArray[np.int64], draws: Tensor, data: DataSection) -> tuple[Tensor, list[str]]:
        """Random crops.

        Args:
            indices: [n] which images.
            draws: [n, augment.CROP_DRAWS] uniform numbers.
            data: size and limits of the crop.

        Returns:
            uint8 [n, C, S, S], and the names of images that could not be read and were replaced.
        """

    def centred(self, indices: NDArray[np.int64], size: int) -> tuple[Tensor, list[str]]:
        """The view for an evaluation, as `crops`."""

    def digest(self) -> str:
        """sha256 of what tells it from others: pixels in memory or names of files, and labels."""


@dataclass(frozen=True)
class ArraySource:
    """Images of one size in memory, uint8 [N, C, H, W]."""

    images: Tensor
    labels: Labels | None
    statistics: Statistics

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: NDArray[np.int64]) -> ArraySource:
        return replace(self, images=self.images[indices], labels=None if self.labels is None else self.labels[indices])

    def shortest_side(self) -> int:
        return min(self.images.shape[2:])

    def crops(self, indices: NDArray[np.int64], draws: Tensor, data: DataSection) -> tuple[Tensor, list[str]]:
        height, width = (np.full(len(indices), side) for side in self.images.shape[2:])
        boxes = augment.crop_boxes(draws.numpy(), height, width, data.crop_scale, data.crop_ratio)
        return augment.resized_crop(self.images[indices], boxes, data.image_size), []

    def centred(self, indices: NDArray[np.int64], size: int) -> tuple[Tensor, list[str]]:
        return augment.centre_batch(self.images[indices], size), []

    def digest(self) -> str:
        return _digest(self.labels, self.images.numpy().tobytes())


@dataclass(frozen=True)
class FileSource:
    """Image files below a folder. An unreadable one is replaced by the next readable one in order."""

    root: Path
    names: NDArray[np.bytes_]
    """[N] paths below root; bytes in one array, since a list of str would be copied into every worker by its
    reference counts."""
    labels: Labels | None
    classes: tuple[str, ...]
    channels: int

    @property
    def statistics(self) -> Statistics:
        return _general(self.channels)

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: NDArray[np.int64]) -> FileSource:
        return replace(self, names=self.names[indices], labels=None if self.labels is None else self.labels[indices])

    def shortest_side(self) -> int | None:
        sides = []
        for index in np.linspace(0, len(self) - 1, num=min(9, len(self)), dtype=int):
            try:
                with Image.open(self.path(int(index))) as image:
                    sides.append(min(image.size))
            except _UNREADABLE:
                continue  # counted when it is read
        return int(np.median(sides)) if sides else None

    def crops(self, indices: NDArray[np.int64], draws: Tensor, data: DataSection) -> tuple[Tensor, list[str]]:
        size = data.image_size
        unreadable: list[str] = []
        out = []
        for index, numbers in zip(indices, draws.numpy(), strict=True):
            image, bad = self._open(int(index))
            width, height = (np.array([side]) for side in image.size)
            box = augment.crop_boxes(numbers[None], height, width, data.crop_scale, data.crop_ratio)[0]
            out.append(augment.crop_file(image, box, size))
            unreadable += bad
        return torch.stack(out), unreadable

    def centred(self, indices: NDArray[np.int64], size: int) -> tuple[Tensor, list[str]]:
        unreadable: list[str] = []
        out = []
        for index in indices:
            image, bad = self._open(int(index))
            out.append(augment.centre(image, size))
            unreadable += bad
        return torch.stack(out), unreadable

    def digest(self) -> str:
        return _digest(self.labels, os.fsencode(self.root.resolve()), self.names.tobytes())

    def path(self, index: int) -> Path:
        return self.root / os.fsdecode(self.names[index])

    def _open(self, index: int) -> tuple[Image.Image, list[str]]:
        unreadable: list[str] = []
        for offset in range(len(self)):
            path = self.path((index + offset) % len(self))
            try:
                with Image.open(path) as image:
                    return image.convert("L" if self.channels == 1 else "RGB"), unreadable
            except _UNREADABLE:
                unreadable.append(str(path))
        raise UserError(f"data.root = {self.root}: none of its {len(self)} images can be decoded; mend the files")


@dataclass(frozen=True)
class Data:
    """What a run reads: images to learn from, and for kNN a labelled bank and the queries that it classifies."""

    train: Source
    bank: Source | None
    queries: Source | None


def load(config: Config) -> Data:
    """Open the sources that the config asks for, for training. Raises UserError as `open_splits`, or of a batch."""
    data, batch = open_splits(config), config.optim.global_batch
    if len(data.train) < batch:
        rule = f"the training set has {len(data.train)} images, less than one batch"
        raise UserError.of("optim.global_batch", batch, rule, f"use at most {len(data.train)}")
    return data


def open_splits(config: Config) -> Data:
    """Open the sources that the config asks for, however few images they have.

    Raises:
        UserError: missing or empty root, no images, unknown classes, images smaller than the crop.
    """
    train = open_source(config, "train")
    test = None if train.labels is None else open_source(config, "test")
    _check_size(train, config.data)
    if train.labels is None or config.eval.knn_every == 0:
        return Data(train, None, None)
    if config.eval.knn_split == "validation":
        # The same cut whatever run.seed is, so that runs of several seeds compare.
        order = randomness.permutation(0, randomness.Stream.SPLIT, 0, 0, len(train))
        cut = max(1, round(len(train) * config.eval.validation_fraction))
        kept, held_out = train.subset(np.sort(order[cut:])), train.subset(np.sort(order[:cut]))
        return Data(kept, kept, held_out)
    return Data(train, train, test if test is not None and len(test) else None)


def check_unreadable(count: int, names: Sequence[str], source: Source, data: DataSection) -> None:
    """More than 1 % of a source's images that cannot be decoded are a mistake: raises UserError, naming the first."""
    if count > len(source) / 100:
        rule = f"{count} of {len(source)} images cannot be decoded, more than 1 %; {names[0]}"
        raise UserError.of("data.root", data.root, rule, "mend or remove them")


def _digest(labels: Labels | None, *others: bytes) -> str:
    told = hashlib.sha256(b"" if labels is None else labels.tobytes())
    for other in others:
        told.update(other)
    return told.hexdigest()


def open_source(config: Config, split: Split) -> Source:
    """One split of the config's source; without a test set, an empty one. Raises UserError."""
    data = config.data
    match data.source:
        case "digits":
            return _digits(split)
        case "mnist" | "cifar10":
            return _torchvision(data, split)
        case "imagefolder":
            return _folder(data, split)
        case "synthetic":
            return _synthetic(data, split)


def _digits(split: Split) -> ArraySource:
    digits = load_digits()
    images = torch.from_numpy(np.round(digits.images * (255 / 16)).astype(np.uint8))[:, None]
    # Every fifth image of each class: writers follow one another in the file, and both splits see all of them.
    held_out = np.zeros(len(images), dtype=bool)
    held_out[np.argsort(digits.target, kind="stable")[4::5]] = True
    kept = held_out if split == "test" else ~held_out
    return ArraySource(images[kept], digits.target[kept].astype(np.int64), STATISTICS["digits"])


def _torchvision(data: DataSection, split: Split) -> ArraySource:
    dataset = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}[data.source]
    assert data.root is not None
    try:
        found = dataset(data.root, train=split == "train", download=data.download)
    except (RuntimeError, OSError) as error:
        if data.download:
            raise UserError.of("data.root", data.root, f"download failed: {error}", "copy the files there") from None
        rule = "is empty" if _is_empty(data.root) else f"holds no {data.source} of torchvision's layout"
        rule = rule if Path(data.root).is_dir() else "no such folder"
        raise UserError.of("data.root", data.root, rule, "mend the path, or add data.download=true") from None
    images = torch.as_tensor(found.data)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return ArraySource(images, np.asarray(found.targets, dtype=np.int64), STATISTICS[data.source])


def _synthetic(data: DataSection, split: Split) -> ArraySource:
    count = data.samples if split == "train" else max(1, data.samples // 4)
    shape = (count, data.channels or 3, data.image_size, data.image_size)
    images = np.random.default_rng(split == "test").integers(0, 256, shape, dtype=np.uint8)
    return ArraySource(torch.from_numpy(images), np.arange(count, dtype=np.int64) % 10, _general(shape[1]))


def _folder(data: DataSection, split: Split) -> FileSource:
    assert data.root is not None
    root, channels = Path(data.root), data.channels or 3
    if not root.is_dir():
        raise UserError.of("data.root", root, "no such folder", "give the folder that holds the images")
    train = root / "train" if (root / "train").is_dir() else root
    held_out = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    classes = _subfolders(train) if train != root else ()
    if split == "test":
        if not classes or held_out is None:
            return FileSource(root, np.array([], dtype=bytes), None, classes, channels)
        unknown = sorted(set(_subfolders(held_out)) - set(classes))
        if unknown:
            rule = f"{held_out.name}/ has a class that train/ lacks: {unknown[0]}"
            raise UserError.of("data.root", root, rule, "rename or remove it")
    folder = train if split == "train" else held_out
    assert folder is not None
    names = np.array([os.fsencode(name) for name in _image_files(folder)], dtype=bytes)
    if not len(names):
        rule = "is empty" if _is_empty(folder) else f"no image below it ({', '.join(SUFFIXES)})"
        raise UserError.of("data.root", folder, rule, "give the folder that holds the images")
    labels = None
    if classes:
        number = {os.fsencode(name): index for index, name in enumerate(classes)}
        of_class = [number.get(name.split(os.fsencode(os.sep), 1)[0], -1) for name in names.tolist()]
        labels = np.array(of_class, dtype=np.int64)
        names, labels = names[labels >= 0], labels[labels >= 0]  # files beside the class folders have no class
    return FileSource(folder, names, labels, classes, channels)


def _general(channels: int) -> Statistics:
    return STATISTICS["colour" if channels == 3 else "grayscale"]


def _subfolders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."))


def _image_files(folder: Path, below: str = "") -> Iterator[str]:
    """Names of the images below a folder, in an order that no file system decides."""
    for entry in sorted(os.scandir(folder / below), key=lambda e: e.name):
        name = os.path.join(below, entry.name)  # noqa: PTH118  Path is ten times slower on a million files
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _image_files(folder, name)
        elif entry.name.lower().endswith(SUFFIXES):
            yield name


def _is_empty(folder: str | Path) -> bool:
    return Path(folder).is_dir() and not any(Path(folder).iterdir())


def _check_size(source: Source, data: DataSection) -> None:
    side = source.shortest_side()
    if side is not None and side < data.image_size:
        raise UserError.of(
            "data.image_size",
            data.image_size,
            f"the images have {side} pixels a side, less than the crop",
            f"use data.image_size={side} or less",
        )
