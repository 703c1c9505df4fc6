"""Keep the images that are nearest to some queries, while the features of a folder come in parts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moco_dist.embed.stream import Rows

_DIGITS = 6
"""Similarities are rounded to so many digits, since those of equal images in two chunks may differ in the last bits."""


class Nearest:
    """Keep the nearest images of each query, by the cosine of their features; of equal ones, the first of the folder.

    Args:
        queries: features [Q, D].
        count: images that are kept of each query.
    """

    def __init__(self, queries: NDArray[np.float32], count: int) -> None:
        self._queries, self._count = _normalised(queries), count
        self.places = np.empty((len(queries), 0), dtype=np.int64)
        """[Q, count or fewer] places of the images in the folder, the nearest first."""
        self.similarities = np.empty((len(queries), 0))
        """The cosine between each query and each of its nearest images, rounded: [Q, count or fewer]."""

    def add(self, rows: Rows) -> None:
        """Compare more images with the queries, and keep those that are nearer."""
        similarities = np.round(self._queries @ _normalised(rows.features).T, _DIGITS)  # [Q, n]
        places = np.broadcast_to(rows.places, similarities.shape)
        places = np.concatenate([self.places, places], axis=1)
        similarities = np.concatenate([self.similarities, similarities], axis=1)
        order = np.lexsort((places, -similarities), axis=1)[:, : self._count]
        self.places = np.take_along_axis(places, order, axis=1)
        self.similarities = np.take_along_axis(similarities, order, axis=1)


def _normalised(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Divide features [n, D] by their lengths; a feature of zeros stays one."""
    wide = features.astype(np.float64)
    lengths: NDArray[np.float64] = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.maximum(lengths, np.finfo(np.float64).tiny)
