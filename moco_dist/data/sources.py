"""Open the source of images that a config names, for training and for the evaluation beside it."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from moco_dist import randomness
from moco_dist.config import Config
from moco_dist.config.data_section import DataSection
from moco_dist.data import cache, sampling
from moco_dist.data.decode import Unreadable
from moco_dist.data.identity import Identity, check_ranks
from moco_dist.data.index import Split, is_empty, is_folder, list_folder
from moco_dist.data.pixel_statistics import PIXEL_STATISTICS, PixelStatistics, general_statistics
from moco_dist.data.shards import is_packed, open_split
from moco_dist.data.store import ArraySource, FileSource, Source
from moco_dist.errors import UserError, reason, shown
from moco_dist.ranks import watchdog
from moco_dist.ranks.collectives import World

_ABSENT = re.compile("not found|Error downloading")
"""Words of torchvision's errors about files that are not there."""


@dataclass(frozen=True)
class Data:
    """The data of a run are images to learn from, and for kNN a labelled bank and the queries that it classifies."""

    train: Source
    bank: Source | None
    queries: Source | None
    remarks: tuple[str, ...] = ()
    """A line for each kind of files that were passed over, and for what is allowed but seldom meant."""
    notes: tuple[str, ...] = ()
    """A line for each source whose images are kept."""

    @cached_property
    def identity(self) -> Identity:
        """Return what tells the training set from others, wherever it lies."""
        return Identity.of(self.train)


def load(config: Config) -> Data:
    """Open the sources that the config names, for training. Raises UserError as `open_splits`, or of a batch."""
    data, batch = open_splits(config), config.optim.global_batch
    if len(data.train) < batch:
        rule = f"the training set has {len(data.train)} images, less than one batch"
        fix = f"use at most {len(data.train)}" if len(data.train) > 1 else "add images"  # BatchNorm needs two
        raise UserError.of("optim.global_batch", batch, rule, fix)
    return data


def on_all_ranks(config: Config, world: World, load: Callable[[Config], Data]) -> Data:
    """Open the images on every rank, untimed; where they are downloaded, the first rank of a node goes ahead.

    Small images are then kept where they are cropped, as `data.cache` says.

    Raises:
        UserError: on all ranks, what `load` or `cache.keep` raises, or that the ranks see different images.
    """

    def untimed() -> tuple[Data, Identity]:
        with watchdog.untimed():
            data = load(config)
            _ = data.identity  # computed while nobody waits with a clock
            return data, Identity.of(data.queries)

    data, of_queries = world.first_then_others(untimed) if config.data.download else world.agreed(untimed)
    check_ranks({"training": data.identity, "held-out": of_queries}, config, world)
    with watchdog.untimed():
        train = cache.keep(data.train, config, world)
        queries = None if data.queries is None else cache.keep(data.queries, config, world)
    notes = tuple(filter(None, (cache.note(source) for source in (train, queries) if source is not None)))
    return replace(data, train=train, bank=None if data.bank is None else train, queries=queries, notes=notes)


def open_splits(config: Config) -> Data:
    """Open the sources that the config names, however few images they have.

    Raises:
        UserError: missing or empty root, no images, unknown classes, images smaller than the crop, values out of range.
    """
    train = open_source(config, "train")
    _check_size(train, config.data)
    watched = train.labels is not None and config.eval.knn_every > 0
    test = open_source(config, "test") if watched and config.eval.knn_split == "test" else None
    remarks = (*train.remarks, *(test.remarks if test else ()), *_notes(train, test, config))
    if not config.data.mean and isinstance(train, FileSource) and train.channels not in (1, 3):
        train = replace(train, pixel_statistics=sampling.statistics(train))
    if not watched:
        return Data(train, None, None, remarks)
    if config.eval.knn_split == "validation":
        # The same cut whatever run.seed is, so that runs of several seeds compare.
        order = randomness.permutation(0, randomness.Stream.SPLIT, 0, 0, len(train))
        cut = max(1, round(len(train) * config.eval.validation_fraction))
        kept, held_out = train.subset(np.sort(order[cut:])), train.subset(np.sort(order[:cut]))
        return Data(kept, kept, held_out, remarks)
    return Data(train, train, test if test is not None and len(test) else None, remarks)


def with_statistics(config: Config, train: Source) -> Config:
    """Return the config with the pixel statistics that were measured, so that they are kept with the run."""
    if train.channels in (1, 3):
        return config
    mean, std = train.pixel_statistics
    return config.model_copy(update={"data": config.data.model_copy(update={"mean": mean, "std": std})})


def check_unreadable(count: int, unreadable: Sequence[Unreadable], source: Source, data: DataSection) -> None:
    """Refuse a source of which more than 1 % cannot be decoded. Raises UserError, which names the first such image."""
    if count > len(source) / 100:
        rule = f"{count} of {len(source)} images cannot be decoded, more than 1 %; {unreadable[0]}"
        raise UserError.of("data.root", data.root, rule, "mend or remove them")


