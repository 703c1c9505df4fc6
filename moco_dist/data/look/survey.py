"""Survey a folder of images: list all names, read some or all of the files, and add up what they are."""

import itertools
import math
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from statistics import median
from typing import get_args

from tqdm import tqdm

from moco_dist import processes
from moco_dist.config.schema import EvalSection
from moco_dist.data import index, shards, tree
from moco_dist.data.decode import Unreadable
from moco_dist.data.image_file import Member
from moco_dist.data.look.measure import Measured, measure
from moco_dist.errors import UserError


@dataclass(frozen=True)
class Survey:
    """A survey tells what a folder of images holds."""

    root: Path
    splits: dict[str, int]
    """Images of each split folder, or of the root where there is none."""
    classes: dict[str, int]
    """Training images of each class, of those that have one; empty where the images have no classes."""
    training_images: int
    held_out_images: int
    """Images that kNN can classify: all have a class that the training images have too."""
    suffixes: Counter[str]
    """Images by the suffix of their names, in small letters."""
    remarks: tuple[str, ...]
    """A line for each kind of what was passed over."""
    measured: tuple[Measured, ...]
    """The measurements of the images that were read."""
    damaged: tuple[Unreadable, ...]
    """Images that were read and cannot be decoded."""

    @property
    def images(self) -> int:
        """Return the number of images of all splits."""
        return sum(self.splits.values())

    @property
    def read(self) -> int:
        """Return how many of the images were read."""
        return len(self.measured) + len(self.damaged)

    @property
    def labelled(self) -> bool:
        """Tell whether the training images have classes."""
        return bool(self.classes)

    @property
    def cut_off(self) -> int:
        """Return how many labelled images `eval.knn_split=validation` would cut off where none are held out."""
        if not self.labelled or self.held_out_images:
            return 0
        return max(1, round(self.training_images * EvalSection().validation_fraction))

    @property
    def trained_images(self) -> int:
        """Return how many images a run would be trained on."""
        return self.training_images - self.cut_off

    @cached_property
    def sides(self) -> list[int]:
        """Return the shorter sides of the images that were read, in pixels, in ascending order."""
        return sorted(min(image.size) for image in self.measured)

    @property
    def typical_side(self) -> int:
        """Return the median of the shorter sides in pixels."""
        return int(median(self.sides))

    @cached_property
    def channels(self) -> int:
        """Return the channels to train with: those of most images, where gray and colour (3) count as one."""
        counts = Counter(image.channels for image in self.measured)
        gray_or_colour = counts.pop(1, 0) + counts.pop(3, 0)
        channels, number = counts.most_common(1)[0] if counts else (1, 0)
        if number > gray_or_colour:
            return channels
        return 3 if any(image.channels == 3 for image in self.measured) else 1

    @cached_property
    def fitting(self) -> list[Measured]:
        """Return the images that can be read with these channels."""
        return [image for image in self.measured if self._fits(image)]

    def _split_of(self, name: str) -> str:
        """Return the split of an image by its name, as in `splits`."""
        top = tree.top_folder(name)
        return top if top in self.splits else "."

    def _fits(self, image: Measured) -> bool:
        return image.channels in ((1, 3) if self.channels in (1, 3) else (self.channels,))

    @cached_property
    def too_many_damaged(self) -> bool:
        """Tell whether more than 1 % of what was read of a split cannot be read for training, which is refused."""
        damaged = [image.name for image in self.damaged]
        unfit = [image.name for image in self.measured if not self._fits(image)]
        read = Counter(map(self._split_of, [*damaged, *(image.name for image in self.measured)]))
        bad = Counter(map(self._split_of, [*damaged, *unfit]))
        return any(number > read[split] / 100 for split, number in bad.items())

    @cached_property
    def duplicates(self) -> list[list[str]]:
        """Return the groups of files of equal content among those that were read, the largest first."""
        groups: defaultdict[bytes, list[str]] = defaultdict(list)
        for image in self.measured:
            groups[image.digest].append(image.name)
        return sorted((names for names in groups.values() if len(names) > 1), key=len, reverse=True)

    @cached_property
    def extremes(self) -> tuple[float, float] | None:
        """Return the least and greatest value of the images of more than 8 bits a channel; None where there is none."""
        deep = [image.extremes for image in self.measured if image.extremes]
        return (min(low for low, _ in deep), max(high for _, high in deep)) if deep else None

    @cached_property
    def value_range(self) -> tuple[float, float] | None:
        """Return the range that the pixels' values need; None where that of their kind serves."""
        ranges = [image.full_range for image in self.measured if image.extremes]
        if self.extremes is None or None in ranges:
            return None
        (low, high), (least, most) = self.extremes, max(whole for whole in ranges if whole)
        if least <= low <= high <= most and high - low >= (most - least) / 8:
            return None
        if low < 0 or high <= 1:
            return (low, high) if high > low else None
        return 0.0, float(2 ** max(8, math.ceil(math.log2(high + 1))) - 1)

    @cached_property
    def pixel_statistics(self) -> tuple[list[float], list[float]]:
        """Return each channel's mean and standard deviation, of pixels in [0, 1]; every pixel counts the same."""
        images = self.fitting
        pixels = sum(image.pixels for image in images)
        mean, std = [], []
        for channel in range(self.channels):
            # A gray image among coloured ones has its one channel three times.
            sums, squares = (
                math.fsum(moments[min(channel, len(moments) - 1)] for moments in of_images)
                for of_images in ([image.sums for image in images], [image.squares for image in images])
            )
            mean.append(sums / pixels)
            std.append(math.sqrt(max(0.0, squares / pixels - mean[-1] ** 2)))
        return mean, std


