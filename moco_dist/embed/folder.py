"""List all images of a folder, of whatever split and class, or of the shards that were made of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import numpy as np

from moco_dist.data import index, sampling
from moco_dist.data.pixel_statistics import PixelStatistics
from moco_dist.data.shards import PackedSplit, Places, is_packed, open_split
from moco_dist.data.store import FileSource
from moco_dist.data.tree import SHARD_INDEX, SUFFIXES, walk
from moco_dist.encoders.preprocessing import Preprocessing
from moco_dist.errors import UserError, printable
from moco_dist.ranks import watchdog
from moco_dist.ranks.collectives import World

_FIX = "give the folder that holds the images"


def on_all_ranks(root: Path, preprocess: Preprocessing, world: World) -> FileSource:
    """List the images of a folder on every rank, untimed.

    Raises:
        UserError: on all ranks, as `open_folder`, or that the ranks see different images.
    """

    def untimed() -> FileSource:
        with watchdog.untimed():
            return open_folder(root, preprocess)

    images = world.agreed(untimed)
    counts = world.gather_objects((len(images), images.digest()))
    if len(set(counts)) > 1:
        rule = f"the ranks see different images in it: {', '.join(str(count) for count, _ in counts[:8])} of them"
        raise UserError.of("FOLDER", root, rule, "give every node the same files")
    return images


def range_doubts(images: FileSource) -> list[str]:
    """Say what is doubtful about the range that values of more than 8 bits are scaled from, by some of the images.

    Images beyond the range are left out as any that cannot be decoded, so that they end nothing.
    """
    try:
        return list(sampling.range_notes([images]))
    except UserError as mistake:
        return [str(mistake)]


def open_folder(root: Path, preprocess: Preprocessing) -> FileSource:
    """List the images of a folder in the order in which a walk meets them; those of shards in the same order.

    Args:
        root: the folder, as the user names it.
        preprocess: what the images are made into.

    Raises:
        UserError: there is no such folder, no image in it, or a part that cannot be read.
    """
    if is_packed(root):
        names, places = _packed(root)
        return _source(root, names, preprocess, (), places)
    try:
        if not stat.S_ISDIR(root.stat().st_mode):
            raise UserError.of("FOLDER", root, "is a file, not a folder", _FIX)
    except OSError as error:
        rule = "no such folder" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise UserError.of("FOLDER", root, rule, _FIX) from None
    tree = walk(root)
    for name, reason in tree.closed.items():
        rule = f"{printable(str(root / name))} cannot be read: {reason}"
        raise UserError.of("FOLDER", root, rule, "ask for access, or remove it")
    if not tree.images:
        rule = "is empty" if index.is_empty(root) else f"no image below it ({', '.join(SUFFIXES)})"
        rule += f", and of the shards in it no {SHARD_INDEX}, with which packing ends" if tree.suffixes[".tar"] else ""
        raise UserError.of("FOLDER", root, rule, _FIX)
    remarks = tuple(index.passed_over(tree))
    return _source(root, map(os.fsencode, tree.images), preprocess, remarks, None)


def _source(
    root: Path, names: Iterable[bytes], preprocess: Preprocessing, remarks: tuple[str, ...], places: Places | None
) -> FileSource:
    statistics, of_names = PixelStatistics(preprocess.mean, preprocess.std), np.array(list(names), dtype=bytes)
    channels, value_range = preprocess.channels, preprocess.value_range
    return FileSource(root, of_names, None, (), channels, statistics, value_range, remarks, places)


def _packed(root: Path) -> tuple[list[bytes], Places]:
    """List the images of both splits of a folder of shards, in the order of the packed folder. Raises UserError."""
    splits: list[PackedSplit] = [open_split(root, split, "FOLDER") for split in get_args(index.Split)]
    names, shards, images = list[bytes](), tuple[str, ...](), []
    for packed in splits:
        prefix = os.fsencode(packed.places.prefix)
        names += [prefix + name for name in packed.names.tolist()]
        images.append(packed.places.images.copy())
        images[-1]["shard"] += len(shards)
        shards += packed.places.shards
    if not names:
        raise UserError.of("FOLDER", root, "no image in its shards", _FIX)
    parts = [os.fsdecode(name).split("/") for name in names]
    order = sorted(range(len(names)), key=parts.__getitem__)
    places = Places(root, shards, "", np.concatenate(images)[order])
    return [names[place] for place in order], places