def open_source(config: Config, split: Split) -> ArraySource | FileSource:
    """Open one split of the config's source; where there is no test set, an empty one. Raises UserError."""
    source = _open(config.data, split)
    mean, std = config.data.mean, config.data.std
    return replace(source, pixel_statistics=PixelStatistics(mean, std)) if mean and std else source


def _open(data: DataSection, split: Split) -> ArraySource | FileSource:
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
    # The file alone is read: to import scikit-learn takes as long as to import torch.
    file = metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(file), np.int64, delimiter=",")  # a row is 64 pixels from 0 to 16, and the digit
    pixels, digits = np.round(table[:, :64] * (255 / 16)).astype(np.uint8), table[:, 64]
    images = torch.from_numpy(pixels).view(-1, 1, 8, 8)
    # Every fifth image of each class: writers follow one another in the file, and both splits see all of them.
    held_out = np.isin(np.arange(len(images)), np.argsort(digits, kind="stable")[4::5])
    kept = held_out if split == "test" else ~held_out
    return ArraySource(images[kept], digits[kept], PIXEL_STATISTICS["digits"])


def _torchvision(data: DataSection, split: Split) -> ArraySource:
    from torchvision import datasets  # these sources alone need it

    dataset = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}[data.source]
    assert data.root is not None
    try:
        opened = dataset(data.root, train=split == "train", download=data.download)
    except MemoryError:
        raise
    except Exception as error:  # torchvision takes what is in a file for granted, and asserts
        raise _not_opened(data, Path(data.root), error) from None
    images = torch.as_tensor(opened.data)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return ArraySource(images, np.asarray(opened.targets, dtype=np.int64), PIXEL_STATISTICS[data.source])


def _not_opened(data: DataSection, root: Path, error: Exception) -> UserError:
    """Word why torchvision has not opened a source: the files are not there, or damaged."""
    if not isinstance(error, OSError) and not _ABSENT.search(str(error)):
        rule = f"holds a damaged file of {data.source} ({reason(error)})"
        return UserError.of("data.root", root, rule, "copy the files again, or remove them and add data.download=true")
    if data.download:
        return UserError.of("data.root", root, f"download failed: {error}", "copy the files there")
    rule = "is empty" if is_empty(root) else f"holds no {data.source} of torchvision's layout"
    rule = rule if is_folder(root) else "no such folder"
    return UserError.of("data.root", root, rule, "mend the path, or add data.download=true")


def _folder(data: DataSection, split: Split) -> FileSource:
    assert data.root is not None
    root, channels = Path(data.root), data.channels or 3
    statistics = general_statistics(channels)
    if is_packed(root):
        packed = open_split(root, split)
        return FileSource(
            root, packed.names, packed.labels, packed.classes, channels, statistics, data.value_range, (), packed.places
        )
    listing = list_folder(root, split)
    names = np.array(listing.names, dtype=bytes)
    labels = None if listing.labels is None else np.array(listing.labels, dtype=np.int64)
    return FileSource(
        listing.folder, names, labels, listing.classes, channels, statistics, data.value_range, listing.remarks
    )


def _synthetic(data: DataSection, split: Split) -> ArraySource:
    count = data.samples if split == "train" else max(1, data.samples // 4)
    shape = (count, data.channels or 3, data.image_size, data.image_size)
    images = np.random.default_rng(split == "test").integers(0, 256, shape, dtype=np.uint8)
    return ArraySource(torch.from_numpy(images), np.arange(count, dtype=np.int64) % 10, general_statistics(shape[1]))


def _check_size(source: Source, data: DataSection) -> None:
    side = None if data.enlarge else source.shortest_side()
    if side is not None and side < data.image_size:
        rule = f"the images have {side} pixels a side, less than the crop"
        fix = f"use data.image_size={side} or less, or data.enlarge=true to scale them up"
        raise UserError.of("data.image_size", data.image_size, rule, fix)


def _notes(train: Source, test: Source | None, config: Config) -> Iterator[str]:
    """Yield what to tell of the images that a run begins with. Raises UserError, as `sampling.range_notes`."""
    if config.data.root and config.data.source in ("digits", "synthetic"):
        rule = f"data.source={config.data.source} reads no folder, so that it does not count"
        yield f"data.root = {shown(config.data.root)}: {rule}; for a folder of images, add data.source=imagefolder"
    yield from sampling.range_notes([s for s in (train, test) if isinstance(s, FileSource)])
    if train.channels not in (1, 3) and config.data.augmentation != "crop_blur":
        yield f"data.channels = {train.channels}: saturation, hue and grayscale are for colour, and are left out"