def survey(root: Path, sample: int | None) -> Survey:
    """Survey a folder of images, on all cores, with a progress bar on stderr.

    Args:
        root: the folder, as `data.root` would name it.
        sample: images to read, spread evenly over all; None: all of them.

    Raises:
        UserError: the folder cannot be read or holds no image, or none that can be decoded.
    """
    splits, training, held_out, files = _packed(root) if shards.is_packed(root) else _listed(root)
    if not files:
        rule = f"no image below it ({', '.join(tree.SUFFIXES)})"
        raise UserError.of("FOLDER", root, rule, "give the folder that holds the images")
    results = _measure(files if sample is None else tree.some(files, sample), root)
    measured = tuple(result for result in results if isinstance(result, Measured))
    damaged = tuple(result for result in results if isinstance(result, Unreadable))
    if not measured:
        rule = f"none of {len(damaged)} images can be decoded, such as {damaged[0]}"
        raise UserError.of("FOLDER", root, rule, "mend the files")
    labels = Counter(training.labels or ())
    return Survey(
        root=root,
        splits=splits,
        classes={name: labels[place] for place, name in enumerate(training.classes) if labels[place]},
        training_images=len(training.names),
        held_out_images=len(held_out.names) if held_out and training.labels else 0,
        suffixes=Counter(PurePath(file if isinstance(file, str) else file.name).suffix.lower() for file in files),
        remarks=tuple(remark for listing in (training, held_out) if listing for remark in listing.remarks),
        measured=measured,
        damaged=damaged,
    )


_Listed = tuple[dict[str, int], index.Listing, index.Listing | None, Sequence[str | Member]]
"""Images of each split, the listings of the training and the held-out images, and all files that can be read."""


def _listed(root: Path) -> _Listed:
    """List a folder of images. Raises UserError."""
    folders = index.Folders.of(root)
    held_out_folder = folders.held_out if folders.train != root else None  # a root without train/ holds it too
    trees = [index.read_tree(root, folder) for folder in (folders.train, held_out_folder) if folder]
    training, *held_out = (index.listing_of(folders, of_split) for of_split in trees)
    paths = [os.path.join(of_split.root, name) for of_split in trees for name in of_split.images]  # noqa: PTH118
    splits = {str(of_split.root.relative_to(root)): len(of_split.images) for of_split in trees}
    unlabelled = [listing._replace(names=[]) for listing in held_out] if folders.unknown_class else held_out
    return splits, training, next(iter(unlabelled), None), paths


def _packed(root: Path) -> _Listed:
    """List a folder of shards. Raises UserError."""
    splits = [shards.open_split(root, split, "FOLDER") for split in get_args(index.Split)]
    listings = [
        index.Listing(root, one.names.tolist(), None if one.labels is None else one.labels.tolist(), one.classes)
        for one in splits
    ]
    members = [one.places.member(number, name) for one in splits for number, name in enumerate(one.names)]
    counts = {one.places.prefix.rstrip("/") or ".": len(one.names) for one in splits if len(one.names)}
    return counts, listings[0], listings[1], members


def _measure(files: Sequence[str | Member], root: Path) -> list[Measured | Unreadable]:
    """Measure files in processes of their own, one for each core. Raises UserError where one of them dies."""
    results: list[Measured | Unreadable] = []
    cores = len(os.sched_getaffinity(0))  # not those of the whole machine, of which a job may have few
    length = max(1, min(64, len(files) // (8 * cores)))
    chunks = (files[start : start + length] for start in range(0, len(files), length))
    bar = tqdm(desc="reading", total=len(files), unit=" images")
    try:
        with bar, processes.workers(cores) as pool:
            for measured in pool.map(_measure_each, chunks, itertools.repeat(root)):
                results += measured
                bar.update(len(measured))
    except (BrokenProcessPool, MemoryError):
        rule = "a process that read its images was out of memory, or killed for it or by a damaged file"
        raise UserError.of("FOLDER", root, rule, "look at a part of it, such as one class") from None
    return results


def _measure_each(files: Sequence[str | Member], root: Path) -> list[Measured | Unreadable]:
    """Measure files, which are named by their paths below the folder that they are, or were packed, from."""
    return [
        measure(file)._replace(name=file.name)
        if isinstance(file, Member)
        else measure(Path(file))._replace(name=os.path.relpath(file, root))
        for file in files
    ]
