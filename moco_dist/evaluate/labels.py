"""Which images of a training set count as labelled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moco_dist.errors import UserError
from moco_dist.randomness import Stream, permutation

Indices = NDArray[np.int64]
Fold = tuple[Indices, Indices]
"""What to fit, and what to judge the fit by."""


def draw(labels: Indices, classes: int, count: int, seed: int, number: int) -> Indices:
    """Choose labelled images, equally many of each class; one more of some where the classes do not divide them.

    A smaller draw of the same seed and number lies within a larger one, if both divide. All images are all of them,
    however many of each class there are.

    Args:
        labels: [n] classes of all images.
        classes: how many there are.
        count: images to choose.
        seed: of the run.
        number: of the draw.

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
        there, wanted = len(of_class[least]), -(-count // classes)
        if not there:
            raise UserError.of("--labels", count, f"class {least} has no image", "remove it, or add images to it")
        rule = f"class {least} has {there} images, and {wanted} of each are asked for"
        raise UserError.of("--labels", count, rule, f"use at most --labels {classes * there}")
    one_more = permutation(seed, Stream.LABELS, number, classes, classes)[: count % classes]
    chosen = [
        images[permutation(seed, Stream.LABELS, number, which, len(images))[: count // classes + (which in one_more)]]
        for which, images in enumerate(of_class)
    ]
    return np.sort(np.concatenate(chosen))


def folds(labels: Indices, count: int, seed: int) -> list[Fold]:
    """Cut labelled images into parts with alike shares of each class; each part is once held out.

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
    """One fold: a fraction of each class is held out."""
    return folds(labels, round(1 / fraction), seed)[0]
