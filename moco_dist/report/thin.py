"""Thin curves without hiding a spike, and smooth them."""

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

_SMOOTH_POINTS = 160
"""Points of a smoothed curve, at most."""


def thinned(values: Numbers, most_points: int) -> NDArray[np.intp]:
    """Choose the points of a curve that are drawn: the lowest and the highest of each interval, the first and the last.

    Args:
        values: [n], finite.
        most_points: of the result, 4 or more.

    Returns:
        Their indices in order: all of them where n is at most `most_points`.
    """
    assert most_points >= 4, most_points
    count = len(values)
    if count <= most_points:
        return np.arange(count)
    intervals = (most_points - 2) // 2
    width = -(-count // intervals)
    intervals = -(-count // width)
    padded = np.pad(values, (0, intervals * width - count), mode="edge").reshape(intervals, width)
    starts = width * np.arange(intervals)
    chosen = [np.array([0, count - 1]), starts + padded.argmin(axis=1), starts + padded.argmax(axis=1)]
    return np.unique(np.concatenate(chosen).clip(0, count - 1))


def smoothed(values: Numbers) -> tuple[NDArray[np.intp], Numbers]:
    """Return the mean round each of some points of a curve, over a hundredth of all its values.

    Args:
        values: [n], finite.

    Returns:
        The indices of the points, in order, and their means; both empty where n is too small to be smoothed.
    """
    count = len(values)
    half = count // 200
    if half < 1:
        return np.zeros(0, dtype=np.intp), np.zeros(0)
    centres = np.unique(np.linspace(0, count - 1, min(count, _SMOOTH_POINTS)).astype(np.intp))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first, last = (centres - half).clip(0), (centres + half + 1).clip(max=count)
    return centres, (sums[last] - sums[first]) / (last - first)
