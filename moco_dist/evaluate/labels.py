"""Choose which images of a training set count as labelled, and cut labelled images into folds."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moco_dist.errors import UserError
from moco_dist.randomness import Stream, permutation

Indices = NDArray[np.int64]
Fold = tuple[Indices, Indices]
"""Images to fit a classifier to, and images to judge it by."""


def draw(
    labels: Indices, classes: int, count: int, seed: int, number: int, names: Sequence[str] | None = None
) -> Indices:
    """Choose labelled images, equally many of each class.

    Where the number of images is no multiple of the number of classes, some classes get one image more. A smaller draw
    of the same seed and number lies within a larger one, if both are multiples. If `count` is the number of all images,
    all are chosen, however many of each class there are.

    Args:
        labels: [n] classes of all images.
        classes: number of classes.
        count: images to choose.
        seed: of the run.
        number: of the draw.
        names: of the classes, for messages; None: their numbers.

    Returns:
        [count] indices, ascending.

    Raises:
        UserError: fewer images than classes, or a class has too few.
    """
    if count == len(labels):
        return np.arange(count)
    if count < classes:
        raise UserError.of("--labels", count, f"there are {classes} classes", f"use --labels {classes} or more")
    of_class = [np.flatnonzero(labels == which) for which in range(classes)]
    least = min(range(classes), key=lambda which: len(of_class[which]))
    if len(of_class[least]) < -(-count // classes):
        available, per_class, name = len(of_class[least]), -(-count // classes), names[least] if names else least
        if not available:
            raise UserError.of(
                "--labels", count, f"class {name} has no image to learn from", "remove it, or add images"
            )
        rule = f"class {name} has {available} images, and {per_class} of each are asked for"
        raise UserError.of("--labels", count, rule, f"use at most --labels {classes * available}")
    one_more = permutation(seed, Stream.LABELS, number, classes, classes)[: count % classes]
    chosen = [
        images[permutation(seed, Stream.LABELS, number, which, len(images))[: count // classes + (which in one_more)]]
        for which, images in enumerate(of_class)
    ]
    return np.sort(np.concatenate(chosen))


def folds(labels: Indices, count: int, seed: int) -> list[Fold]:
    """Cut labelled images into parts with about equal shares of each class; each part is held out once.

    Args:
        labels: [n] classes of the labelled images.
        count: parts; no more than the most frequent class has images.
        seed: of the run.

    Returns:
        Pairs of indices into `labels`.
    """
    order = permutation(seed, Stream.LABELS, 0, 1, len(labels))
    part = np.empty(len(labels), dtype=np.int64)
    # In turns through the classes, so that each part has its share of every one.
    part[order[np.argsort(labels[order], kind="stable")]] = np.arange(len(labels)) % count
    return [(np.flatnonzero(part != held_out), np.flatnonzero(part == held_out)) for held_out in range(count)]


def held_out(labels: Indices, fraction: float, seed: int) -> Fold:
    """Return one fold, in which a fraction of each class is held out."""
    return folds(labels, round(1 / fraction), seed)[0]
